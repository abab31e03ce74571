"""Checkpoints in the compressed-tensors format, tensor by tensor: what their config says, and each linear's codes.

The format is that of https://github.com/vllm-project/compressed-tensors: pack-quantized (integers of 2 to 8 bits in
int32 words), int-quantized and naive-quantized (one byte each), float-quantized (fp8). Nothing of that package is
imported here, so that what it computes can be compared with what we read.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.formats import Format, QTensor, unpack
from subeight.models.linear_info import Decided, LinearInfo

Get = Callable[[str], Tensor]
METHOD = "compressed-tensors"
_FP4 = {"nvfp4-pack-quantized": "nvfp4", "mxfp4-pack-quantized": "mxfp4"}  # two codes to a byte
READABLE = ("pack-quantized", "int-quantized", "float-quantized", "naive-quantized", *_FP4)
_INPUT_GRIDS = ("int8", "int4", "fp8")


def unsayable(linear: LinearInfo, weights: Format, inputs: Format | None = None) -> str | None:
    """Why compressed-tensors cannot hold this linear in this format, with the way out; None where it can."""
    width = linear.shape[1]
    if weights.rotated or (inputs is not None and inputs.rotated):
        return f"{linear.name} has rotated columns, which nothing that loads compressed-tensors would turn back"
    if linear.kind == "conv1d":
        return f"{linear.name} is a Conv1D, which compressed-tensors leaves alone"
    if linear.kind == "embedding":
        return f"{linear.name} is an embedding, which transformers cannot load quantized"
    if not (weights.grid.startswith("int") or weights.grid == "fp8"):
        return f"{linear.name} has the grid {weights.grid}, which we do not write as compressed-tensors"
    if weights.per == "group" and weights.group is not None and width % weights.group:
        fits = _largest_divisor(width, weights.group)
        other = f"groups of {fits} or one scale per channel" if fits > 1 else "one scale per channel"
        return (
            f"{linear.name} is {width} wide, which groups of {weights.group} do not divide "
            f"(compressed-tensors has no short groups, {other} would fit)"
        )
    if linear.kind == "expert" and not weights.symmetric:
        return f"{linear.name} is an expert with zero points, which transformers drops when it loads"
    if linear.kind == "expert" and inputs is not None:
        return f"{linear.name} is an expert with quantized inputs, which transformers leaves as they are"
    if inputs is not None and packed_zeros(weights, inputs):
        return f"{linear.name} has packed zero points and quantized inputs, which no engine runs"
    if inputs is not None and (inputs.grid not in _INPUT_GRIDS or inputs.per not in ("token", "tensor")):
        return f"{linear.name} has inputs in {inputs}, where int8, int4 or fp8 by token or tensor can be held"
    return None


def unsayable_together(sites: Sequence[Decided]) -> str | None:
    """Why transformers could not load these linears from one checkpoint; None where it can."""
    pairs = {(site.weights, site.inputs) for site in sites if site.weights is not None}
    affine = next((weights for weights, inputs in pairs if packed_zeros(weights, inputs)), None)
    if affine is not None and len(pairs) > 1:
        return f"transformers loads packed zero points ({affine}) only where every linear has the same format"
    experts = {site.weights for site in sites if site.linear.kind == "expert"}
    if len(experts) > 1 or (experts == {None} and any(weights.grid != "fp8" for weights, _ in pairs)):
        return "transformers loads experts only where all of them are quantized, in the same format"
    return None


def packed_zeros(weights: Format, inputs: Format | None) -> bool:
    """Whether such linears have zero points packed along the rows.

    transformers 5.23 with compressed-tensors 0.20 expects them unpacked and fails, unless it dequantizes as it loads.
    """
    packed = storage(weights, inputs) == "pack-quantized"
    return packed and not weights.symmetric and weights.per != "tensor"


def _largest_divisor(width: int, limit: int) -> int:
    return next(size for size in range(min(limit, width), 0, -1) if width % size == 0)


def loaded(name: str, weight: QTensor, inputs: Format | None) -> Tensor:
    """The weight that plain transformers holds after loading in float32.

    Packed zero points and packed experts are dequantized as they are loaded, and so rounded to the scales' type.
    """
    packed_expert = storage(weight.format, inputs) == "pack-quantized" and re.search(r"\.experts\.\d+\.", name)
    rounded = packed_zeros(weight.format, inputs) or packed_expert
    return weight.dequantize(weight.format.scale_dtype if rounded else torch.float32).to(torch.float32)


def storage(weights: Format, inputs: Format | None) -> str:
    """The `format` under which compressed-tensors stores such a linear."""
    if weights.grid == "fp8":
        return "float-quantized"
    # Below 8 bits the words stay packed with quantized inputs too: one byte per weight would give up the size.
    return "int-quantized" if inputs is not None and weights.grid == "int8" else "pack-quantized"


def to_args(format: Format, *, inputs: bool = False) -> dict[str, Any]:
    """The QuantizationArgs that say this format, for weights or for inputs."""
    return {
        "num_bits": format.code_bits,
        "type": "int" if format.grid.startswith("int") else "float",
        "symmetric": format.symmetric,
        "strategy": format.per,
        "group_size": format.group if format.per == "group" else None,
        "dynamic": inputs and format.per == "token",
    }


def from_args(args: dict[str, Any], scale_dtype: torch.dtype = torch.bfloat16) -> Format:
    """The format that QuantizationArgs say; ModelError for what we cannot hold."""
    bits, kind = int(args.get("num_bits", 8)), str(args.get("type", "int"))
    group = args.get("group_size")
    strategy = args.get("strategy") or ("tensor" if group is None else "channel" if group == -1 else "group")
    if kind == "float" and bits == 4:
        return _fp4_format(strategy, group)
    if kind == "int" and 2 <= bits <= 8:
        grid = f"int{bits}"
    elif kind == "float" and bits == 8 and args.get("scale_dtype") is None:
        grid = "fp8"
    else:
        raise ModelError(f"The checkpoint stores {kind} of {bits} bits, but int of 2 to 8 bits and fp8 can be read.")
    if strategy not in ("group", "channel", "tensor", "token"):
        raise ModelError(
            f"The checkpoint has one scale per {strategy}, but scales per group, channel, tensor or token can be read."
        )
    return Format(
        grid=grid,
        per=strategy,
        group=int(group) if strategy == "group" and group is not None else None,
        symmetric=bool(args.get("symmetric", True)),
        scale_dtype=scale_dtype,
    )


def _fp4_format(strategy: str, group: Any) -> Format:
    found = {("tensor_group", 16): "nvfp4", ("group", 32): "mxfp4"}.get((strategy, group))
    if found is None:
        raise ModelError(
            f"The checkpoint stores float of 4 bits, a scale per {strategy} of {group}; nvfp4 and mxfp4 can be read."
        )
    return Format.parse(found)


@dataclass(frozen=True)
class Scheme:
    """One config group: what it targets, and how weights and inputs are stored."""

    targets: tuple[str, ...]
    weights: dict[str, Any] | None
    inputs: dict[str, Any] | None
    format: str

    def rank(self, name: str) -> int | None:
        """How closely this group targets a linear: 0 its name, 1 a pattern, 2 the class, None not at all."""
        ranks = [rank for target in self.targets if (rank := _target_rank(target, name)) is not None]
        return min(ranks, default=None)


@dataclass(frozen=True)
class Reader:
    """Reads the linears of one checkpoint; `read(config)` makes it."""

    schemes: tuple[Scheme, ...]
    ignore: tuple[str, ...]

    def scheme(self, name: str) -> Scheme | None:
        """The config group of this linear, None where it is stored in full precision."""
        if any(_target_rank(target, name) in (0, 1) for target in self.ignore):
            return None
        ranked = [(rank, at) for at, group in enumerate(self.schemes) if (rank := group.rank(name)) is not None]
        return self.schemes[min(ranked)[1]] if ranked else None

    def inputs(self, name: str) -> Format | None:
        """The format of this linear's input, None where it stays as it is."""
        scheme = self.scheme(name)
        return from_args(scheme.inputs) if scheme is not None and scheme.inputs else None

    def linear(self, name: str, get: Get) -> QTensor | None:
        """The stored codes and scales of this linear; None where it is stored in full precision.

        `get` returns a tensor of the checkpoint by its full name and raises KeyError for one that it lacks. Where the
        config says `actorder: group`, column `i` has the scale of group `weight_g_idx[i]` instead of its place's.
        """
        scheme = self.scheme(name)
        if scheme is None or scheme.weights is None:
            return None
        if scheme.format in _FP4:
            return _fp4_linear(name, _FP4[scheme.format], get)
        if scheme.weights.get("actorder") in ("group", "dynamic"):
            _part(name, "weight_g_idx", get)
        scales = _part(name, "weight_scale", get)
        format = from_args(scheme.weights, scales.dtype)
        codes = _codes(name, scheme, format, get)
        scales = scales.reshape(1, 1) if format.per == "tensor" else scales.reshape(codes.shape[0], -1)
        if scales.shape[1] != format.groups(codes.shape[1]):
            raise ModelError(
                f"{name} has {scales.shape[1]} scales per row, but {format} at a width of {codes.shape[1]} needs "
                f"{format.groups(codes.shape[1])}; the checkpoint and its config do not belong together."
            )
        return QTensor(
            format=format,
            shape=(codes.shape[0], codes.shape[1]),
            codes=codes,
            scales=scales.to(torch.float32),
            zeros=None if format.symmetric else _zeros(name, format, scales, get),
        )


