"""Number formats in plain Python: one number at a time, grids decoded from their bits, IEEE rounding by `struct`.

Slow and obvious. A quotient or product of two float32 numbers, taken in float64 and rounded once, is the float32 result
exactly, so the fast code must give these very codes and scales.
"""

import math
import struct
from statistics import NormalDist

Matrix = list[list[float]]


def f32(x: float) -> float:
    """Rounded to float32."""
    return struct.unpack("f", struct.pack("f", x))[0]


def f16(x: float) -> float:
    """Rounded to float16."""
    return struct.unpack("e", struct.pack("e", x))[0]


def bf16(x: float) -> float:
    """A float32 rounded to bfloat16: to nearest, ties to even."""
    bits = struct.unpack("I", struct.pack("f", x))[0]
    bits += 0x7FFF + ((bits >> 16) & 1)
    return struct.unpack("f", struct.pack("I", bits & 0xFFFF0000))[0]


def small_float(exponent_bits: int, mantissa_bits: int, reserved: str) -> list[float]:
    """Every value of a sign-exponent-mantissa type by its code; `reserved` says which codes are no numbers."""
    bias = 2 ** (exponent_bits - 1) - 1
    values = []
    for code in range(2 ** (1 + exponent_bits + mantissa_bits)):
        mantissa = code & (2**mantissa_bits - 1)
        exponent = (code >> mantissa_bits) & (2**exponent_bits - 1)
        sign = -1.0 if code >> (exponent_bits + mantissa_bits) else 1.0
        last = exponent == 2**exponent_bits - 1
        if last and (reserved == "exponent" or (reserved == "all ones" and mantissa == 2**mantissa_bits - 1)):
            values.append(math.nan)
        elif exponent == 0:
            values.append(sign * mantissa * 2.0 ** (1 - bias - mantissa_bits))
        else:
            values.append(sign * (1 + mantissa / 2**mantissa_bits) * 2.0 ** (exponent - bias))
    return values


FP4 = small_float(2, 1, "none")
E4M3 = small_float(4, 3, "all ones")
E5M2 = small_float(5, 2, "exponent")


def nf4() -> list[float]:
    """QLoRA, appendix E: eight quantiles of the normal distribution above zero, seven below, each side to 1."""
    offset = 0.9677083  # the paper's (1 - 1/30 + 1 - 1/32) / 2 as bitsandbytes writes it
    quantile = NormalDist().inv_cdf
    above = [quantile(offset + (0.5 - offset) * i / 8) for i in range(8)]
    below = [-quantile(offset + (0.5 - offset) * i / 7) for i in range(7)]
    largest = max(above)
    return sorted(x / largest for x in [*above, 0.0, *below])


def grid_values(name: str) -> list[float]:
    """Every number of a grid."""
    if name.startswith("int"):
        half = 2 ** (int(name[3:]) - 1)
        return [float(i) for i in range(-half, half)]
    found = {"nf4": nf4(), "fp8": E4M3, "fp8_e5m2": E5M2, "mxfp4": FP4, "nvfp4": FP4}[name]
    return [value for value in found if not math.isnan(value)]


def nearest_distance(x: float, values: list[float]) -> float:
    """How far the nearest grid number is."""
    return min(abs(x - value) for value in values)


def round_to(x: float, by_code: list[float]) -> float:
    """To the nearest number of a small float type, ties to the even code, what is too large to the largest."""
    known = [(code, value) for code, value in enumerate(by_code) if value >= 0 and not math.isnan(value)]
    size = min(abs(x), max(value for _, value in known))
    return math.copysign(min((abs(size - value), code % 2, value) for code, value in known)[2], x)


def spans(width: int, group: int | None) -> list[range]:
    """The columns of each group of a row."""
    size = group or width
    return [range(start, min(start + size, width)) for start in range(0, width, size)]


def stored_scale(ideal: float, kind: str) -> float:
    """An ideal scale as its type holds it; 1 for an all-zero group."""
    if ideal == 0:
        return 1.0
    if kind == "e8m0":
        return 2.0 ** (math.frexp(ideal)[1] - 1)
    if kind == "e4m3":
        return max(round_to(min(ideal, 448.0), E4M3), 2.0**-9)
    rounded = {"bf16": bf16, "fp16": f16, "fp32": f32}[kind](ideal)
    return max(rounded, 2.0**-24 if kind == "fp16" else 2.0**-126)


def quantize_int(row: list[float], bits: int, symmetric: bool, kind: str) -> tuple[list[int], float, int]:
    """Codes, scale and zero point of one group."""
    first, last = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    low, high = min(0.0, *row), max(0.0, *row)
    if symmetric:
        scale, zero = stored_scale(f32(max(-low, high) / ((last - first) / 2)), kind), 0
    else:
        scale = stored_scale(f32(f32(high - low) / (last - first)), kind)
        zero = round(min(max(f32(first - f32(low / scale)), first), last))
    codes = [round(min(max(f32(f32(x / scale) + zero), first), last)) for x in row]
    return codes, scale, zero


def quantize_fp4(row: list[float], kind: str, global_scale: float | None = None) -> tuple[list[float], float]:
    """Dequantized values and stored scale of one group of mxfp4 (no global scale) or nvfp4."""
    absmax = max(abs(x) for x in row)
    if global_scale is None:
        scale = effective = stored_scale(absmax / 4, kind)
    else:
        scale = stored_scale(f32(f32(absmax / 6) * global_scale), kind)
        effective = f32(scale / global_scale)
    return [f32(round_to(f32(x / effective), FP4) * effective) for x in row], scale


def squared_error(row: list[float], scale: float, zero: int, first: int, last: int, worth: list[float]) -> float:
    """Weighted squared error of one group of an int format."""
    total = 0.0
    for x, w in zip(row, worth, strict=True):
        code = min(max(round(x / scale + zero), first), last)
        total += w * (x - (code - zero) * scale) ** 2
    return total


def best_int_error(row: list[float], bits: int, symmetric: bool, worth: list[float], steps: int) -> float:
    """The least error of one group over a dense row of unrounded scales (affine: times every zero point)."""
    first, last = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    low, high = min(0.0, *row), max(0.0, *row)
    full = max(-low, high) / (last + 0.5) if symmetric else (high - low) / (last - first)
    zeros = [0] if symmetric else range(first, last + 1)
    return min(
        squared_error(row, full * ratio, zero, first, last, worth)
        for ratio in (0.2 + 1.4 * i / steps for i in range(steps + 1))
        for zero in zeros
    )


def pack_bits(codes: list[int], bits: int) -> list[int]:
    """Unsigned codes of one row as signed 32-bit words: one long binary number, cut."""
    number = sum(code << (i * bits) for i, code in enumerate(codes))
    words = math.ceil(len(codes) * bits / 32)
    unsigned = [(number >> (32 * i)) & 0xFFFFFFFF for i in range(words)]
    return [word - 2**32 if word >= 2**31 else word for word in unsigned]
