"""HQQ's stacked rows against a slow oracle, for both axes and every number of bits."""

import numpy as np
import pytest
import torch

from subeight.errors import ModelError
from subeight.models.read.quantized import quantized_tensors
from tests.models.read.linears import stored
from tests.oracles.models_packing import hqq_words

PACKINGS = {8: ("8bit_u8", 1), 4: ("4bit_u8", 2), 3: ("3bit_32", 10), 2: ("2bit_u8", 4), 1: ("1bit_u8", 8)}


def letters(text):
    return torch.tensor([ord(letter) for letter in text], dtype=torch.uint8)


def linear(bits, axis, rows=16, width=32, group=16, dtype="float32"):
    draw = np.random.default_rng(bits)
    count = rows * width
    tall, wide = (count // group, group) if axis == 1 else (group, count // group)
    packing, per = PACKINGS[bits]
    codes = draw.integers(0, 2**bits, (tall, wide))
    each = (tall, 1) if axis == 1 else (1, wide)
    scale, zero = draw.uniform(0.01, 0.1, each).astype(np.float32), draw.uniform(0, 2**bits, each).astype(np.float32)
    words = hqq_words(codes, bits, per)
    parts = {
        "W_q": words if bits == 3 else words.astype(np.uint8),
        "scale": scale,
        "zero": zero,
        "shape": torch.tensor([rows, width]),
        "packing": letters(packing),
        "compute_dtype": letters(f"torch.{dtype}"),
        **{key: torch.tensor(value) for key, value in (("nbits", bits), ("group_size", group), ("axis", axis))},
    }
    return parts, ((codes.astype(np.float32) - zero) * scale).reshape(rows, width)


@pytest.mark.parametrize("bits", [8, 4, 3, 2, 1])
@pytest.mark.parametrize("axis", [0, 1])
def test_the_dense_weight_comes_back(bits, axis):
    parts, expected = linear(bits, axis)
    codes, plain = quantized_tensors({"quant_method": "hqq"}, stored(parts))
    assert np.array_equal(plain["model.up.weight"].read().numpy(), expected)
    assert plain["model.up.weight"].shape == (16, 32)
    assert codes.format_words("model.up").startswith(f"int{bits}:g16:asym (hqq")
    assert codes.nbytes("model.up") == parts["W_q"].nbytes + parts["scale"].nbytes + parts["zero"].nbytes
    with pytest.raises(ModelError, match="no codes in a format of ours"):
        codes.read("model.up")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"packing": letters("5bit")}, "packed as '5bit'"),
        ({"shape": torch.tensor([16, 64])}, "damaged"),
        ({"quant_scale": torch.tensor(1)}, "quantized scales"),
        ({"compute_dtype": letters("float12")}, "float12"),
    ],
)
def test_what_cannot_be_read_is_said(changed, words):
    parts, _ = linear(4, 1)
    with pytest.raises(ModelError, match=words):
        quantized_tensors({"quant_method": "hqq"}, stored({**parts, **changed}))[0].dense("model.up")
