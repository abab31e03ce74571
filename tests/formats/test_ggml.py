"""Our codes in ggml's blocks: the gguf package, which knows nothing of us, dequantizes them to our very numbers."""

import gguf
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subeight.errors import FormatError
from subeight.formats import Format, QTensor, quantize
from subeight.formats.ggml import BITS, block_bytes, block_type, block_types, unsayable_blocks

WIDTH = 512


def read(data: torch.Tensor, name: str) -> torch.Tensor:
    return torch.from_numpy(gguf.dequantize(data.numpy(), gguf.GGMLQuantizationType[name]))


def drawn(text: str, seed: int, width: int = WIDTH, spread: float = 0.05) -> QTensor:
    """A quantized matrix with every code of its grid, an all-zero group and, where it may, negative scales."""
    format = Format.parse(text)
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(4, width, generator=generator) * spread
    weight[2, : width // 2] = 0
    made = quantize(weight, format)
    if format.grid.startswith("int"):
        low, high = format.levels
        made.codes = torch.randint(low, high + 1, made.codes.shape, generator=generator).to(torch.int8)
        if made.zeros is not None:
            made.zeros = torch.randint(low, high + 1, made.zeros.shape, generator=generator).to(torch.int8)
        elif format.code_bits < 8:
            made.scales = made.scales * torch.where(torch.rand(made.scales.shape, generator=generator) < 0.5, -1.0, 1.0)
    return made


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("int2:g32", "Q4_0"),
        ("int2:g32:asym", "Q4_0"),
        ("int2:g256", "Q2_K"),
        ("int2:channel:asym", "Q2_K"),
        ("int3:g64", "Q4_0"),
        ("int3:g64:asym", "Q4_0"),
        ("int3:channel", "Q3_K"),
        ("int4:g32:fp16", "Q4_0"),
        ("int4:g128", "Q4_0"),
        ("int4:tensor", "Q4_0"),
        ("int4:g32:asym:fp16", "Q5_0"),
        ("int4:g256:asym:fp16", "Q4_K"),
        ("int5:g32", "Q5_0"),
        ("int5:g32:asym", "Q8_0"),
        ("int5:channel:asym", "Q5_K"),
        ("int6:g64", "Q8_0"),
        ("int6:g512:fp16", "Q6_K"),
        ("int6:g256:asym", "Q8_0"),
        ("int7:g32:asym", "Q8_0"),
        ("int8:g32:fp16", "Q8_0"),
        ("mxfp4", "MXFP4"),
    ],
)
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([1e-3, 0.05, 3.0]))
def test_the_gguf_package_reads_the_very_numbers(text: str, name: str, seed: int, spread: float) -> None:
    weight = drawn(text, seed, spread=spread)
    assert block_type(weight) == name
    data = block_bytes(weight, name)
    assert data.dtype == torch.uint8
    assert 8 * data.shape[1] / WIDTH == BITS[name]
    assert torch.equal(read(data, name), weight.dequantize())


@pytest.mark.parametrize(("bits", "name"), [(4, "Q4_1"), (5, "Q5_1")])
@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31))
def test_minima_where_they_are_fp16_numbers(bits: int, name: str, seed: int) -> None:
    weight = drawn(f"int{bits}:g32:asym:fp16", seed)
    weight.scales = weight.scales.bfloat16().float()
    half = 2 ** (bits - 1)
    few = torch.tensor([0, 1, 2, 3, 4, 6, 7, half], dtype=torch.int8)  # times eight bits: no more than eleven
    weight.zeros = few[weight.zeros.long() % len(few)] - half
    weight.codes[0, :2] = torch.tensor([half - 1, -half], dtype=torch.int8)
    weight.zeros[0, 0] = -half  # beyond what the smaller types without minima hold
    assert block_type(weight) == name
    assert torch.equal(read(block_bytes(weight, name), name), weight.dequantize())


