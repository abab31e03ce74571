"""Kernel probes: fixed inputs through each kernel that an evaluation uses, and how far from float64 the result is.

The inputs come from integers, so they are the same bits on every machine. A digest (hash, error, a few values) is small
enough for a lock, and tells three things apart: the same bits, another rounding within the kernel's float64 error, and
a wrong result.
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers.activations import ACT2FN

from subeight.errors import ModelError
from subeight.evals.passes import Computing
from subeight.formats import Format, QTensor, pack, unpack
from subeight.models.model import Model
from subeight.models.precision import exact_products

Relation = Literal["same", "rounding", "wrong", "missing"]
TOKENS = 37  # odd, so that kernels meet their tail
_SHAPES = 8  # distinct shapes of linears that are probed, the largest first
_LARGEST = 1 << 22  # weights of one probed matrix; rows beyond are left out
_VALUES = 4


@dataclass(frozen=True)
class Probe:
    """What one kernel made of its fixed input: `error` is relative to the size of the sums, `bound` what is allowed."""

    name: str
    sha256: str
    error: float
    bound: float
    values: tuple[float, ...]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a lock and in a record."""
        return {
            "name": self.name,
            "sha256": self.sha256,
            "error": _short(self.error),
            "bound": _short(self.bound),
            "values": [_short(value) for value in self.values],
        }


def probe_kernels(baseline: Model, candidate: Model, computing: Computing) -> list[Probe]:
    """Runs every probe: linears at the model's shapes, attention, norm, softmax, activation, head, unpacking."""
    with torch.no_grad():
        return list(_probes(baseline, candidate, computing))


