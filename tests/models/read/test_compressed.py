"""What compressed-tensors checkpoints may hold besides plain integers: columns in another order, and fp4."""

import numpy as np
import pytest
import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig

from subeight.errors import ModelError
from subeight.formats import pack
from subeight.models.read.quantized import quantized_tensors
from tests.models.read.linears import linear, stored
from tests.oracles.models_packing import dense


def config(weights, stored_as):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None, "format": stored_as}
    return {"quant_method": "compressed-tensors", "format": stored_as, "config_groups": {"group_0": group}}


INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32, "actorder": "group"}
NVFP4 = {
    "num_bits": 4,
    "type": "float",
    "symmetric": True,
    "strategy": "tensor_group",
    "group_size": 16,
    "scale_dtype": "torch.float8_e4m3fn",
}
MXFP4 = {**NVFP4, "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}


def test_columns_in_another_order(tmp_path):
    made = linear(8, 64, 4, 2, symmetric=True)
    order = np.random.default_rng(0).permutation(np.arange(64) // 32).astype(np.int32)
    parts = {
        "weight_packed": pack(torch.from_numpy(made.codes - 8).to(torch.int8), 4),
        "weight_shape": torch.tensor([8, 64]),
        "weight_scale": torch.from_numpy(made.scales),
        "weight_g_idx": torch.from_numpy(order),
    }
    codes, plain = quantized_tensors(config(INT4, "pack-quantized"), stored(parts))
    expected = dense(made.codes, made.zeros, made.scales, order)
    assert np.array_equal(plain["model.up.weight"].read().numpy(), expected)
    assert codes.format_words("model.up") == "int4:g32:sym (compressed-tensors, act-order)"
    with pytest.raises(ModelError, match="act-order"):
        codes.read("model.up")


@pytest.mark.parametrize(("weights", "kind"), [(NVFP4, "nvfp4"), (MXFP4, "mxfp4")])
def test_fp4_equals_the_packages_own(weights, kind):
    draw = torch.Generator().manual_seed(0)
    weight = torch.randn(6, 64, generator=draw).bfloat16()
    groups = weight.float().unflatten(1, (-1, weights["group_size"])).abs().amax(-1)
    state = {"weight": weight}
    if kind == "nvfp4":
        state["weight_global_scale"] = (448 * 6 / groups.max()).reshape(1)
        scales = (groups / 6 * state["weight_global_scale"]).to(torch.float8_e4m3fn).bfloat16()
    else:
        scales = torch.exp2((groups / 4).log2().floor()).bfloat16()
    said = config(weights, f"{kind}-pack-quantized")
    scheme = QuantizationConfig(**said).config_groups["group_0"]
    compressor = BaseCompressor.get_value_from_registry(f"{kind}-pack-quantized")
    packed = compressor.compress({**state, "weight_scale": scales}, scheme)
    expected = compressor.decompress(packed, scheme)["weight"]
    codes, plain = quantized_tensors(said, stored(packed))
    assert torch.equal(plain["model.up.weight"].read().to(expected.dtype), expected)
    assert plain["model.up.weight"].shape == (6, 64)
    assert str(codes.read("model.up").format) == kind
    assert codes.nbytes("model.up") == 6 * 32 + 6 * groups.shape[1] + (4 if kind == "nvfp4" else 0)


def test_fp4_with_other_groups_is_refused():
    parts = {"weight_packed": torch.zeros(4, 32, dtype=torch.uint8), "weight_scale": torch.ones(4, 4)}
    said = config({**NVFP4, "group_size": 64}, "nvfp4-pack-quantized")
    with pytest.raises(ModelError, match="tensor_group of 64"):
        quantized_tensors(said, stored(parts))[0].format_words("model.up")
