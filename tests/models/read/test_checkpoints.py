"""Whole quantized checkpoints as models: what is quantized, what is kept, and logits of the dequantized weights."""

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from subeight.errors import ModelError
from subeight.models.footprint import footprint
from subeight.models.model import Model
from tests.models.conftest import streamed
from tests.models.read.linears import linear
from tests.oracles.models_packing import awq_gemm, dense, gptq

GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": False, "checkpoint_format": "gptq"}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "zero_point": True, "version": "gemm"}


def packed(layout, made):
    if layout != "awq":
        return gptq(made.codes, made.zeros, made.scales, 4, v1=True)
    return awq_gemm(made.codes, made.zeros, made.scales)


def twins(source, tmp_path, config, chosen, transposed=False):
    """The checkpoint with the chosen linears quantized, and one that holds the same weights plainly."""
    made, plain = (shutil.copytree(source, tmp_path / name) for name in ("quantized", "plain"))
    tensors = load_file(made / "model.safetensors")
    dequantized = dict(tensors)
    for seed, name in enumerate(sorted(chosen(tensors))):
        weight = tensors.pop(name)
        rows, width = weight.T.shape if transposed else weight.shape
        drawn = linear(rows, width, 4, width // 32, seed=seed)
        for part, value in packed(config["quant_method"], drawn).items():
            tensors[name.replace("weight", part)] = torch.from_numpy(value)
        value = torch.from_numpy(dense(drawn.codes, drawn.zeros, drawn.scales, np.arange(width) // 32))
        dequantized[name] = (value.T if transposed else value).contiguous()
    save_file(tensors, made / "model.safetensors", metadata={"format": "pt"})
    save_file(dequantized, plain / "model.safetensors", metadata={"format": "pt"})
    content = json.loads((made / "config.json").read_text(encoding="utf-8"))
    (made / "config.json").write_text(json.dumps({**content, "quantization_config": config}), encoding="utf-8")
    return made, plain


@pytest.mark.parametrize("config", [GPTQ, AWQ], ids=["gptq", "awq"])
def test_a_quantized_model_computes_what_its_dequantized_weights_do(checkpoint, tmp_path, ids, config):
    made, plain = twins(
        checkpoint("llama"), tmp_path, config, lambda names: [n for n in names if n.endswith("_proj.weight")]
    )
    model = Model(made)
    assert torch.equal(streamed(model, ids), streamed(Model(plain), ids))
    assert len(model.codes.names) == 14
    # 4 bits, and per 32 columns a scale of 16 bits and a zero point of 4
    assert footprint(model).bits_per_weight == pytest.approx(4 + 20 / 32)


def test_linears_that_are_kept_count_as_they_are_stored(checkpoint, tmp_path, ids):
    made, plain = twins(checkpoint("llama"), tmp_path, GPTQ, lambda names: [n for n in names if "down_proj" in n])
    model = Model(made)
    assert torch.equal(streamed(model, ids), streamed(Model(plain), ids))
    assert "model.layers.0.self_attn.q_proj" not in model.codes
    assert footprint(model).bits_per_weight > 16


def test_experts_are_read_one_by_one(checkpoint, tmp_path, ids):
    chosen = lambda names: [n for n in names if ".experts." in n]  # noqa: E731
    made, plain = twins(checkpoint("mixtral"), tmp_path, GPTQ, chosen)
    assert torch.equal(streamed(Model(made), ids), streamed(Model(plain), ids))


def test_a_conv1d_is_turned_as_the_model_has_it(checkpoint, tmp_path, ids):
    made, plain = twins(
        checkpoint("gpt2"), tmp_path, GPTQ, lambda names: [n for n in names if "attn.c_proj.weight" in n], True
    )
    assert torch.equal(streamed(Model(made), ids), streamed(Model(plain), ids))


def test_embeddings_and_head_may_be_quantized(checkpoint, tmp_path, ids):
    chosen = lambda names: [n for n in names if "embed_tokens" in n or "lm_head" in n]  # noqa: E731
    made, plain = twins(checkpoint("llama"), tmp_path, GPTQ, chosen)
    model = Model(made)
    assert torch.equal(streamed(model, ids), streamed(Model(plain), ids))
    assert "model.embed_tokens" in model.codes


def test_an_unknown_method_lists_what_can_be_read(checkpoint, tmp_path):
    made, _ = twins(checkpoint("llama"), tmp_path, {**GPTQ, "quant_method": "quip"}, lambda names: [])
    with pytest.raises(ModelError, match="'quip'; compressed-tensors, gptq, awq, auto-round"):
        Model(made)


def test_a_config_that_says_quantized_of_plain_tensors(checkpoint, tmp_path):
    made, _ = twins(checkpoint("llama"), tmp_path, GPTQ, lambda names: [])
    with pytest.raises(ModelError, match="no tensor of it is quantized"):
        Model(made)
