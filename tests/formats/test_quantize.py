"""Scales, codes and dequantized weights against plain Python, code by code; and what holds for every format."""

import pytest
import torch
from hypothesis import given, settings

from subeight.errors import FormatError
from subeight.formats import Format, QTensor, Scales, find_scales, quantize, quantize_columns
from tests.formats.samples import WEIGHT_FORMATS, formats, make_weight, weights
from tests.oracles.formats_numbers import f32, grid_values, nearest_distance, quantize_fp4, quantize_int, spans

TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
INT_TEXTS = [text for text in WEIGHT_FORMATS if text.startswith("int")]


@pytest.mark.parametrize("text", INT_TEXTS)
@pytest.mark.parametrize("width", [64, 172])
def test_int_codes_scales_and_zeros_are_the_oracles(text: str, width: int) -> None:
    format = Format.parse(text)
    weight = make_weight(7, width=width)
    quantized = quantize(weight, format)
    dequantized = quantized.dequantize().tolist()
    rows = [weight.flatten().tolist()] if format.per == "tensor" else weight.tolist()
    codes = quantized.codes.flatten().tolist()
    for i, row in enumerate(rows):
        for j, span in enumerate(spans(len(row), format.group)):
            group = [row[k] for k in span]
            expected, scale, zero = quantize_int(group, format.code_bits, format.symmetric, TYPES[format.scale_dtype])
            assert quantized.scales[i, j].item() == scale
            assert (0 if quantized.zeros is None else quantized.zeros[i, j].item()) == zero
            places = [i * len(row) + k for k in span]
            assert [codes[p] for p in places] == expected
            assert [dequantized[p // width][p % width] for p in places] == [
                f32((code - zero) * scale) for code in expected
            ]


@pytest.mark.parametrize("width", [64, 100, 172])
@pytest.mark.parametrize("text", ["mxfp4", "nvfp4"])
def test_fp4_scales_and_weights_are_the_oracles(text: str, width: int) -> None:
    format = Format.parse(text)
    weight = make_weight(11, width=width)
    quantized = quantize(weight, format)
    dequantized = quantized.dequantize().tolist()
    second = None
    if text == "nvfp4":
        # torch divides a number by a tensor through the reciprocal, as does the peer
        second = f32(f32(1 / weight.abs().max().item()) * 448 * 6)
        assert quantized.global_scale.tolist() == [second]
    for i, row in enumerate(weight.tolist()):
        for j, span in enumerate(spans(width, format.group)):
            kind = "e8m0" if second is None else "e4m3"
            expected, scale = quantize_fp4([row[k] for k in span], kind, second)
            assert quantized.scales[i, j].item() == scale
            assert [dequantized[i][k] for k in span] == expected


@given(formats(), weights())
@settings(max_examples=60, deadline=None)
def test_every_weight_goes_to_the_nearest_number_of_its_grid(format: Format, weight: torch.Tensor) -> None:
    quantized = quantize(weight, format)
    scale, zero = Scales(quantized.scales, quantized.zeros, quantized.global_scale).expand(format, weight.shape[1])
    scaled = (weight.double() / scale.double() + (0 if zero is None else zero)).flatten()[::7]
    values = grid_values(format.grid)
    missed = ((quantized.dequantize() - weight).double() / scale.double()).abs().flatten()[::7]
    for x, miss in zip(scaled.tolist(), missed.tolist(), strict=True):
        # float32 carries 24 bits of the scaled weight
        assert miss <= nearest_distance(x, values) + 1e-6 * max(1.0, abs(x))


@given(weights())
@settings(max_examples=40, deadline=None)
def test_int_error_is_at_most_half_a_step(weight: torch.Tensor) -> None:
    for bits in range(2, 9):
        for kind in ("sym", "asym"):
            for scale_type, loss in (("fp32", 1e-4), ("bf16", 2**bits * 2**-8)):
                format = Format.parse(f"int{bits}:g64:{kind}:{scale_type}")
                quantized = quantize(weight, format)
                scale, _ = Scales(quantized.scales, quantized.zeros).expand(format, weight.shape[1])
                steps = (quantized.dequantize() - weight).abs() / scale
                # a rounded scale falls short of the range by up to `loss` steps
                assert float(steps.max()) <= 0.5 + loss


@given(formats(), weights())
@settings(max_examples=60, deadline=None)
def test_codes_lie_on_the_grid_and_scales_are_positive(format: Format, weight: torch.Tensor) -> None:
    quantized = quantize(weight, format)
    assert quantized.codes.shape == weight.shape
    assert quantized.codes.dtype == format.values.code_dtype
    assert bool((quantized.scales > 0).all()) and bool(torch.isfinite(quantized.scales).all())
    assert bool(torch.isfinite(quantized.dequantize()).all())
    if format.grid.startswith("int"):
        low, high = format.levels
        assert low <= int(quantized.codes.min()) and int(quantized.codes.max()) <= high
    elif format.code_bits == 4:
        assert int(quantized.codes.max()) <= 15


@given(formats(), weights())
@settings(max_examples=60, deadline=None)
def test_columns_round_as_the_whole_does(format: Format, weight: torch.Tensor) -> None:
    whole = quantize(weight, format)
    scales, zeros = Scales(whole.scales, whole.zeros).expand(format, weight.shape[1])
    column = weight.shape[1] // 2
    one = slice(column, column + 1)
    codes, values = quantize_columns(
        weight[:, one],
        format,
        scales[:, column],
        None if zeros is None else zeros[:, column],
        whole.global_scale,
    )
    assert torch.equal(codes.float(), whole.codes[:, one].float())
    assert torch.equal(values, whole.dequantize()[:, one])
    many, together = quantize_columns(weight, format, scales, zeros, whole.global_scale)
    assert torch.equal(many.float(), whole.codes.float())
    assert torch.equal(together, whole.dequantize())


@pytest.mark.parametrize("text", WEIGHT_FORMATS)
def test_rounding_twice_changes_nothing(text: str) -> None:
    format = Format.parse(text)
    once = quantize(make_weight(5), format)
    scales = Scales(once.scales, once.zeros, once.global_scale)
    twice = quantize(once.dequantize(), format, scales)
    assert torch.equal(twice.dequantize(), once.dequantize())


@pytest.mark.parametrize("text", WEIGHT_FORMATS)
def test_zeros_stay_zeros(text: str) -> None:
    quantized = quantize(torch.zeros(3, 172), Format.parse(text))
    assert torch.equal(quantized.scales, torch.ones_like(quantized.scales))
    assert torch.equal(quantized.dequantize(), torch.zeros(3, 172))


@pytest.mark.parametrize("text", WEIGHT_FORMATS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_any_float_type_of_weight(text: str, dtype: torch.dtype) -> None:
    weight = make_weight(9).to(dtype)
    format = Format.parse(text)
    assert torch.equal(quantize(weight, format).dequantize(), quantize(weight.float(), format).dequantize())
    found = quantize(weight, format).dequantize(torch.bfloat16)
    assert torch.equal(found, quantize(weight, format).dequantize().to(torch.bfloat16))


@pytest.mark.parametrize("text", WEIGHT_FORMATS)
def test_rows_are_rows(text: str) -> None:
    quantized = quantize(make_weight(13), Format.parse(text))
    part = quantized.rows(1, 4)
    assert part.shape == (3, 172)
    assert torch.equal(part.dequantize(), quantized.dequantize()[1:4])
    assert isinstance(quantized.to("cpu"), QTensor)
    assert torch.equal(quantized.to("cpu").dequantize(), quantized.dequantize())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("text", WEIGHT_FORMATS)
def test_nan_and_inf_are_refused(text: str, bad: float) -> None:
    format = Format.parse(text)
    weight = make_weight(1)
    scales = find_scales(weight, format)
    weight[2, 171] = bad
    with pytest.raises(FormatError, match="NaN or Inf"):
        quantize(weight, format)
    with pytest.raises(FormatError, match="NaN or Inf"):
        quantize(weight, format, scales)


def test_tiny_weights_keep_a_positive_scale() -> None:
    weight = torch.full((1, 64), 1e-8)
    assert quantize(weight, Format.parse("int4:g64:sym:fp16")).scales.item() == 2.0**-24
    # a tiny group beside a large one: fp8 scales would vanish
    pair = torch.cat([torch.full((1, 16), 1e-6), torch.full((1, 16), 1.0)], dim=1)
    assert quantize(pair, Format.parse("nvfp4")).scales[0, 0].item() == 2.0**-9


def test_what_does_not_fit_is_refused() -> None:
    weight = make_weight(1)
    with pytest.raises(FormatError, match="too large"):
        quantize(weight * 1e9, Format.parse("int4:g64:sym:fp16"))
    with pytest.raises(FormatError, match="matrix"):
        find_scales(weight[0], Format.parse("int4"))
    with pytest.raises(FormatError, match="matrix"):
        find_scales(weight[:0], Format.parse("int4"))
    with pytest.raises(FormatError, match="absmax, minmax, mse"):
        find_scales(weight, Format.parse("int4"), search="best")
    with pytest.raises(FormatError, match="do not fit"):
        quantize(weight, Format.parse("int4:g64"), Scales(torch.ones(5, 2)))
