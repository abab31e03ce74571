import json
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from subeight import train_qlora
from subeight.errors import InputError
from subeight.models.model import Model
from subeight.train.adapters import LoraShape
from subeight.train.qlora import Course
from subeight.verbs.train_qlora import Material
from tests.verbs import small

WORDS = ["the", "a", "of", "to", "in", "and", "is", "it", "on", "as", "at", "by", "or", "be"]
SHAPE, COURSE = LoraShape(rank=4, alpha=16.0), Course(steps=8, batch=8, rate=2e-2, save=3)
NF4 = "name: tiny-nf4\nweights: nf4:g32\nmethods: [rtn]\n"


def rows(count: int = 40) -> list[dict]:
    """Two words in, their order turned."""
    generator = torch.Generator().manual_seed(3)
    found = []
    for number in range(count):
        one, other = (WORDS[i] for i in torch.randperm(len(WORDS), generator=generator)[:2].tolist())
        found.append({"id": f"r{number}", "text": f"{one} {other}\n", "completion": f"{other} {one}"})
    return found


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return small.write_rows(tmp_path_factory.mktemp("lessons") / "rows.jsonl", rows())


@pytest.fixture(scope="module")
def nf4(tmp_path_factory) -> Path:
    return small.write_recipe(tmp_path_factory.mktemp("recipe") / "tiny-nf4.yaml", NF4)


def call(house, data, nf4, out, **changed):
    given = {"shape": SHAPE, "course": COURSE, "material": Material(share=0.2), "options": house.options(out=out)}
    return train_qlora(str(house.base), str(data), str(nf4), **{**given, **changed})


@pytest.fixture(scope="module")
def trained(house, data, nf4, tmp_path_factory):
    told = []
    found = call(house, data, nf4, tmp_path_factory.mktemp("trained") / "run", tell=told.append)
    return found, told


def test_every_way_of_merging_is_measured_against_the_trained_model(trained):
    numbers = trained[0].numbers
    ways = {row["mode"]: row for row in numbers["merges"]}
    assert list(ways) == ["apart", "16-bit", "dequantized", "requantized"]
    assert all(row["kl"] >= 0 and 0 <= row["exact"] <= 1 for row in ways.values())
    assert ways["apart"]["kl"] == 0 and ways["apart"]["kept"] == 1
    assert 0 <= ways["dequantized"]["kl"] < ways["requantized"]["kl"]
    start = {row["base"]: row for row in numbers["untrained"]}
    assert ways["apart"]["loss"] < start["quantized"]["loss"] - 0.5
    assert ways["requantized"]["bytes"] == start["quantized"]["bytes"] < ways["apart"]["bytes"]
    assert ways["dequantized"]["bytes"] == ways["16-bit"]["bytes"] == start["16-bit"]["bytes"]
    assert numbers["training"]["steps"] == 8 and len(numbers["training"]["curve"]) == 8
    assert numbers["findings"] and trained[0].report.is_file()


def test_the_manifest_is_told_before_training_and_stored(trained):
    result, told = trained
    stored = json.loads((result.directory / "manifest.json").read_text())
    assert len(told) == 1 and stored == json.loads(json.dumps(told[0].numbers()))
    totals = stored["totals"]
    assert totals["quantized"]["parameters"] == 14 and totals["trained"]["parameters"] == 28
    assert totals["quantized"]["bytes"] * 8 / totals["quantized"]["count"] == 4.5  # nf4 with a bf16 scale for 32


