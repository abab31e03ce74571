"""Frozen weights that are held as packed codes and multiplied in both directions: what adapters are trained on.

A weight is dequantized a piece at a time, in the forward pass and once more in the backward pass, and no piece is kept
between them: QLoRA (https://arxiv.org/abs/2305.14314). So the memory of a frozen linear is that of its codes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from subeight.formats import Format, QTensor, Scales, fake_quantize, unpack
from subeight.kernels.native import native
from subeight.kernels.products import OUTPUTS, PackedMatrix, can_pack, pack_matrix, unpack_matrix
from subeight.models.read.own import weight_of

PIECE = 1 << 20  # weights that are dequantized at once


class FrozenWeight(nn.Module):
    """A quantized matrix [out, in] as its packed parts, given back in pieces of whole rows, dequantized to `dtype`.

    On a CPU with our C++ a bf16 weight has that layout and is unpacked by it; everything else is held as
    `QTensor.stored` lays it out, in buffers. Both give `QTensor.dequantize` exactly.
    """

    def __init__(self, weight: QTensor, dtype: torch.dtype, *, by_rows: bool = False) -> None:
        super().__init__()
        self.format, self.shape, self.dtype = weight.format, weight.shape, dtype
        self.matrix = None if by_rows else _matrix(weight, dtype)
        self._parts: list[str] = []
        if self.matrix is None:
            for name, part in weight.stored().items():
                self.register_buffer(f"part_{name}", part, persistent=False)
                self._parts.append(name)

    @property
    def stored(self) -> dict[str, Tensor]:
        """The parts by name; none of them where the C++ holds the weight."""
        return {name: self.get_buffer(f"part_{name}") for name in self._parts}

    @property
    def codes(self) -> Tensor:
        """The packed codes as they are held."""
        return self.matrix.codes if self.matrix is not None else self.get_buffer("part_codes")

    @property
    def nbytes(self) -> int:
        """Bytes that are held."""
        return self.matrix.nbytes if self.matrix is not None else sum(part.nbytes for part in self.stored.values())

    def pieces(self) -> Iterator[tuple[int, int, Float[Tensor, "rows in"]]]:
        """The dense weight by rows from `start` up to `stop`."""
        out, width = self.shape
        step = max(OUTPUTS, PIECE // width // OUTPUTS * OUTPUTS)
        if self.format.rotated or "left" in self._parts:
            step = out
        for start in range(0, out, step):
            stop = min(start + step, out)
            yield start, stop, self._rows(start, stop)

    def dense(self) -> Float[Tensor, "out in"]:
        """All of it."""
        return torch.cat([piece for _, _, piece in self.pieces()])

    def rows(self, index: Tensor) -> Float[Tensor, "n in"]:
        """Single rows, for embeddings; needs `by_rows`."""
        stored = self.stored
        taken = {"codes": stored["codes"][index], "scales": stored["scales"]}
        if self.format.per != "tensor":
            taken["scales"] = stored["scales"][index]
        weight = weight_of(self.format, (len(index), self.shape[1]), {**taken, **_shared(stored)})
        if "zeros" in stored:
            weight = replace(weight, zeros=self._zeros()[index])
        return weight.dequantize(self.dtype)

    def _rows(self, start: int, stop: int) -> Tensor:
        if self.matrix is not None:
            kernels = native()
            assert not isinstance(kernels, str)
            return unpack_matrix(_blocks(self.matrix, start, stop), kernels)
        stored, width = self.stored, self.shape[1]
        whole = (start, stop) == (0, self.shape[0])
        if whole or {"values", "zeros"} & stored.keys():
            weight = weight_of(self.format, self.shape, stored)
            return (weight if whole else weight.rows(start, stop)).dequantize(self.dtype)
        scales = stored["scales"] if self.format.per == "tensor" else stored["scales"][start:stop]
        parts = {"codes": stored["codes"][start:stop], "scales": scales, **_shared(stored)}
        return weight_of(self.format, (stop - start, width), parts).dequantize(self.dtype)

    def _zeros(self) -> Tensor:
        bits, packed = self.format.code_bits, self.stored["zeros"]
        return (packed if bits == 8 else unpack(packed, bits, self.shape[0])).T

    def extra_repr(self) -> str:
        return f"{self.format}, {self.shape[0]} x {self.shape[1]}, {self.nbytes} bytes"


class FrozenLinear(nn.Module):
    """y = x W^T + b with W as packed codes and never trained; the gradient to x is exact for the dequantized W.

    Inputs are rounded as the format says, and passed straight through in the backward pass.
    """

    def __init__(
        self,
        weight: FrozenWeight,
        bias: nn.Parameter | None = None,
        inputs: Format | None = None,
        scales: Scales | None = None,
    ) -> None:
        super().__init__()
        self.held = weight
        self.out_features, self.in_features = weight.shape
        self.bias = bias
        self.inputs, self.scales = inputs, scales

    @property
    def qweight(self) -> Tensor:
        """The packed codes: by them PEFT sees on which device an adapter belongs."""
        return self.held.codes

    def forward(self, x: Float[Tensor, "... in"]) -> Float[Tensor, "... out"]:
        y = product(_rounded(x, self.inputs, self.scales), self.held)
        return y if self.bias is None else y + self.bias


class FrozenEmbedding(nn.Module):
    """Rows of a packed matrix by token."""

    def __init__(self, weight: FrozenWeight) -> None:
        super().__init__()
        self.held = weight
        self.num_embeddings, self.embedding_dim = weight.shape

    def forward(self, ids: Tensor) -> Float[Tensor, "... width"]:
        return self.held.rows(ids.flatten()).view(*ids.shape, -1)


class FrozenExperts(nn.Module):
    """A fused parameter [experts, out, in] whose experts are packed: `experts[e]` multiplies as its matrix would.

    It stands where transformers has the parameter, so the family's own forward runs on it.
    """

    def __init__(self, experts: Sequence[Sequence[FrozenWeight]]) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.ModuleList(parts) for parts in experts)

    def __getitem__(self, expert: int | Tensor) -> _Expert:
        return _Expert(list(self.parts[int(expert)]))  # type: ignore[arg-type]

    def __len__(self) -> int:
        return len(self.parts)


class _Expert:
    """One expert's matrix; torch calls `__torch_function__` where it is multiplied."""

    def __init__(self, parts: list[FrozenWeight]) -> None:
        self.parts = parts

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ARG003
        if func is torch.nn.functional.linear and not kwargs and isinstance(args[1], cls):
            y = torch.cat([product(args[0], part) for part in args[1].parts], -1)
            return y if len(args) < 3 or args[2] is None else y + args[2]
        return NotImplemented


