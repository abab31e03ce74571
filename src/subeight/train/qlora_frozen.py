"""Weights that stay packed while adapters are trained: dequantized piece by piece, again in the backward pass.

A frozen weight needs no gradient, but its input does: x W^T forward, g W backward. autograd would keep a dense W
between the two; here only the codes are kept (QLoRA, https://arxiv.org/abs/2305.14314, section 3).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from subeight.errors import ModelError
from subeight.formats import Format, QTensor, Scales, fake_quantize
from subeight.kernels.native import Native, native
from subeight.kernels.products import PackedMatrix, can_pack, pack_matrix, unpack_matrix
from subeight.models.read.own import weight_of

PIECE = 1 << 22  # weights that are dequantized at once
_WHOLE_ROWS = 16  # the C++ packs so many rows together


@dataclass(eq=False)
class _Stored:
    """Rows of a weight as `QTensor.stored` lays them out."""

    format: Format
    shape: tuple[int, int]
    parts: dict[str, Tensor]

    @property
    def tensors(self) -> list[Tensor]:
        return list(self.parts.values())

    def dense(self, dtype: torch.dtype) -> Tensor:
        return weight_of(self.format, self.shape, self.parts).dequantize(dtype)

    def rows(self, ids: Tensor, dtype: torch.dtype) -> Tensor:
        """Some rows, [n, in]: only these are dequantized where rows are stored apart from each other."""
        if set(self.parts) != {"codes", "scales"} or self.format.per == "tensor":
            return self.dense(dtype)[ids]
        some = {name: part[ids] for name, part in self.parts.items()}
        return weight_of(self.format, (len(ids), self.shape[1]), some).dequantize(dtype)


@dataclass(eq=False)
class _Native:
    """Rows of a weight as our C++ reads them: on CPUs, in bf16."""

    matrix: PackedMatrix
    kernels: Native

    @property
    def tensors(self) -> list[Tensor]:
        parts = (self.matrix.codes, self.matrix.scales, self.matrix.zeros)
        return [part for part in parts if part is not None]

    def dense(self, dtype: torch.dtype) -> Tensor:
        return unpack_matrix(self.matrix, self.kernels).to(dtype)


class FrozenWeight:
    """A matrix [out, in] held as packed codes.

    Products are those of `QTensor.dequantize` in the type of the rows; at most `PIECE` weights are dense at a time.
    """

    def __init__(self, weight: QTensor, dtype: torch.dtype, *, by_rows: bool = False) -> None:
        self.shape, self.format = weight.shape, weight.format
        kernels = None if by_rows else _native_for(weight, dtype)
        self._pieces = [_Native(pack_matrix(part), kernels) if kernels else _stored(part) for part in _cut(weight)]
        # a correction of low rank belongs to all rows, so what has one is one piece
        self._starts = [0] if len(self._pieces) == 1 else [start for start, _ in _bounds(weight)]

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(tensor.nbytes for piece in self._pieces for tensor in piece.tensors)

    @property
    def codes(self) -> Tensor:
        """The codes of the first piece, which tell the device."""
        return self._pieces[0].tensors[0]

    def dense(self, dtype: torch.dtype) -> Float[Tensor, "out in"]:
        """All of it, dequantized."""
        return torch.cat([piece.dense(dtype) for piece in self._pieces])

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        """x W^T."""
        parts = [x @ piece.dense(x.dtype).T for piece in self._pieces]
        return parts[0] if len(parts) == 1 else torch.cat(parts, -1)

    def backward(self, gradient: Float[Tensor, "... out"]) -> Float[Tensor, "... in"]:
        """g W."""
        found = None
        for start, piece in zip(self._starts, self._pieces, strict=True):
            dense = piece.dense(gradient.dtype)
            part = gradient[..., start : start + len(dense)] @ dense
            found = part if found is None else found.add_(part)
        assert found is not None
        return found

    def rows(self, ids: Int[Tensor, ...], dtype: torch.dtype) -> Float[Tensor, "... in"]:
        """Some of its rows; of a weight that was made `by_rows`."""
        flat, found = ids.flatten(), torch.empty(ids.numel(), self.shape[1], dtype=dtype, device=ids.device)
        ends = [*self._starts[1:], self.shape[0]]
        for start, end, piece in zip(self._starts, ends, self._pieces, strict=True):
            assert isinstance(piece, _Stored)
            here = ((flat >= start) & (flat < end)).nonzero()[:, 0]
            if len(here):
                found[here] = piece.rows(flat[here] - start, dtype)
        return found.view(*ids.shape, self.shape[1])


def _native_for(weight: QTensor, dtype: torch.dtype) -> Native | None:
    """Our C++ where it gives the same numbers: plain codes on a CPU, computed in bf16."""
    plain = weight.sparse is None and weight.thin is None and not weight.format.rotated
    if dtype != torch.bfloat16 or weight.codes.device.type != "cpu" or not plain:
        return None
    if not can_pack(weight.format, weight.shape):
        return None
    found = native()
    return None if isinstance(found, str) else found


def _stored(weight: QTensor) -> _Stored:
    return _Stored(weight.format, weight.shape, {name: part.clone() for name, part in weight.stored().items()})


def _bounds(weight: QTensor) -> list[tuple[int, int]]:
    rows, width = weight.shape
    step = max(_WHOLE_ROWS, PIECE // width // _WHOLE_ROWS * _WHOLE_ROWS)
    return [(start, min(start + step, rows)) for start in range(0, rows, step)]


def _cut(weight: QTensor) -> list[QTensor]:
    bounds = _bounds(weight)
    if weight.thin is not None or len(bounds) == 1:
        return [weight]
    return [weight.rows(start, stop) for start, stop in bounds]


class _Product(torch.autograd.Function):
    """x W^T whose graph holds the packed weight and nothing else."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: FrozenWeight) -> Tensor:
        ctx.weight, ctx.dtype = weight, x.dtype
        return weight.forward(x)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.weight.backward(gradient).to(ctx.dtype), None


