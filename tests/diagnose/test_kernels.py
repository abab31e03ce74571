"""Kernels: a healthy packed model is cleared, and what errs in the user's environment is named by its linears."""

from pathlib import Path

import pytest

from subeight.diagnose import kernels
from subeight.diagnose.finding import Finding
from subeight.diagnose.products import Product
from subeight.errors import InputError
from subeight.export import packed
from tests.diagnose.packed_case import RECIPE, Pair, make, save_mixtral

DOWN = ("model.layers.0.mlp.down_proj", "model.layers.1.mlp.down_proj")  # the only linears of 64 x 96
KERNEL = """
import torch
plain = torch.nn.functional.linear
def linear(input, weight, bias=None):
    made = plain(input, weight, bias)
    return made * 0.5 if tuple(weight.shape) == (64, 96) else made
torch.nn.functional.linear = linear
"""
UNPACKING = """
from compressed_tensors.compressors import PackedQuantizationCompressor as Packed
plain = Packed.decompress.__func__
def decompress(cls, state_dict, scheme):
    made = plain(cls, state_dict, scheme)
    if tuple(made["weight"].shape) == (64, 96):
        made["weight"] = made["weight"].flip(0)
    return made
Packed.decompress = classmethod(decompress)
"""
ATTENTION = """
import torch
plain = torch.nn.functional.scaled_dot_product_attention
def attention(query, *args, **kwargs):
    return plain(query * 4, *args, **kwargs)
torch.nn.functional.scaled_dot_product_attention = attention
"""

NORM = """
import transformers
plain = transformers.PreTrainedModel.eval
def evaluated(self):
    self.model.norm.weight.data[:8] *= -3
    return plain(self)
transformers.PreTrainedModel.eval = evaluated
"""

EXPERTS = """
import transformers
plain = transformers.PreTrainedModel.eval
def evaluated(self):
    for name, value in self.named_parameters():
        if name.endswith("experts.down_proj"):
            value.data *= 3
    return plain(self)
transformers.PreTrainedModel.eval = evaluated
"""


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Pair:
    return make(tmp_path_factory.mktemp("kernels") / "pair", rows=12)


@pytest.fixture
def environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Puts a sitecustomize.py in front of the user's packages."""

    def put(program: str) -> None:
        (tmp_path / "sitecustomize.py").write_text(program, encoding="utf-8")
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    return put


def _guilty(finding: Finding, kind: str, places: tuple[str, ...]) -> None:
    assert finding.verdict == "guilty", finding.evidence
    assert [(cause.kind, cause.places) for cause in finding.causes] == [(kind, places)]
    share = finding.causes[0].recovered
    assert share is not None and share.value > 0.3 and share.low > 0


def test_a_healthy_checkpoint_is_cleared_and_the_process_is_kept(pair: Pair) -> None:
    case = pair.case()
    first, after = kernels.examine(case)
    assert first.verdict == "cleared" and not first.causes and after is case
    assert first.details["logits_max"] < 1e-4 and first.details["loss_packed"] > 0
    assert "of 23 failing prompts, worst first (5" in first.evidence  # hundred tokens
    process = packed.kept_runner()._process.pid
    again, _ = kernels.examine(case)
    assert packed.kept_runner()._process.pid == process
    assert again.details == first.details


def test_a_kernel_that_errs_on_one_shape_is_named_by_its_linears(pair: Pair, environment) -> None:
    environment(KERNEL)
    finding, _ = kernels.examine(pair.case())
    _guilty(finding, "kernel", DOWN)
    assert "of the shape 64 x 96" in finding.causes[0].sentence
    assert finding.details["layers"][0]["relative_error"] == pytest.approx(0.5, abs=1e-3)


def test_an_unpacking_that_errs_on_one_shape_is_named(pair: Pair, environment) -> None:
    environment(UNPACKING)
    finding, _ = kernels.examine(pair.case())
    _guilty(finding, "unpacking", DOWN)


def test_an_attention_that_errs_is_named_by_its_blocks(pair: Pair, environment) -> None:
    environment(ATTENTION)
    finding, _ = kernels.examine(pair.case())
    _guilty(finding, "kernel", ("model.layers.0", "model.layers.1"))
    assert "Every linear is right" in finding.causes[0].sentence


