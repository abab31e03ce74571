"""bitsandbytes' layouts against a slow oracle: blocks over the flattened weight, double quantization, int8, damage."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subeight.errors import ModelError
from subeight.formats.grids import NF4_VALUES
from subeight.models.read.quantized import quantized_tensors
from tests.models.read.linears import stored
from tests.oracles.models_packing import bnb_dense

CONFIG = {"quant_method": "bitsandbytes", "load_in_4bit": True}
NESTED = {"blocksize": 4, "offset": 0.05}
KEY = "weight.quant_state.bitsandbytes__"


def four_bits(shape, block, *, nested=False, kind="nf4", dtype="float32", seed=0):
    draw = np.random.default_rng(seed)
    count = shape[0] * shape[1]
    blocks = -(-count // block)
    said = {"quant_type": kind, "blocksize": block, "dtype": dtype, "shape": list(shape)}
    values = np.array(NF4_VALUES if kind == "nf4" else draw.uniform(-1, 1, 16), dtype=np.float32)
    parts = {"weight": draw.integers(0, 256, (count // 2, 1)).astype(np.uint8), "weight.quant_map": values}
    if nested:
        said |= {f"nested_{key}": value for key, value in NESTED.items()}
        parts["weight.absmax"] = draw.integers(0, 256, blocks).astype(np.uint8)
        parts["weight.nested_quant_map"] = draw.uniform(-1, 1, 256).astype(np.float32)
        parts["weight.nested_absmax"] = draw.uniform(0.01, 0.1, -(-blocks // 4)).astype(np.float32)
    else:
        parts["weight.absmax"] = draw.uniform(0.01, 0.1, blocks).astype(np.float32)
    parts[f"{KEY}{kind}"] = np.frombuffer(json.dumps(said).encode(), dtype=np.uint8).copy()
    return parts


def opened(parts, **changed):
    return quantized_tensors({**CONFIG, **changed}, stored(parts))


@given(width=st.sampled_from([32, 48, 64]), nested=st.booleans(), kind=st.sampled_from(["nf4", "fp4"]))
@settings(max_examples=15, deadline=None)
def test_blocks_run_over_the_flattened_weight(width, nested, kind):
    parts = four_bits((6, width), 32, nested=nested, kind=kind)
    codes, plain = opened(parts)
    expected = bnb_dense(parts, (6, width), 32, NESTED if nested else None)
    assert np.array_equal(plain["model.up.weight"].read().numpy(), expected)
    assert plain["model.up.weight"].shape == (6, width)
    assert list(plain) == ["model.up.weight"]
    if kind == "nf4" and width % 32 == 0:
        found = codes.read("model.up")
        assert str(found.format) == "nf4:g32:fp32"
        assert np.array_equal(found.dequantize().numpy(), expected)
    else:
        with pytest.raises(ModelError, match="no codes in a format of ours"):
            codes.read("model.up")


def test_bytes_written_by_hand():
    # 0xF0: the first weight has the code 15 (1.0), the second 0 (-1.0); scale 0.25 + 2 * 0.5 of the double quantization
    parts = four_bits((2, 4), 4, nested=True)
    parts["weight"] = np.full((4, 1), 0xF0, dtype=np.uint8)
    parts["weight.absmax"] = np.array([7, 7], dtype=np.uint8)
    parts["weight.nested_quant_map"] = np.full(256, 2.0, dtype=np.float32)
    parts["weight.nested_absmax"] = np.array([0.5], dtype=np.float32)
    said = {"quant_type": "nf4", "blocksize": 4, "dtype": "float32", "shape": [2, 4]}
    said |= {"nested_blocksize": 256, "nested_offset": 0.25}
    parts[f"{KEY}nf4"] = np.frombuffer(json.dumps(said).encode(), dtype=np.uint8).copy()
    codes, plain = opened(parts)
    assert plain["model.up.weight"].read().tolist() == [[1.25, -1.25] * 2] * 2
    assert codes.format_words("model.up") == "nf4:g4 (bitsandbytes, double quantization)"
    assert codes.nbytes("model.up") == 4 + 2 + 4 * 16 + 4 * 256 + 4 + len(parts[f"{KEY}nf4"])


def test_the_weight_is_rounded_to_the_type_that_it_had():
    parts = four_bits((4, 32), 32, dtype="bfloat16")
    weight = opened(parts)[1]["model.up.weight"].read()
    assert torch.equal(weight, weight.bfloat16().float())
    assert not torch.equal(weight, torch.from_numpy(bnb_dense(parts, (4, 32), 32, None)))


def test_eight_bits():
    rows = torch.tensor([[127, -64], [1, 0]], dtype=torch.int8)
    parts = {"weight": rows, "SCB": torch.tensor([2.0, 127.0]), "weight_format": torch.tensor(0, dtype=torch.uint8)}
    codes, plain = opened(parts, load_in_4bit=False, load_in_8bit=True)
    weight = plain["model.up.weight"].read()
    assert torch.allclose(weight, torch.tensor([[2.0, -128 / 127], [1.0, 0.0]]), rtol=1e-6)
    assert torch.allclose(codes.read("model.up").dequantize(), weight, rtol=1e-6)
    assert codes.format_words("model.up") == "int8:channel:sym (bitsandbytes)"
    assert codes.nbytes("model.up") == 4 + 8


@pytest.mark.parametrize(
    ("part", "value", "words"),
    [
        (f"{KEY}nf4", np.frombuffer(b"{", dtype=np.uint8).copy(), "damaged quant_state"),
        ("weight.absmax", np.ones(3, dtype=np.float32), "3 scales, but 4 blocks"),
        ("weight", np.zeros((5, 1), dtype=np.uint8), "10 codes for 4 x 32"),
    ],
)
def test_damage_is_named(part, value, words):
    parts = {**four_bits((4, 32), 32), part: value}
    with pytest.raises(ModelError, match=words):
        opened(parts)[0].dense("model.up")