class FrozenLinear(nn.Module):
    """y = x W^T + b with W frozen and packed; differentiable in x. It has no parameter of its own but the bias.

    Inputs are rounded where the format says so, and the gradient passes as if they were not. `conv1d` says that it
    stands for a Conv1D, whose plain weight is [in, out].
    """

    def __init__(
        self,
        weight: FrozenWeight,
        bias: Float[Tensor, " out"] | None = None,
        inputs: tuple[Format, Scales | None] | None = None,
        *,
        conv1d: bool = False,
    ) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.frozen = weight
        self.inputs = inputs
        self.conv1d = conv1d
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    @property
    def qweight(self) -> Tensor:
        """The codes, under the name by which PEFT finds the device of a quantized linear."""
        return self.frozen.codes

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        if self.inputs is not None:
            x = _rounded(x, *self.inputs)
        y = _Product.apply(x, self.frozen)
        return y if self.bias is None else y + self.bias

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, {self.frozen.format}"


def _rounded(x: Tensor, format: Format, scales: Scales | None) -> Tensor:
    flat = x.detach().reshape(-1, x.shape[-1])
    rounded = fake_quantize(flat, format, scales).to(x.dtype).view_as(x)
    return x + (rounded - x.detach())


class FrozenEmbedding(nn.Module):
    """Rows of a packed matrix by token."""

    def __init__(self, weight: FrozenWeight, dtype: torch.dtype) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = weight.shape
        self.frozen, self.dtype = weight, dtype

    def forward(self, ids: Int[Tensor, ...]) -> Float[Tensor, "... in"]:
        return self.frozen.rows(ids, self.dtype)


class FrozenExperts(nn.Module):
    """What stands in the place of a fused 3-D parameter [experts, out, in]; `[e]` multiplies by expert e."""

    def __init__(self, name: str, experts: Sequence[Sequence[FrozenWeight]]) -> None:
        super().__init__()
        self.name = name
        self.experts = [tuple(parts) for parts in experts]

    def __getitem__(self, expert: int | Tensor) -> _Expert:
        return _Expert(self.name, self.experts[int(expert)])

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return sum(part.nbytes for parts in self.experts for part in parts)


class _Expert:
    """One expert's matrix, of which `torch.nn.functional.linear` asks for its product; parts are rows of it."""

    def __init__(self, name: str, parts: tuple[FrozenWeight, ...]) -> None:
        self._name, self._parts = name, parts

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Tensor:
        given = dict(zip(("input", "weight", "bias"), args, strict=False)) | (kwargs or {})
        weight = given.get("weight")
        if func is not torch.nn.functional.linear or not isinstance(weight, _Expert):
            raise ModelError(
                f"This family computes its experts by {getattr(func, '__name__', func)}, which packed experts do not "
                "serve; give a recipe with a rule that keeps them, such as {match: '*experts*', weights: null}."
            )
        parts = [_Product.apply(given["input"], part) for part in weight._parts]
        y = parts[0] if len(parts) == 1 else torch.cat(parts, -1)
        return y if given.get("bias") is None else y + given["bias"]
