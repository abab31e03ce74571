import json

import pytest
import torch

from subeight.diagnose.baseline import examine
from subeight.errors import InputError
from subeight.verbs import parity
from tests.diagnose.baseline_case import case_of, copied, noise, nothing, quantized, swapped
from tests.models.moves import move_scales, orthogonal, rotate_by_hand
from tests.verbs import small
from tests.verbs.conftest import unchecked

K_PROJ, DOWN = "model.layers.1.self_attn.k_proj", "model.layers.0.mlp.down_proj"
NORM = "model.layers.1.post_attention_layernorm.weight"


@pytest.fixture(scope="module", autouse=True)
def no_parity():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "check", unchecked)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return small.save_llama(tmp_path_factory.mktemp("base") / "base")


@pytest.fixture
def examined(base, tmp_path):
    """Examines a candidate that a change made; gives finding and case."""

    def run(change, recipe=None, **settings):
        options = {} if recipe is None else {"recipe": recipe}
        candidate = quantized(base, tmp_path, "candidate", change, **options)
        return examine(case_of(tmp_path, candidate, base, small.text_rows(12), **settings))

    return run


RECIPES = {
    "rtn4": None,
    "rtn3": small.RTN,
    "gptq": small.GPTQ,
    "awq": small.GPTQ.replace("[gptq]", "[awq, rtn]"),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_healthy_candidate_is_cleared(recipe, examined):
    finding, case = examined(nothing, RECIPES[recipe])
    assert (finding.verdict, finding.causes) == ("cleared", ())
    assert case.gauge is not None
    assert case.loss is case.whole
    assert case.notes["forensics"] == {}
    assert "all ids of the prompts" in finding.evidence


def rotated(made):
    rotate_by_hand(made, orthogonal())


@pytest.mark.parametrize(("move", "word"), [(move_scales, "scales"), (rotated, "rotation")])
def test_a_moved_candidate_is_cleared(move, word, examined):
    finding, case = examined(move)
    assert (finding.verdict, finding.details["gauge"]) == ("cleared", word)
    assert case.gauge.is_moved
    assert word in finding.evidence


def test_swapped_heads_are_named_with_their_order(examined):
    def plant(made):
        weight = made.get_submodule(K_PROJ).weight
        weight.copy_(swapped(weight))

    finding, case = examined(plant)
    (cause,) = finding.causes
    assert (cause.kind, cause.places) == ("permuted", (K_PROJ,))
    assert cause.sentence.startswith(f"{K_PROJ} holds the baseline's heads in another order (0 1 are its 1 0)")
    assert cause.recovered.value > 0.3
    assert cause.repair == {"restore": [K_PROJ], "requantized": True}
    assert set(case.swaps.given) == {K_PROJ}
    assert case.loss.value < case.whole.value
    assert finding.evaluations == 1


@pytest.mark.parametrize("size", [0.5, 3.0])
def test_a_stale_linear_is_named(size, examined):
    def plant(made):
        weight = made.get_submodule(DOWN).weight
        weight.add_(size * noise(weight))

    finding, case = examined(plant)
    (cause,) = finding.causes
    assert (cause.kind, cause.places) == ("stale", (DOWN,))
    assert case.loss.value < case.whole.value


def test_a_changed_norm_is_named(examined):
    def plant(made):
        made.get_parameter(NORM)[:32].mul_(2.5)

    finding, case = examined(plant)
    (cause,) = finding.causes
    assert (cause.kind, cause.places) == ("tensor", (NORM,))
    assert "readers do not take up" in cause.sentence
    assert case.swaps.parameters == {NORM}


def test_another_model_stops_the_diagnosis(examined):
    def plant(made):
        for parameter in made.parameters():
            parameter.add_(0.2 * noise(parameter) if parameter.dim() > 1 else 0.05 * torch.ones_like(parameter))

    finding, case = examined(plant)
    (cause,) = finding.causes
    assert (cause.kind, cause.places) == ("model", ("baseline",))
    assert "was not made from" in cause.sentence
    assert case.notes["stop"] is True
    assert case.loss is case.whole


def weights_plus(difference):
    def plant(made):
        for module in made.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.add_(difference(module.weight))

    return plant


def test_noise_in_every_linear_is_no_other_model(examined):
    finding, case = examined(weights_plus(lambda weight: 0.3 * noise(weight)))
    assert finding.verdict == "cleared"
    assert "spread evenly" in finding.evidence
    assert "stop" not in case.notes


def test_a_merged_low_rank_update_is_another_model(examined):
    def update(weight):
        left, right = noise(weight)[:, :2], noise(weight, 4)[:2]
        return 0.6 * weight.norm() * (left @ right) / (left @ right).norm()

    finding, _ = examined(weights_plus(update))
    assert [cause.kind for cause in finding.causes] == ["model"]


def test_a_low_format_is_no_fault_of_the_baseline(examined):
    recipe = "name: two\nweights: int4:g32:sym\nmethods: [rtn]\nrules:\n  - {match: '*.1.*', weights: int2:g32:sym}\n"
    finding, _ = examined(nothing, recipe)
    assert finding.verdict == "cleared"


def test_wrong_scales_are_a_hint_for_the_layers(base, tmp_path):
    candidate = quantized(base, tmp_path, "candidate")
    name = f"{DOWN}.weight_scale"
    path = next(p for p in sorted(candidate.glob("*.safetensors")) if name in small.load_file(p))
    tensors = small.load_file(path)
    tensors[name] = tensors[name] * 1.6
    small.save_file(tensors, path, metadata={"format": "pt"})
    finding, case = examine(case_of(tmp_path, candidate, base, small.text_rows(12)))
    assert finding.verdict == "cleared"
    assert case.notes["forensics"] == {DOWN: "scales"}
    assert DOWN in finding.evidence


def test_another_rope_base_is_named_and_mended(base, tmp_path):
    candidate = quantized(base, tmp_path, "candidate")
    path = candidate / "config.json"
    content = json.loads(path.read_text())
    content["rope_parameters"]["rope_theta"] = 5.0
    path.write_text(json.dumps(content))
    finding, case = examine(case_of(tmp_path, candidate, base, small.text_rows(12)))
    (cause,) = finding.causes
    assert (cause.kind, cause.places) == ("config", ("config.rope_theta",))
    assert cause.repair == {"config": {"rope_theta": 10000.0}}
    assert case.candidate.config.rope_parameters["rope_theta"] == 10000.0
    assert case.loss.value < case.whole.value


def test_two_architectures_are_bad_input(base, tmp_path):
    other = small.save_llama(tmp_path / "other", num_hidden_layers=1)
    case = case_of(tmp_path, other, base, small.text_rows(4))
    with pytest.raises(InputError, match="not two versions of one model"):
        examine(case)


def test_a_full_precision_copy_is_cleared_without_measuring(base, tmp_path):
    candidate = copied(base, tmp_path / "copy", nothing)
    finding, _ = examine(case_of(tmp_path, candidate, base, small.text_rows(4)))
    assert (finding.verdict, finding.evaluations) == ("cleared", 0)
    assert finding.details["dtype"] == {"baseline": "float32", "candidate": "float32"}
