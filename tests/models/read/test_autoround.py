"""AutoRound's three packings, its own zero points, and what single linears do otherwise."""

import numpy as np
import pytest

from subeight.errors import ModelError
from subeight.models.read.quantized import quantized_tensors
from tests.models.read.linears import linear, stored
from tests.oracles.models_packing import awq_gemm, dense, gptq

CONFIG = {"quant_method": "auto-round", "bits": 4, "group_size": 32, "sym": False}


@pytest.mark.parametrize(
    "packing", ["auto_round", "auto_round:gptqmodel", "auto_round:auto_gptq", "auto_round:auto_awq"]
)
def test_every_packing_comes_back(packing):
    made = linear(32, 64, 4, 2)
    if packing == "auto_round:auto_awq":
        parts = awq_gemm(made.codes, made.zeros, made.scales)
    else:
        parts = gptq(made.codes, made.zeros, made.scales, 4, v1=packing == "auto_round:auto_gptq")
    codes, plain = quantized_tensors({**CONFIG, "packing_format": packing}, stored(parts))
    expected = dense(made.codes, made.zeros, made.scales, np.arange(64) // 32)
    assert np.array_equal(plain["model.up.weight"].read().numpy(), expected)
    assert codes.format_words("model.up") == "int4:g32:asym (auto-round)"


@pytest.mark.parametrize("bits", [5, 6, 7])
def test_odd_widths_are_packed_without_gaps(bits):
    made = linear(32, 64, bits, 2)
    parts = gptq(made.codes, made.zeros, made.scales, bits, v1=False)
    codes, _ = quantized_tensors({**CONFIG, "bits": bits}, stored(parts))
    assert np.array_equal(codes.read("model.up").codes.int().numpy() + 2 ** (bits - 1), made.codes)


@pytest.mark.parametrize("key", ["model.up", r".*\.up", "up|down"])
def test_single_linears_may_differ(key):
    made = linear(32, 64, 8, 1)
    parts = stored(gptq(made.codes, made.zeros, made.scales, 8, v1=False))
    extra = {key: {"bits": 8, "group_size": -1}, "model.other": {"bits": 16}}
    codes, _ = quantized_tensors({**CONFIG, "extra_config": extra}, parts)
    assert codes.format_words("model.up") == "int8:channel:asym (auto-round)"


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"packing_format": "auto_round:llm_compressor"}, "auto_round:llm_compressor"),
        ({"act_bits": 8}, "inputs to 8 bits"),
        ({"packing_format": "auto_round:auto_awq", "bits": 8}, "has 4"),
    ],
)
def test_what_cannot_be_read_is_said(changed, words):
    made = linear(32, 64, 4, 2)
    with pytest.raises(ModelError, match=words):
        quantized_tensors({**CONFIG, **changed}, stored(awq_gemm(made.codes, made.zeros, made.scales)))[0].read(
            "model.up"
        )