def test_a_minimum_that_is_no_fp16_number_takes_the_next_type() -> None:
    weight = drawn("int4:g32:asym:fp16", 0)
    weight.scales[:] = 1 + 2**-10
    weight.zeros[:] = -8 + 11
    weight.codes[:] = torch.arange(-8, 8, dtype=torch.int8).repeat(4, WIDTH // 16)
    assert block_type(weight) == "Q5_0"
    weight.scales[:] = 1
    assert block_type(weight) == "Q4_1"


def test_golden_bytes() -> None:
    # written down from ggml-common.h: d = 1.5 is 0x3e00; column j lies with column j + 16 in one byte, low and high
    codes = torch.tensor([*range(-8, 8), *range(7, -9, -1)], dtype=torch.int8)[None]
    four = QTensor(Format.parse("int4:g32:fp16"), (1, 32), codes, torch.tensor([[1.5]]))
    assert bytes(block_bytes(four, "Q4_0")[0].tolist()).hex() == "003e" + "f0e1d2c3b4a5968778695a4b3c2d1e0f"
    eight = QTensor(Format.parse("int8:g32:fp16"), (1, 32), codes * 16, torch.tensor([[-1.5]]))
    plain = "".join(f"{code * 16 % 256:02x}" for code in [*range(-8, 8), *range(7, -9, -1)])
    assert bytes(block_bytes(eight, "Q8_0")[0].tolist()).hex() == "00be" + plain
    five = QTensor(Format.parse("int5:g32:fp16"), (1, 32), codes * 2, torch.tensor([[1.5]]))
    nibbles = "".join(
        f"{(2 * a + 16) % 16 | (2 * b + 16) % 16 << 4:02x}"
        for a, b in zip(codes[0, :16].tolist(), codes[0, 16:].tolist(), strict=True)
    )
    assert bytes(block_bytes(five, "Q5_0")[0].tolist()).hex() == "003e" + "00ffff00" + nibbles


def test_an_error_in_the_order_of_nibbles_would_be_seen() -> None:
    weight = drawn("int4:g32:fp16", 0)
    wrong = QTensor(weight.format, weight.shape, weight.codes.roll(1, 1), weight.scales)
    assert not torch.equal(read(block_bytes(wrong, "Q4_0"), "Q4_0"), weight.dequantize())


@pytest.mark.parametrize(
    ("text", "width", "words"),
    [
        ("nf4:g32", 64, "no type of ggml has; int4:g32:sym:fp16 would do"),
        ("fp8", 64, "int8:g32:sym:fp16 would do"),
        ("nvfp4", 64, "int4:g32:sym:fp16 would do"),
        ("int4:g48", 96, "groups of 48 columns.*int4:g32:sym:fp16 would do"),
        ("int4:g32", 172, "172 columns are no multiple of 32.*keep: true"),
        ("int4:g32:asym:fp32", 64, "fp32 scales.*int4:g32:asym:fp16 would do"),
        ("int8:g32:asym", 64, "255 steps from its zero point.*int8:g32:sym:fp16"),
        ("int4:g32:had", 64, "turns its columns.*int4:g32:sym would do"),
    ],
)
def test_what_no_type_holds_names_the_nearest_that_is_held(text: str, width: int, words: str) -> None:
    format = Format.parse(text)
    assert block_types(format, width) == ()
    reason = unsayable_blocks(format, width)
    assert reason is not None
    with pytest.raises(FormatError, match=words):
        block_type(quantize(torch.randn(2, width, generator=torch.Generator().manual_seed(0)), format))


def test_scales_beyond_fp16_are_refused() -> None:
    weight = drawn("int4:g32", 0)
    weight.scales[1, 0] = 2.0**-30
    with pytest.raises(FormatError, match=r"1 rows .* no fp16 numbers.*int4:g32:sym:fp16 would do"):
        block_type(weight)
    weight.codes[1, :32] = 0
    assert torch.equal(read(block_bytes(weight, block_type(weight)), "Q4_0"), weight.dequantize())


@pytest.mark.parametrize("name", sorted(BITS))
def test_bits_are_those_of_the_package(name: str) -> None:
    columns, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[name]]
    assert BITS[name] == 8 * size / columns
    assert np.isfinite(BITS[name])