def product(x: Float[Tensor, "... in"], weight: FrozenWeight) -> Float[Tensor, "... out"]:
    """x W^T, differentiable in x, with nothing of W kept for the backward pass."""
    return _Product.apply(x, weight)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: FrozenWeight) -> Tensor:
        ctx.weight = weight
        y = x.new_empty(*x.shape[:-1], weight.shape[0])
        for start, stop, piece in weight.pieces():
            y[..., start:stop] = x @ piece.to(x.dtype).T
        return y

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None]:
        (slope,) = slopes
        found: Tensor | None = None
        for start, stop, piece in ctx.weight.pieces():
            part = slope[..., start:stop] @ piece.to(slope.dtype)
            found = part if found is None else found.add_(part)
        assert found is not None
        return found, None


def _rounded(x: Tensor, format: Format | None, scales: Scales | None) -> Tensor:
    if format is None:
        return x
    rounded = fake_quantize(x.detach(), format, scales).to(x.dtype)
    return x + (rounded - x).detach()


def _matrix(weight: QTensor, dtype: torch.dtype) -> PackedMatrix | None:
    """The layout of our C++, where it gives this weight exactly."""
    if dtype != torch.bfloat16 or weight.codes.device.type != "cpu" or isinstance(native(), str):
        return None
    plain = weight.sparse is None and weight.thin is None and not weight.format.rotated
    return pack_matrix(weight) if plain and can_pack(weight.format, weight.shape) else None


def _blocks(matrix: PackedMatrix, start: int, stop: int) -> PackedMatrix:
    """The rows from `start`, a multiple of 16, up to `stop`."""
    if (start, stop) == (0, matrix.shape[0]):
        return matrix
    first, last = start // OUTPUTS, -(-stop // OUTPUTS)
    return replace(
        matrix,
        shape=(stop - start, matrix.shape[1]),
        codes=matrix.codes[first:last],
        scales=matrix.scales[first:last],
        zeros=None if matrix.zeros is None else matrix.zeros[first:last],
    )


def _shared(stored: dict[str, Tensor]) -> dict[str, Tensor]:
    """What all rows have in common."""
    return {name: part for name, part in stored.items() if name == "global_scale"}