def read(config: dict[str, Any]) -> Reader:
    """The reader for a checkpoint with this config: config.json's content, or its quantization_config."""
    content = config.get("quantization_config") or config
    if content.get("quant_method", METHOD) != METHOD:
        raise ModelError(f"The checkpoint's quant_method is {content.get('quant_method')!r}, not {METHOD!r}.")
    if content.get("transform_config"):
        raise ModelError("The checkpoint has online transforms (transform_config), which are not supported.")
    default = str(content.get("format", "dense"))
    schemes = []
    for key, group in (content.get("config_groups") or {}).items():
        if not isinstance(group, dict):
            raise ModelError(f"The config group {key!r} names a preset; write its weights out in config.json.")
        stored = str(group.get("format") or default)
        if group.get("weights") is not None and stored not in READABLE:
            raise ModelError(f"The config group {key!r} is stored as {stored!r}; {', '.join(READABLE)} can be read.")
        schemes.append(Scheme(tuple(group["targets"]), group.get("weights"), group.get("input_activations"), stored))
    reader = Reader(tuple(schemes), tuple(content.get("ignore") or ()))
    for target in (*reader.ignore, *(target for scheme in schemes for target in scheme.targets)):
        _require_pattern(target)
    return reader


def _require_pattern(target: str) -> None:
    try:
        re.compile(target.removeprefix("re:") if target.startswith("re:") else "")
    except re.error as error:
        raise ModelError(f"The checkpoint's config targets {target!r}, which is no valid pattern: {error}.") from error


