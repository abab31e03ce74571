"""`rotate` in a recipe: an ordinary checkpoint in another basis, which quantizes better where a channel is loud."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from subeight.errors import RecipeError
from subeight.models.model import Model
from tests.engine.tiny import calibration, hashes, plan_of, quantize, quantize_all

Find = Callable[..., Path]
ROTATED = "{weights: 'FORMAT', methods: [rotate, METHODS]}"


def recipe(format: str, methods: str) -> str:
    return ROTATED.replace("FORMAT", format).replace("METHODS", methods)


def logits(path: Path) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return model(input_ids=calibration(3, 20, seed=9), use_cache=False).logits


def loud(source: Path, to: Path) -> Path:
    """The model with two channels of its stream far louder than all others."""
    to.mkdir()
    for path in source.iterdir():
        (to / path.name).write_bytes(path.read_bytes())
    weights = load_file(to / "model.safetensors")
    weights["model.embed_tokens.weight"][:, [3, 40]] *= 40
    for name in [name for name in weights if name.endswith(("o_proj.weight", "down_proj.weight"))]:
        weights[name][[3, 40]] *= 40
    save_file(weights, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("methods", ["rtn", "gptq", "awq, gptq", "{signround: {steps: 3}}, {distil: {epochs: 1}}"])
def test_eight_bits_compute_the_baseline_whatever_comes_after(checkpoint: Find, tmp_path: Path, methods: str) -> None:
    source = checkpoint("llama")
    quantize(source, recipe("int8:g32", methods), tmp_path / "one", calibration())
    quantize(source, recipe("int8:g32", methods), tmp_path / "two", calibration())
    assert hashes(tmp_path / "one") == hashes(tmp_path / "two")
    exact, found = logits(source), logits(tmp_path / "one")
    assert float((found - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_loud_channels_cost_less(checkpoint: Find, tmp_path: Path) -> None:
    source = loud(checkpoint("llama"), tmp_path / "loud")
    plain = "{weights: 'int4:g32', inputs: 'int4:token', methods: [rtn]}"
    turned = "{weights: 'int4:g32', inputs: 'int4:token', methods: [rotate, rtn]}"
    lanes = quantize_all(source, [(plain, tmp_path / "plain"), (turned, tmp_path / "turned")], calibration())
    assert [lane.job.directory.name for lane in lanes] == ["plain", "turned"]
    exact = logits(source)
    errors = [float((logits(tmp_path / name) - exact).square().mean()) for name in ("plain", "turned")]
    assert errors[1] < 0.7 * errors[0]


def test_a_rotation_is_for_the_whole_model(checkpoint: Find) -> None:
    text = "{weights: 'int4:g32', methods: [rotate, gptq], rules: [{match: '*.down_proj', methods: [gptq]}]}"
    with pytest.raises(RecipeError, match=r"is rotated and .*down_proj is not, but a rotation turns the whole model"):
        plan_of(Model(checkpoint("llama")), text)


def test_it_comes_before_moves_and_rounding(checkpoint: Find) -> None:
    with pytest.raises(RecipeError, match="write rotate before awq"):
        plan_of(Model(checkpoint("llama")), "{weights: 'int4:g32', methods: [awq, rotate, gptq]}")
