"""Bit by bit against compressed-tensors: its scales, its codes, its dequantized weights and its activations."""

import pytest
import torch
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import dequantize, fake_quantize, quantize
from compressed_tensors.quantization.quant_args import round_to_quantized_type_dtype
from compressed_tensors.quantization.utils import (
    calculate_qparams,
    compute_dynamic_scales_and_zp,
    generate_gparam,
)

from subeight import formats
from subeight.formats import Format
from tests.formats.samples import make_weight

DTYPES = (torch.bfloat16, torch.float16, torch.float32)
NAMES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


def _weight(seed: int, dtype: torch.dtype) -> torch.Tensor:
    weight = make_weight(seed, rows=12, width=192)
    # it gives all-zero groups another scale; their codes are zero either way
    weight[1, :96] = 0.01
    weight[3] *= 1e4
    return weight.to(dtype)


def _args(format: Format, **more: object) -> QuantizationArgs:
    strategy = "tensor" if format.per == "tensor" else format.per
    return QuantizationArgs(
        num_bits=format.code_bits,
        type="int" if format.grid.startswith("int") else "float",
        symmetric=format.symmetric,
        strategy=strategy,
        group_size=format.group,
        **more,
    )


def _their_parameters(
    weight: torch.Tensor, format: Format, args: QuantizationArgs
) -> tuple[torch.Tensor, torch.Tensor]:
    blocks = weight.unflatten(1, (-1, format.group or weight.shape[1]))
    low, high = blocks.amin(-1), blocks.amax(-1)
    return calculate_qparams(low, high, args)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("per", ["g32", "g64", "channel"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_symmetric_ints(bits: int, per: str, dtype: torch.dtype) -> None:
    format = Format.parse(f"int{bits}:{per}:sym:{NAMES[dtype]}")
    weight, args = _weight(bits, dtype), _args(format)
    ours = formats.quantize(weight, format)
    scale, zero = _their_parameters(weight, format, args)
    assert torch.equal(ours.scales.to(dtype), scale)
    assert torch.equal(ours.scales, scale.float())
    codes = quantize(weight.float(), scale.float(), zero, args, dtype=torch.int8)
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.dequantize(dtype), dequantize(codes, scale, None, args))
    assert torch.equal(ours.dequantize(), dequantize(codes, scale.float(), None, args))


@pytest.mark.parametrize("per", ["g64", "channel"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_float32_weights_with_rounded_scales(bits: int, per: str) -> None:
    format = Format.parse(f"int{bits}:{per}")
    weight, args = _weight(bits, torch.float32), _args(format, scale_dtype=torch.bfloat16)
    scale, zero = _their_parameters(weight, format, args)
    ours = formats.quantize(weight, format)
    assert torch.equal(ours.scales, scale)
    assert torch.equal(ours.codes, quantize(weight, scale, zero, args, dtype=torch.int8))


@pytest.mark.parametrize("per", ["g64", "channel"])
@pytest.mark.parametrize("bits", range(2, 9))
def test_affine_ints(bits: int, per: str) -> None:
    format = Format.parse(f"int{bits}:{per}:asym:fp32")
    weight, args = _weight(bits, torch.float32), _args(format)
    scale, zero = _their_parameters(weight, format, args)
    ours = formats.quantize(weight, format)
    assert torch.equal(ours.scales, scale)
    assert torch.equal(ours.zeros, zero)
    codes = quantize(weight, scale, zero, args, dtype=torch.int8)
    assert torch.equal(ours.codes, codes)
    assert torch.equal(ours.dequantize(), dequantize(codes, scale, zero, args))


@pytest.mark.parametrize("text", ["int4:g64:asym", "int8:channel:asym"])
def test_affine_weights_dequantized_in_bf16(text: str) -> None:
    format = Format.parse(text)
    ours = formats.quantize(_weight(2, torch.float32), format)
    theirs = dequantize(ours.codes, ours.scales.bfloat16(), ours.zeros, _args(format))
    assert torch.equal(ours.dequantize(torch.bfloat16), theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("per", ["channel", "tensor"])
def test_fp8(per: str, dtype: torch.dtype) -> None:
    format = Format.parse(f"fp8:{per}:{NAMES[dtype]}")
    weight, args = _weight(3, dtype), _args(format)
    low, high = (
        torch.aminmax(weight) if per == "tensor" else (weight.amin(-1, keepdim=True), weight.amax(-1, keepdim=True))
    )
    scale, zero = calculate_qparams(low, high, args)
    ours = formats.quantize(weight, format)
    assert torch.equal(ours.scales.flatten(), scale.float().flatten())
    codes = quantize(weight.float(), scale.float(), zero, args, dtype=torch.float8_e4m3fn)
    assert torch.equal(ours.codes.float(), codes.float())
    assert torch.equal(ours.dequantize(), dequantize(codes, scale.float(), None, args))


def test_nvfp4() -> None:
    weight = _weight(4, torch.float32)
    args = QuantizationArgs(
        num_bits=4, type="float", strategy="tensor_group", group_size=16, scale_dtype=torch.float8_e4m3fn
    )
    blocks = weight.unflatten(1, (-1, 16))
    second = generate_gparam(weight.amin(), weight.amax())
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args, global_scale=second)
    ours = formats.quantize(weight, Format.parse("nvfp4"))
    assert torch.equal(ours.global_scale, second)
    # it lifts scales that vanish in fp8 to 1/8; ours to the smallest fp8 number
    kept = (scale != 0.125) & (ours.scales > 2.0**-9)
    assert kept.float().mean() > 0.5
    assert torch.equal(ours.scales[kept], scale[kept])
    theirs = fake_quantize(weight, ours.scales, zero, args, global_scale=second)
    assert torch.equal(ours.dequantize(), theirs)


def test_mxfp4_rounds_scales_down_as_the_standard_says() -> None:
    weight = _weight(5, torch.float32)
    args = QuantizationArgs(num_bits=4, type="float", strategy="group", group_size=32, scale_dtype=torch.uint8)
    blocks = weight.unflatten(1, (-1, 32))
    scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
    ours = formats.quantize(weight, Format.parse("mxfp4"))
    mantissa, _ = torch.frexp(blocks.abs().amax(-1))
    # it rounds up from 7/8 of the next power of two, where the standard still rounds down
    up = mantissa >= 0.875
    assert 0 < int(up.sum()) < up.numel()
    assert torch.equal(ours.scales[~up], scale[~up])
    assert torch.equal(ours.scales[up] * 2, scale[up])
    theirs = fake_quantize(weight, ours.scales, zero, args)
    assert torch.equal(ours.dequantize(), theirs)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("text", ["int8:token", "int4:token", "int8:tensor", "fp8:token", "fp8:tensor", "int8:g64"])
def test_activations(text: str, dtype: torch.dtype) -> None:
    format, x = Format.parse(text), _weight(6, dtype).view(3, 4, 192)
    args = _args(format, dynamic=True)
    scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Module())
    assert torch.equal(formats.fake_quantize(x, format), fake_quantize(x, scale, zero, args))


def test_affine_activations() -> None:
    format, x = Format.parse("int8:token:asym"), _weight(6, torch.float32).view(3, 4, 192)
    args = _args(format, dynamic=True)
    scale, zero = compute_dynamic_scales_and_zp(x, args, torch.nn.Module())
    assert torch.equal(formats.fake_quantize(x, format), fake_quantize(x, scale, zero, args))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_static_activations(dtype: torch.dtype) -> None:
    format, x = Format.parse(f"int8:tensor:sym:{NAMES[dtype]}"), _weight(6, dtype).view(3, 4, 192)
    scale = round_to_quantized_type_dtype(x.float().abs().amax().view(1) / 200, dtype)
    scales = formats.Scales(scale.float().view(1, 1))
    theirs = fake_quantize(x, scale.to(dtype), None, _args(format))
    assert torch.equal(formats.fake_quantize(x, format, scales), theirs)