def _target_rank(target: str, name: str) -> Literal[0, 1, 2] | None:
    if target.startswith("re:"):
        return 1 if re.match(target.removeprefix("re:"), name) else None
    if target == name:
        return 0
    return 2 if target == "Linear" else None  # we are asked for linears only; other classes do not match


def _part(name: str, part: str, get: Get) -> Tensor:
    try:
        return get(f"{name}.{part}")
    except KeyError as error:
        raise ModelError(
            f"The checkpoint lacks {name}.{part}, which its config asks for; is a shard missing?"
        ) from error


def _fp4_linear(name: str, grid: str, get: Get) -> QTensor:
    packed, scales = _part(name, "weight_packed", get), _part(name, "weight_scale", get)
    format, width = Format.parse(grid), 2 * packed.shape[1]
    if tuple(scales.shape) != (len(packed), format.groups(width)):
        raise ModelError(f"{name}.weight_scale has the shape {list(scales.shape)}, which {grid} does not have.")
    exponents = scales.to(torch.int32) - 127  # of mxfp4
    return QTensor(
        format=format,
        shape=(len(packed), width),
        codes=torch.stack((packed & 15, packed >> 4), dim=2).flatten(1),
        scales=scales.float() if grid == "nvfp4" else torch.ldexp(torch.ones(scales.shape), exponents),
        global_scale=_part(name, "weight_global_scale", get).float() if grid == "nvfp4" else None,
    )


def _codes(name: str, scheme: Scheme, format: Format, get: Get) -> Tensor:
    if scheme.format != "pack-quantized":
        return _part(name, "weight", get)
    rows, columns = (int(size) for size in _part(name, "weight_shape", get).tolist())
    packed = _part(name, "weight_packed", get)
    if packed.shape != (rows, -(-columns * format.code_bits // 32)):
        raise ModelError(f"{name}.weight_packed has the shape {list(packed.shape)}, which {rows} x {columns} is not.")
    return unpack(packed, format.code_bits, columns)


def _zeros(name: str, format: Format, scales: Tensor, get: Get) -> Tensor:
    stored = _part(name, "weight_zero_point", get)
    if stored.dtype == torch.int32:  # packed along the rows
        return unpack(stored.T.contiguous(), format.code_bits, scales.shape[0]).T.contiguous()
    return stored.reshape(scales.shape).to(torch.int8)
