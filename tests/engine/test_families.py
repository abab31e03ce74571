"""Every family that is tried goes through the loop and comes back in plain transformers as what was computed."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from subeight.evals.passes import Computing, run_pass
from subeight.export.parity import check
from subeight.models.model import Model
from subeight.text import Batch
from tests.engine.tiny import calibration, quantize
from tests.models.families import FAMILIES

Find = Callable[..., Path]
RECIPES = {
    "gptq": "{weights: 'int4:g32', methods: [gptq]}",
    "awq": "{weights: 'int4:g32', methods: [awq, {rtn: {search: output}}]}",
}
# Slow; that Llama is whole there is part of test_resume.
TESTED_IN_A_FRESH_PROCESS = [("qwen2", "awq"), ("mixtral", "awq"), ("gpt2", "gptq")]


def streamed_logits(directory: Path, ids: Tensor) -> Tensor:
    """Logits of every position, block by block, as `evaluate` makes them."""
    padded = torch.cat([ids, ids[:, :1]], 1)
    scored = torch.ones_like(padded, dtype=torch.bool)
    scored[:, 0] = False
    lengths = torch.full((len(ids),), padded.shape[1])
    batch = Batch(padded, scored, lengths, tuple(range(len(ids))))
    made = run_pass(Model(directory), [batch], Computing(torch.float32, torch.device("cpu"), quiet=True), "")
    return made.head(made.hidden[0]).view(*ids.shape, -1)


def plain_logits(directory: Path, ids: Tensor) -> Tensor:
    """Logits of plain transformers; what it leaves in the scales' type is widened, as the parity check does."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    for parameter in model.parameters():
        if parameter.dtype in (torch.bfloat16, torch.float16):
            parameter.data = parameter.data.float()
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


def target_of(family: str) -> str:
    return "dense" if family == "gpt2" else "compressed-tensors"  # a Conv1D is no Linear


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize("family", FAMILIES)
def test_plain_transformers_computes_what_was_measured(
    checkpoint: Find, tmp_path: Path, family: str, recipe: str
) -> None:
    ids = calibration()
    lane = quantize(checkpoint(family), RECIPES[recipe], tmp_path / "out", ids, target_of(family))
    quantized = {site.linear.name for site in lane.plan.quantized}
    assert set(lane.outcomes()) == quantized
    written = Model(tmp_path / "out")
    if target_of(family) == "dense":
        assert written.codes is None
    else:
        assert written.codes is not None
        assert set(written.codes.names) == quantized
    test = calibration(2, 20, seed=9)
    found, before = streamed_logits(tmp_path / "out", test), plain_logits(checkpoint(family), test)
    spread = float(before.std())
    assert 0.005 < float((found - before).std()) / spread < 0.6  # it was rounded, and not broken
    assert float((found - plain_logits(tmp_path / "out", test)).abs().max()) < 2e-3 * spread


@pytest.mark.parametrize(("family", "recipe"), TESTED_IN_A_FRESH_PROCESS)
def test_a_fresh_process_computes_what_was_measured(checkpoint: Find, tmp_path: Path, family: str, recipe: str) -> None:
    quantize(checkpoint(family), RECIPES[recipe], tmp_path / "out", calibration(), target_of(family))
    test = calibration(2, 20, seed=9)
    expected = streamed_logits(tmp_path / "out", test)
    parity = check(tmp_path / "out", test, expected, 2e-3 * float(expected.std()), threads=1)
    assert parity.compared == expected.numel()


@pytest.mark.parametrize("family", ["llama", "qwen2", "gpt2", "gpt_neox", "mixtral"])
def test_what_is_not_quantized_is_the_baselines(checkpoint: Find, tmp_path: Path, family: str) -> None:
    quantize(checkpoint(family, torch.bfloat16), RECIPES["gptq"], tmp_path / "out", calibration(), target_of(family))
    before, after = Model(checkpoint(family, torch.bfloat16)), Model(tmp_path / "out")
    changed = {view.parameter for view in before.views() if view.info.kind != "router"}
    same = [name for name in before.weights.names() if name not in changed]
    assert any(name.endswith("bias") for name in same) == (family in ("qwen2", "gpt2", "gpt_neox"))
    for name in same:
        assert torch.equal(before.weights.read(name), after.weights.read(name)), name
    if target_of(family) == "dense":
        assert after.stored_dtype == torch.bfloat16
