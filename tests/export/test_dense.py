"""The dense target: the weights that the codes stand for, as any program reads them."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from subeight.errors import OutputError
from subeight.export import exporter_for
from subeight.formats import Format, quantize
from subeight.recipes import parse_recipe, resolve
from tests.export.conftest import write
from tests.recipes.conftest import linear, llama


def test_the_stored_weight_is_the_dequantized_one(tmp_path: Path) -> None:
    written = write(tmp_path / "checkpoint", "weights: nf4:g40", target="dense")
    assert "quantization_config" not in json.loads((written.directory / "config.json").read_text())
    shard = load_file(written.directory / "model-00002-of-00003.safetensors")
    name = "model.layers.1.mlp.up_proj"
    assert torch.equal(shard[f"{name}.weight"], written.weights[name].dequantize())


def test_a_conv1d_is_stored_transposed_and_in_the_checkpoints_dtype() -> None:
    info = linear("transformer.layers.0.attn.c_attn", (24, 64), kind="conv1d")
    site = resolve(parse_recipe("weights: int4:g32"), [info]).sites[0]
    weight = quantize(torch.randn(24, 64, generator=torch.Generator().manual_seed(0)), Format.parse("int4:g32"))
    exporter = exporter_for("dense")
    found = exporter.tensors(site, weight, bias=torch.ones(24))
    stored = found[f"{info.name}.weight"]
    assert (tuple(stored.shape), stored.dtype) == ((64, 24), torch.bfloat16)
    assert torch.equal(stored.T.float(), exporter.as_loaded(site, weight))
    assert found[f"{info.name}.bias"].sum() == 24


def test_quantized_inputs_are_refused() -> None:
    plan = resolve(parse_recipe("weights: int8:channel\ninputs: int8:token"), llama())
    exporter = exporter_for("dense")
    with pytest.raises(OutputError, match=r"inputs in int8:token:sym.*--to compressed-tensors"):
        exporter.require(plan.sites)
    weight = quantize(torch.ones(2, 4), Format.parse("int8:channel"))
    with pytest.raises(OutputError, match="an input scale"):
        exporter.tensors(plan.sites[1], weight, input_scale=torch.ones(1))


def test_an_unknown_target_is_refused() -> None:
    with pytest.raises(OutputError, match=r"'gguff' is not a target.*compressed-tensors, subeight, dense"):
        exporter_for("gguff")