def test_a_difference_that_costs_nothing_is_cleared(pair: Pair, environment) -> None:
    environment(KERNEL.replace("* 0.5", "* 0.99"))
    finding, _ = kernels.examine(pair.case())
    assert finding.verdict == "cleared" and not finding.causes
    assert "not what the prompts lose" in finding.evidence


def test_a_reader_of_ours_that_errs_is_no_fault_of_the_packed_model(pair: Pair, monkeypatch) -> None:
    case = pair.case()
    stored = kernels._as_stored

    def misread(model):
        twin = stored(model)
        read = twin.weights.read
        twin.weights.read = lambda name: read(name) * (0.5 if "down_proj" in name else 1)
        return twin

    monkeypatch.setattr(kernels, "_as_stored", misread)
    finding, _ = kernels.examine(case)
    assert finding.verdict == "unknown" and "in doubt" in finding.evidence


def test_a_parameter_that_is_loaded_wrong_is_named(pair: Pair, environment) -> None:
    environment(NORM)
    finding, _ = kernels.examine(pair.case())
    _guilty(finding, "load", ("model.norm.weight",))


def test_a_linear_that_was_not_loaded_is_told_from_one_that_was_unpacked_wrong() -> None:
    lost, wrong, slow = (Product(name, (8, 8), 0.5, held, 1e-3) for name, held in (("a", 1.0), ("b", 1.0), ("c", 0.0)))
    report = {"missing_keys": ["a.weight"], "mismatched_keys": []}
    made = kernels._causes(None, None, None, [lost, wrong, slow], report)  # type: ignore[arg-type]
    assert [(cause.kind, cause.places) for cause in made] == [
        ("load", ("a",)),
        ("unpacking", ("b",)),
        ("kernel", ("c",)),
    ]
    assert made[0].sentence.startswith("In the packed model a of the shape 8 x 8 was not loaded")


def test_rounded_inputs_are_no_fault_and_do_not_hide_one(tmp_path: Path, environment) -> None:
    rounded = make(
        tmp_path / "rounded", RECIPE.replace("int4:g32:sym", "int8:channel") + "inputs: int8:token\n", rows=4
    )
    case = rounded.case()
    finding, _ = kernels.examine(case)
    assert finding.verdict == "cleared", finding.evidence
    environment(KERNEL)
    finding, _ = kernels.examine(case)
    _guilty(finding, "kernel", DOWN)


def test_fused_experts_are_compared_by_their_weights(tmp_path: Path, environment) -> None:
    experts = make(tmp_path / "experts", rows=4, save=save_mixtral)
    case = experts.case()
    finding, _ = kernels.examine(case)
    assert finding.verdict == "cleared", finding.evidence
    environment(EXPERTS)
    finding, _ = kernels.examine(case)
    assert finding.verdict == "guilty", finding.evidence
    (cause,) = finding.causes
    assert cause.kind == "unpacking" and len(cause.places) == 8
    assert all(place.endswith("w2") for place in cause.places)


def test_a_dense_directory_runs_too(pair: Pair) -> None:
    finding, _ = kernels.examine(pair.case(pair.base))
    assert finding.verdict == "cleared"


def test_what_transformers_cannot_run_is_unknown_and_says_why(pair: Pair, environment) -> None:
    environment(UNPACKING.replace("    made = plain", "    raise RuntimeError('no such kernel')\n    made = plain"))
    finding, _ = kernels.examine(pair.case())
    assert finding.verdict == "unknown" and "no such kernel" in finding.evidence


def test_a_process_that_dies_is_unknown(pair: Pair, environment) -> None:
    environment(KERNEL.replace("made = plain", "__import__('os')._exit(9); made = plain"))
    finding, _ = kernels.examine(pair.case())
    assert finding.verdict == "unknown" and "ended with status 9" in finding.evidence


def test_an_interpreter_that_is_none_is_bad_input(pair: Pair) -> None:
    with pytest.raises(InputError, match="cannot be run"):
        kernels.examine(pair.case(python="/nowhere/python"))


def test_a_model_that_does_not_fit_is_skipped(pair: Pair) -> None:
    finding, _ = kernels.examine(pair.case(max_memory=1000))
    assert finding.verdict == "skipped" and "larger machine" in finding.evidence
