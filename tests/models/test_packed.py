"""A checkpoint on its codes computes what transformers computes from the dequantized one."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from subeight.errors import ModelError
from subeight.formats import QTensor
from subeight.models.model import Model
from subeight.models.packed import Packed, load_packed
from tests.engine.conftest import checkpoint  # noqa: F401 - a fixture
from tests.engine.tiny import calibration, quantize

Find = Callable[..., Path]
APART = "[{outliers: {percent: 2}}, gptq, {lowrank: {rank: 3}}]"
HEAD = "rules: [{match: '*embed*', weights: 'int8:channel:sym'}]"
RECIPES = {
    "int4": ("{weights: 'int4:g32:asym', methods: [rtn]}", "compressed-tensors"),
    "int8": ("{weights: 'int8:channel:sym', inputs: 'int8:token', methods: [rtn]}", "compressed-tensors"),
    "codebook": ("{weights: 'nf4:g32', methods: [rtn]}", "subeight"),
    "apart": (f"{{weights: 'int2:g32:sym', methods: {APART}}}", "subeight"),
    "rotated": ("{weights: 'int4:g32:had', inputs: 'int8:token:had', methods: [rtn]}", "subeight"),
    "static inputs": ("{weights: 'int8:channel', inputs: 'int8:tensor', methods: [rtn]}", "subeight"),
    "tied head": (f"{{weights: 'int4:g32:sym', methods: [rtn], {HEAD}}}", "subeight"),
}


def logits(module: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return module(input_ids=ids, use_cache=False).logits


def both(source: Path, out: Path, recipe: str, target: str) -> tuple[Packed, torch.nn.Module]:
    quantize(source, recipe, out, calibration(), target)
    return load_packed(Model(out), torch.float32), AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)


@pytest.mark.parametrize("rows", [1, 64])
@pytest.mark.parametrize("recipe, target", RECIPES.values(), ids=RECIPES)
def test_computes_what_the_dequantized_one_does(checkpoint: Find, tmp_path: Path, recipe, target, rows) -> None:  # noqa: F811
    packed, plain = both(checkpoint("llama"), tmp_path / "out", recipe, target)
    ids = calibration(1, rows, seed=5)
    found, wanted = logits(packed.module, ids), logits(plain, ids)
    # an input that rounds the other way is off by a whole step, and the rest of the model sees it
    tolerance = 3e-2 if "int8:token:had" in recipe else 1e-2
    assert (found - wanted).norm() <= tolerance * wanted.norm()
    assert not packed.dense and len(packed.linears) >= 14
    assert all(
        packed.module.get_submodule(name) is linear for name, linear in packed.linears.items() if ".layers." in name
    )


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "phi3", "opt", "qwen3"])
def test_other_families_too(checkpoint: Find, tmp_path: Path, family: str) -> None:  # noqa: F811
    packed, plain = both(checkpoint(family), tmp_path / "out", "{weights: 'int4:g24:asym', methods: [rtn]}", "subeight")
    ids = calibration(2, 16, seed=5)
    found, wanted = logits(packed.module, ids), logits(plain, ids)
    assert (found - wanted).norm() <= 1e-2 * wanted.norm()


def test_experts_of_a_fused_parameter_stay_dense_and_are_told(checkpoint: Find, tmp_path: Path) -> None:  # noqa: F811
    packed, plain = both(checkpoint("mixtral"), tmp_path / "out", "{weights: 'int4:g32', methods: [rtn]}", "dense")
    assert not packed.linears and not packed.dense  # a dense checkpoint has no codes
    ids = calibration(2, 16, seed=5)
    assert torch.allclose(logits(packed.module, ids), logits(plain, ids), atol=1e-4)


def test_generates_and_holds_less(checkpoint: Find, tmp_path: Path) -> None:  # noqa: F811
    packed, plain = both(checkpoint("llama"), tmp_path / "out", RECIPES["int4"][0], RECIPES["int4"][1])
    ids = calibration(1, 5, seed=5)
    options = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    assert packed.module.generate(ids, **options).shape == plain.generate(ids, **options).shape
    assert packed.nbytes < 0.6 * sum(value.nbytes for value in plain.parameters())


def test_what_stays_dense_is_told_with_its_inputs(checkpoint: Find, tmp_path: Path, monkeypatch) -> None:  # noqa: F811
    recipe, target = RECIPES["int8"]
    quantize(checkpoint("llama"), recipe, tmp_path / "out", calibration(), target)
    model, name = Model(tmp_path / "out"), "model.layers.0.mlp.up_proj"
    assert model.codes is not None
    read = model.codes.read

    def refused(asked: str) -> QTensor:
        if asked == name:
            raise ModelError(f"{asked} has no codes in a format of ours")
        return read(asked)

    monkeypatch.setattr(model.codes, "read", refused)
    packed = load_packed(model, torch.float32)
    assert list(packed.dense) == [name] and "not rounded to int8:token" in packed.dense[name]
    assert packed.warnings == [
        f"1 quantized linears stay dense ({name}, ...): it has no codes in a format of ours; "
        "its inputs are not rounded to int8:token:sym here"
    ]
