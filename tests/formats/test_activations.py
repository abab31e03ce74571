"""Activations rounded and back: shapes, types, scales per token."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from subeight.errors import FormatError
from subeight.formats import Format, Scales, fake_quantize, find_scales, quantize
from tests.formats.samples import make_weight

ACTIVATIONS = ["int8:token", "int8:token:asym", "int4:g64", "int8:tensor", "fp8:token", "fp8:g128", "mxfp4", "nvfp4"]


@given(st.sampled_from(ACTIVATIONS), st.integers(0, 2**20), st.sampled_from([(12,), (3, 4), (1, 12), (2, 2, 3)]))
@settings(max_examples=60, deadline=None)
def test_as_the_weight_of_these_rows(text: str, seed: int, lead: tuple[int, ...]) -> None:
    # float32 activations take float32 scales, so the weight's format is told to
    x = make_weight(seed, rows=12)
    fixed = text in ("mxfp4", "nvfp4")
    as_weight = Format.parse(text if fixed else f"{text}:fp32")
    found = fake_quantize(x.view(*lead, 172), Format.parse(text))
    assert found.shape == (*lead, 172)
    assert torch.equal(found.view(12, 172), quantize(x, as_weight).dequantize())


@pytest.mark.parametrize("text", ACTIVATIONS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_shape_and_type_stay_and_the_input_too(text: str, dtype: torch.dtype) -> None:
    x = make_weight(2, rows=6).to(dtype).view(2, 3, 172)
    before = x.clone()
    found = fake_quantize(x, Format.parse(text))
    assert found.dtype == dtype and found.shape == x.shape
    assert torch.equal(x, before)
    assert not torch.equal(found, x)
    assert float((found - x).float().norm() / x.float().norm()) < 0.25


def test_a_tokens_scale_depends_on_no_other_token() -> None:
    x = make_weight(3, rows=6)
    louder = x.clone()
    louder[0] *= 1000
    format = Format.parse("int8:token")
    assert torch.equal(fake_quantize(x, format)[1:], fake_quantize(louder, format)[1:])
    assert not torch.equal(
        fake_quantize(x, Format.parse("int8:tensor"))[1:], fake_quantize(louder, Format.parse("int8:tensor"))[1:]
    )


def test_no_tokens_and_silent_tokens() -> None:
    format = Format.parse("int8:token")
    assert fake_quantize(torch.zeros(0, 64), format).shape == (0, 64)
    assert torch.equal(fake_quantize(torch.zeros(3, 64), format), torch.zeros(3, 64))


@pytest.mark.parametrize("text", ACTIVATIONS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_nan_and_inf_show_in_the_output(text: str, bad: float) -> None:
    x = make_weight(5)
    x[2, 3] = bad
    assert not bool(torch.isfinite(fake_quantize(x, Format.parse(text))[2]).all())


def test_static_scales_clip_what_is_larger() -> None:
    format = Format.parse("int8:tensor:sym:fp32")
    calm = make_weight(4)
    scales = find_scales(calm, format)
    loud = calm * 10
    found = fake_quantize(loud, format, scales)
    assert float(found.abs().max()) <= 128 * float(scales.scales)
    assert torch.equal(fake_quantize(calm, format, scales), quantize(calm, format).dequantize())
    shifted = Scales(scales.scales, torch.tensor([[5]], dtype=torch.int8))
    affine = Format.parse("int8:tensor:asym:fp32")
    assert torch.equal(fake_quantize(loud, affine, shifted), quantize(loud, affine, shifted).dequantize())


def test_a_scale_per_channel_is_no_format_of_activations() -> None:
    with pytest.raises(FormatError, match="token"):
        fake_quantize(torch.ones(2, 4), Format.parse("int8:channel"))