def compare_probes(before: Sequence[Mapping[str, Any]], after: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Every probe of today beside the locked one of its name: `same`, `rounding`, `wrong` or `missing`."""
    locked = {str(probe["name"]): probe for probe in before}
    today = {str(probe["name"]): probe for probe in after}
    return [
        {
            "name": name,
            "relation": relation(locked.get(name), today.get(name)),
            "error_before": (locked.get(name) or {}).get("error"),
            "error_after": (today.get(name) or {}).get("error"),
            "bound": (today.get(name) or locked[name])["bound"],
        }
        for name in dict.fromkeys([*locked, *today])
    ]


def relation(before: Mapping[str, Any] | None, after: Mapping[str, Any] | None) -> Relation:
    """How a probe's result relates to the locked one; a wrong result is wrong also where it always was."""
    if after is not None and not after["error"] <= after["bound"]:
        return "wrong"
    if before is None or after is None:
        return "missing"
    return "same" if before["sha256"] == after["sha256"] else "rounding"


def integers(seed: int, *shape: int) -> Tensor:
    """Numbers of that shape in [-1, 1) from hashed integers, float64, spread over six powers of two.

    They have 8 significant bits, so they are the same in bfloat16 and in float32.
    """
    bits = _hashed(seed, *shape)
    mantissa = ((bits >> np.uint64(8)) & np.uint64(0xFF)).astype(np.float64) - 128.0
    power = ((bits >> np.uint64(32)) % np.uint64(6)).astype(np.float64)
    return torch.from_numpy(mantissa / 128.0 * np.exp2(-power))


def _fine(seed: int, *shape: int) -> Tensor:
    """As `integers`, with the 24 significant bits of float32, float64."""
    bits = _hashed(seed, *shape)
    mantissa = ((bits >> np.uint64(8)) & np.uint64(0xFFFFFF)).astype(np.float64) - 2.0**23
    return torch.from_numpy(mantissa / 2.0**23)


def _hashed(seed: int, *shape: int) -> np.ndarray:
    """The finaliser of splitmix64 over counted integers (https://doi.org/10.1145/2714064.2660195)."""
    with np.errstate(over="ignore"):
        state = np.arange(int(np.prod(shape)), dtype=np.uint64) + np.uint64(seed + 1) * np.uint64(0x9E3779B97F4A7C15)
        state = (state ^ (state >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        state = (state ^ (state >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return (state ^ (state >> np.uint64(31))).reshape(shape)


def _probes(baseline: Model, candidate: Model, computing: Computing) -> Iterator[Probe]:
    dtype, device = computing.dtype, computing.device
    inputs = _Inputs(dtype, device)
    for number, shape in enumerate(_shapes(baseline)):
        yield _linear(inputs, number, shape)
    yield _attention(inputs, baseline)
    yield _norm(inputs, baseline)
    yield _softmax(inputs)
    if (activation := _activation(inputs, baseline)) is not None:
        yield activation
    yield _head(inputs, baseline)
    for number, format in enumerate(_formats(candidate)):
        yield from _codes(format, number, device)


@dataclass(frozen=True)
class _Inputs:
    """Fixed inputs in the evaluation's precision."""

    dtype: torch.dtype
    device: torch.device

    def __call__(self, seed: int, *shape: int) -> Tensor:
        made = _fine(seed, *shape) if self.dtype == torch.float32 else integers(seed, *shape)
        return made.to(self.device, self.dtype)

    def name(self, kernel: str, *shape: int) -> str:
        return f"{kernel} {'x'.join(map(str, shape))} {str(self.dtype).removeprefix('torch.')}"

    @property
    def unit(self) -> float:
        return torch.finfo(self.dtype).eps


def _linear(inputs: _Inputs, number: int, shape: tuple[int, int]) -> Probe:
    x, weight = inputs(2 * number, TOKENS, shape[1]), inputs(2 * number + 1, *shape)
    found = F.linear(x, weight)
    wide, large = x.cpu().double(), weight.cpu().double()
    return _digest(
        inputs.name("linear", *shape), found, wide @ large.T, wide.abs() @ large.abs().T, _bound(inputs, shape[1])
    )


def _attention(inputs: _Inputs, model: Model) -> Probe:
    config = model.config.get_text_config(decoder=True)
    heads = int(config.num_attention_heads)
    width = int(getattr(config, "head_dim", None) or config.hidden_size // heads)
    shape = (1, min(heads, 4), TOKENS, width)
    query, key, value = (inputs(100 + n, *shape) for n in range(3))
    found = F.scaled_dot_product_attention(query, key, value, is_causal=True)
    q, k, v = (part.cpu().double() for part in (query, key, value))
    scores = q @ k.transpose(-1, -2) / width**0.5
    hidden = torch.ones(TOKENS, TOKENS, dtype=torch.bool).triu(1)
    weights = scores.masked_fill(hidden, float("-inf")).softmax(-1)
    return _digest(inputs.name("attention", *shape), found, weights @ v, weights @ v.abs(), _bound(inputs, width, 4))


def _norm(inputs: _Inputs, model: Model) -> Probe:
    width = int(model.config.get_text_config(decoder=True).hidden_size)
    x, weight = inputs(200, TOKENS, width), inputs(201, width)
    wide = x.float()
    found = weight * (wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + 1e-6)).to(x.dtype)
    exact = x.cpu().double()
    expected = weight.cpu().double() * exact * torch.rsqrt(exact.pow(2).mean(-1, keepdim=True) + 1e-6)
    return _digest(inputs.name("rmsnorm", TOKENS, width), found, expected, expected.abs(), _bound(inputs, width))


def _softmax(inputs: _Inputs) -> Probe:
    x = 8 * inputs(300, TOKENS, 257).float()
    expected = x.cpu().double().softmax(-1)
    return _digest(f"softmax {TOKENS}x257 float32", x.softmax(-1), expected, expected, 64 * torch.finfo(x.dtype).eps)


def _activation(inputs: _Inputs, model: Model) -> Probe | None:
    config = model.config.get_text_config(decoder=True)
    name = getattr(config, "hidden_act", None) or getattr(config, "activation_function", None)
    if not isinstance(name, str) or name not in ACT2FN:
        return None
    x = 4 * inputs(400, TOKENS, 129)
    expected = _EXACT[name](x.cpu().double()) if name in _EXACT else ACT2FN[name](x.cpu().double())
    size = expected.abs() + x.cpu().double().abs()
    return _digest(inputs.name(f"activation {name}", TOKENS, 129), ACT2FN[name](x), expected, size, 4 * inputs.unit)


# Written out, so that what replaces torch's own function does not replace its reference too.
_EXACT: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "relu": lambda x: x * (x > 0),
}


def _head(inputs: _Inputs, model: Model) -> Probe:
    """The product that gives float32 logits out of weights of the evaluation's precision."""
    config = model.config.get_text_config(decoder=True)
    rows, width = _cut((int(config.vocab_size), int(config.hidden_size)))
    x, weight = inputs(500, TOKENS, width).float(), inputs(501, rows, width).float()
    with exact_products(inputs.dtype):
        found = x @ weight.T
    wide, large = x.cpu().double(), weight.cpu().double()
    bound = (8 + width**0.5) * torch.finfo(torch.float32).eps
    return _digest(inputs.name("head", rows, width), found, wide @ large.T, wide.abs() @ large.abs().T, bound)


def _codes(format: Format, number: int, device: torch.device) -> Iterator[Probe]:
    """Unpacking, which must give the very codes, and dequantizing."""
    if not format.grid.startswith("int"):
        return
    group = format.group or 40
    shape = (19, 2 * group + min(8, group))
    low, high = format.levels
    drawn = (_hashed(600 + number, *shape) % np.uint64(high - low + 1)).astype(np.int64)
    codes = torch.from_numpy(drawn + low).to(device, torch.int8)
    if format.code_bits < 8:
        back = unpack(pack(codes, format.code_bits), format.code_bits, shape[1])
        exact = codes.cpu().double()
        yield _digest(f"unpack {format}", back.float(), exact, torch.ones_like(exact), 0.0)
    rows = 1 if format.per == "tensor" else shape[0]
    scales = (integers(700 + number, rows, format.groups(shape[1])).abs() + 2.0**-7).to(format.scale_dtype).float()
    zeros = codes[:rows, : format.groups(shape[1])].contiguous() * (0 if format.symmetric else 1)
    tensor = QTensor(format, shape, codes, scales.to(device), None if format.symmetric else zeros)
    spread = _spread(scales, format, shape[1])
    expected = (codes.cpu().double() - _spread(zeros, format, shape[1])) * spread
    yield _digest(f"dequantize {format}", tensor.dequantize(), expected, spread.expand(shape), 2.0**-20)


def _spread(parts: Tensor, format: Format, width: int) -> Tensor:
    """One number for each group as one for each column, float64."""
    return parts.cpu().double().repeat_interleave(format.group or width, -1)[:, :width]


def _formats(model: Model) -> list[Format]:
    """The distinct formats of a checkpoint's linears."""
    if model.codes is None:
        return []
    found: dict[str, Format] = {}
    for name in model.codes.names:
        with suppress(ModelError):  # another tool's codes, which are no format of ours
            format = model.codes.read(name).format
            found.setdefault(str(format), format)
    return [found[name] for name in sorted(found)]


def _shapes(model: Model) -> list[tuple[int, int]]:
    shapes = {_cut(linear.shape) for linear in model.linears if linear.block is not None}
    return sorted(shapes, key=lambda shape: (-shape[0] * shape[1], shape))[:_SHAPES]


def _cut(shape: tuple[int, ...]) -> tuple[int, int]:
    rows, width = shape
    return max(1, min(rows, _LARGEST // width)), width


def _bound(inputs: _Inputs, summed: int, roundings: int = 2) -> float:
    """Of a sum of `summed` products in float32, rounded to the evaluation's precision."""
    return (8 + summed**0.5) * torch.finfo(torch.float32).eps + roundings * inputs.unit


def _digest(name: str, found: Tensor, expected: Tensor, size: Tensor, bound: float) -> Probe:
    """`size` is what an error is relative to: for a sum, the sum of the sizes of what was added."""
    result = found.detach().cpu().contiguous()
    raw = result.view(torch.int16) if result.dtype == torch.bfloat16 else result
    difference = (result.double() - expected).abs()
    error = (difference / size.clamp_min(1e-30)).max() if bool(torch.isfinite(result).all()) else torch.tensor(1e30)
    step = max(1, result.numel() // _VALUES)
    values = tuple(float(value) for value in result.flatten()[::step][:_VALUES])
    return Probe(name, hashlib.sha256(raw.numpy().tobytes()).hexdigest()[:16], float(error), bound, values)


def _short(value: float) -> float:
    return float(f"{value:.6g}") if np.isfinite(value) else 1e30