def test_the_adapter_loads_into_the_plain_base_by_peft_alone(house, trained):
    plain = AutoModelForCausalLM.from_pretrained(house.base, dtype=torch.float32)
    ids = torch.arange(5, 17)[None]
    before = plain(ids).logits
    adapted = peft.PeftModel.from_pretrained(plain, trained[0].directory / "adapter")
    assert (adapted(ids).logits - before).abs().max() > 1e-2
    config = json.loads((trained[0].directory / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(house.base)


def test_what_is_finished_is_not_done_again(house, data, nf4, trained):
    again = call(house, data, nf4, trained[0].directory)
    assert "nothing was done again" in again.lines[0] and again.numbers == trained[0].numbers


def test_an_interrupted_training_goes_on_and_ends_alike(house, data, nf4, trained, tmp_path, monkeypatch):
    def killed(self, args, state, control, **_):
        if state.global_step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("subeight.train.qlora._Shown.on_step_end", killed)
        call(house, data, nf4, tmp_path / "run")
    found = call(house, data, nf4, tmp_path / "run")
    assert found.numbers["training"]["resumed_at"] == 3
    weights = "adapter/adapter_model.safetensors"
    assert (tmp_path / "run" / weights).read_bytes() == (trained[0].directory / weights).read_bytes()
    assert found.numbers["merges"] == trained[0].numbers["merges"]
    assert not (tmp_path / "run" / "checkpoints").exists()


def test_an_adapter_is_measured_without_training(house, data, nf4, trained, tmp_path):
    adapter = trained[0].directory / "adapter"
    found = call(
        house, data, nf4, tmp_path / "run", adapter=adapter, course=Course(steps=0), shape=None, merge="dequantized"
    )
    first, second = ({row["mode"]: row["loss"] for row in each.numbers["merges"]} for each in (trained[0], found))
    assert first == pytest.approx(second, abs=1e-6)
    assert found.numbers["merged"]["mode"] == "dequantized"
    merged = Model(tmp_path / "run" / "merged")
    base = Model(tmp_path / "run" / "base")
    name = "model.layers.0.self_attn.q_proj.weight"
    assert merged.codes is None and not torch.equal(merged.weights.read(name), base.weights.read(name))


def test_a_checkpoint_that_is_quantized_already_is_trained_on_as_it_is(house, data, trained, tmp_path):
    base = trained[0].directory / "base"
    options = house.options(out=tmp_path / "run")
    found = train_qlora(str(base), str(data), shape=SHAPE, course=COURSE, material=Material(share=0.2), options=options)
    ways = {row["mode"]: row for row in found.numbers["merges"]}
    assert ways["16-bit"]["skipped"].startswith("the 16-bit model is not known")
    first = {row["mode"]: row for row in trained[0].numbers["merges"]}
    assert ways["apart"]["loss"] == pytest.approx(first["apart"]["loss"], abs=1e-6)


BAD = {
    "a recipe for what has codes": ({"model": "base"}, "is quantized already"),
    "a baseline for what has none": ({"baseline": "smollm2"}, "is in full precision itself"),
    "a merge that is none": ({"merge": "all"}, "allowed are best, 16-bit"),
    "a merge that cannot be": ({"model": "base", "recipe": None, "merge": "16-bit"}, "cannot be made of"),
    "unknown targets": ({"shape": LoraShape(targets=("q_prj",))}, "did you mean q_proj"),
    "no data": ({"data": "nowhere.jsonl"}, "there is no file"),
    "an empty file": ({"data": "empty"}, "is empty"),
    "a user's turn at the end": ({"data": "asking"}, "ends with a user's turn"),
    "one document": ({"data": "single"}, "holds one document"),
    "a batch that does not fit": ({"options": {"max_memory": 3_000_000}, "course": Course(batch=512)}, "give --batch"),
    "no adapter": ({"adapter": "nothing"}, "is no adapter"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_gets_one_sentence_and_leaves_nothing(house, data, nf4, trained, tmp_path, case):
    changed, sentence = BAD[case]
    changed = dict(changed)
    files = {
        "empty": [],
        "asking": [{"messages": [{"role": "user", "content": "hello"}]}],
        "single": [{"text": "the of", "completion": " to"}],
    }
    name = changed.pop("data", None)
    source = data if name is None else tmp_path / f"{name}.jsonl"
    if name in files:
        small.write_rows(source, files[name])
    model = trained[0].directory / "base" if changed.pop("model", None) else house.base
    if "adapter" in changed:
        changed["adapter"] = tmp_path / changed["adapter"]
    options = house.options(out=tmp_path / "run", **changed.pop("options", {}))
    given = {"shape": SHAPE, "course": COURSE, **changed}
    with pytest.raises(InputError) as caught:
        train_qlora(str(model), str(source), given.pop("recipe", str(nf4)), options=options, **given)
    assert sentence in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


def test_an_adapter_or_a_run_of_another_base_is_refused(house, data, nf4, trained, tmp_path):
    other = small.save_llama(tmp_path / "other", seed=1)
    adapter = trained[0].directory / "adapter"
    options = house.options(out=tmp_path / "run")
    with pytest.raises(InputError, match="was trained on another base"):
        train_qlora(str(other), str(data), str(nf4), adapter=adapter, course=COURSE, options=options)
    options = house.options(out=trained[0].directory)
    with pytest.raises(InputError, match="another model, recipe or settings"):
        train_qlora(str(other), str(data), str(nf4), shape=SHAPE, course=COURSE, options=options)
