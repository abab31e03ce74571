"""Formats as text, and what they cost in bits."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subeight.errors import FormatError
from subeight.formats import GRIDS, Format, quantize
from tests.formats.samples import WEIGHT_FORMATS, formats, make_weight, weights

INTS = tuple(name for name in GRIDS if name.startswith("int"))
SCALE_TYPES = (torch.bfloat16, torch.float16, torch.float32)


@st.composite
def any_format(draw: st.DrawFn) -> Format:
    grid = draw(st.sampled_from(sorted(GRIDS)))
    if grid in ("mxfp4", "nvfp4"):
        return Format(grid, "group", 32 if grid == "mxfp4" else 16)
    per = draw(st.sampled_from(("group", "channel", "tensor", "token")))
    group = draw(st.integers(1, 4096)) if per == "group" else None
    symmetric = draw(st.booleans()) if grid in INTS else True
    return Format(grid, per, group, symmetric, draw(st.sampled_from(SCALE_TYPES)))


@given(any_format())
def test_text_names_the_format_and_back(format: Format) -> None:
    assert Format.parse(str(format)) == format


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("int4", "int4:g64:sym"),
        ("int4:g64", "int4:g64:sym"),
        ("int4:g128:asym", "int4:g128:asym"),
        ("int4:asym", "int4:g64:asym"),
        ("int8:channel", "int8:channel:sym"),
        ("int8:token", "int8:token:sym"),
        (" INT8:Tensor:sym ", "int8:tensor:sym"),
        ("nf4", "nf4:g64"),
        ("fp8", "fp8"),
        ("fp8:channel", "fp8"),
        ("fp8:token", "fp8:token"),
        ("fp8:g128:fp32", "fp8:g128:fp32"),
        ("fp8_e5m2", "fp8_e5m2"),
        ("int4:g64:sym:bf16", "int4:g64:sym"),
        ("int4:g64:fp16", "int4:g64:sym:fp16"),
        ("mxfp4", "mxfp4"),
        ("nvfp4", "nvfp4"),
    ],
)
def test_what_the_text_leaves_out(text: str, canonical: str) -> None:
    assert str(Format.parse(text)) == canonical


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("int9", "int2"),
        ("itn4:g64", "int4"),
        ("fp4", "mxfp4"),
        ("", "int4:g64:sym"),
        ("int4:g0", "positive"),
        ("int4:group64", "write it like"),
        ("int4:g64:symm", "did you mean sym?"),
        ("int4:g64:chanel", "did you mean channel?"),
        ("int4:g64:g32", "twice"),
        ("int4:sym:asym", "twice"),
        ("nf4:g64:asym", "zero point"),
        ("fp8:asym", "zero point"),
        ("mxfp4:g32", "write mxfp4"),
        ("nvfp4:fp16", "write nvfp4"),
        ("int4:g99999999999999", "write it like"),
        ("q4_k", "Allowed are"),
    ],
)
def test_a_wrong_text_is_one_sentence_with_the_way_out(text: str, names: str) -> None:
    with pytest.raises(FormatError, match=r".+") as caught:
        Format.parse(text)
    assert names in str(caught.value)
    assert "\n" not in str(caught.value)


@given(st.text(max_size=30) | st.from_regex(r"(int|fp|nf)[0-9](:[a-z0-9]{1,6}){0,4}", fullmatch=True))
def test_any_text_is_a_format_or_a_format_error(text: str) -> None:
    try:
        format = Format.parse(text)
    except FormatError:
        return
    assert Format.parse(str(format)) == format


@pytest.mark.parametrize(
    "fields",
    [
        ("int4", "group", None),
        ("int4", "group", -3),
        ("int4", "channel", 64),
        ("int4", "row", None),
        ("int5x", "channel", None),
        ("mxfp4", "group", 16),
        ("nvfp4", "channel", None),
        ("nf4", "channel", None, False),
        ("int4", "channel", None, True, torch.float64),
        ("mxfp4", "group", 32, True, torch.float16),
    ],
)
def test_fields_that_cannot_be(fields: tuple) -> None:
    with pytest.raises(FormatError):
        Format(*fields)


def test_levels_are_the_full_range() -> None:
    assert Format.parse("int4").levels == (-8, 7)
    assert Format.parse("int2:asym").levels == (-2, 1)
    assert Format.parse("int8:channel").levels == (-128, 127)
    with pytest.raises(FormatError):
        _ = Format.parse("nf4").levels


def test_the_last_group_may_be_short() -> None:
    assert Format.parse("int4:g64").groups(172) == 3
    assert Format.parse("int4:g64").groups(128) == 2
    assert Format.parse("int4:channel").groups(172) == 1


@pytest.mark.parametrize(
    ("text", "shape", "bits"),
    [
        ("int4:g64", (1536, 576), 4 + 16 / 64),
        ("int3:g64", (1536, 576), 3 + 16 / 64),
        ("int4:g64:asym", (1536, 576), 4 + (16 + 4) / 64),
        ("int4:g64:sym:fp32", (1536, 576), 4 + 32 / 64),
        ("int8:channel", (10, 100), 8 + 16 / 100),
        ("int8:tensor", (10, 100), 8 + 16 / 1000),
        ("nf4:g64", (4, 128), 4 + 16 / 64),
        ("fp8", (10, 100), 8 + 16 / 100),
        ("mxfp4", (4, 64), 4 + 8 / 32),
        ("nvfp4", (4, 64), 4 + 8 / 16 + 32 / 256),
        # 172 codes of 3 bits take 17 words, and three scales
        ("int3:g64", (2, 172), (17 * 32 + 3 * 16) / 172),
    ],
)
def test_bits_by_hand(text: str, shape: tuple[int, int], bits: float) -> None:
    assert Format.parse(text).bits(shape) == pytest.approx(bits, rel=1e-12)


@given(formats(), weights())
@settings(max_examples=60, deadline=None)
def test_bits_are_the_bytes_that_are_stored(format: Format, weight: torch.Tensor) -> None:
    quantized = quantize(weight, format)
    stored = sum(tensor.nbytes for tensor in quantized.stored().values())
    assert quantized.nbytes == stored
    assert format.bits(quantized.shape) * weight.numel() == pytest.approx(8 * stored, rel=1e-12)


@pytest.mark.parametrize("text", WEIGHT_FORMATS)
def test_stored_scales_lose_nothing(text: str) -> None:
    quantized = quantize(make_weight(3), Format.parse(text))
    scales = quantized.stored()["scales"]
    assert scales.dtype == quantized.format.scale_dtype
    assert torch.equal(scales.to(torch.float32), quantized.scales)
