"""What stands beside the codes of a matrix in 16 bits: single values, and a thin product. Both are added to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

VALUE_BITS = 16  # of a value, a factor, and of a column's number
POINTER_BITS = 32
WIDEST = 2**15  # columns that 15 bits can number


@dataclass(eq=False)
class Sparse:
    """Single values of a matrix [out, in], in rows: those of row i are at pointers[i] up to pointers[i + 1]."""

    pointers: Int[Tensor, out + 1]
    columns: Int[Tensor, " n"]
    values: Float[Tensor, " n"]  # numbers that bfloat16 holds

    @classmethod
    def of(cls, matrix: Float[Tensor, "out in"], chosen: Tensor) -> Sparse:
        """The values of `matrix` where `chosen` [out, in] is true, as bfloat16 holds them."""
        rows, columns = torch.nonzero(chosen, as_tuple=True)
        counts = torch.bincount(rows, minlength=len(matrix))
        pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        values = matrix[rows, columns].to(torch.bfloat16).to(torch.float32)
        return cls(pointers.to(torch.int32), columns.to(torch.int16), values)

    def dense(self, width: int) -> Float[Tensor, "out in"]:
        """The matrix with zeros everywhere else, float32."""
        rows = len(self.pointers) - 1
        found = torch.zeros(rows, width, device=self.values.device)
        at = torch.arange(rows, device=self.values.device).repeat_interleave(self.pointers.diff().long())
        found[at, self.columns.long()] = self.values
        return found

    def rows(self, start: int, stop: int) -> Sparse:
        """The rows from `start` up to `stop`."""
        pointers = self.pointers[start : stop + 1]
        part = slice(int(pointers[0]), int(pointers[-1]))
        return Sparse(pointers - pointers[0], self.columns[part], self.values[part])

    def stored(self) -> dict[str, Tensor]:
        """The tensors as they are stored."""
        return {"pointers": self.pointers, "columns": self.columns, "values": self.values.to(torch.bfloat16)}


@dataclass(eq=False)
class Thin:
    """A matrix [out, in] of low rank: left [out, rank] times right [rank, in], numbers that bfloat16 holds."""

    left: Float[Tensor, "out rank"]
    right: Float[Tensor, "rank in"]

    @classmethod
    def of(cls, left: Tensor, right: Tensor) -> Thin:
        """The product of these factors as bfloat16 holds them."""
        return cls(*(factor.to(torch.bfloat16).to(torch.float32).contiguous() for factor in (left, right)))

    def dense(self) -> Float[Tensor, "out in"]:
        """The product, float32."""
        return self.left @ self.right

    def stored(self) -> dict[str, Tensor]:
        """The tensors as they are stored."""
        return {"left": self.left.to(torch.bfloat16), "right": self.right.to(torch.bfloat16)}


def sparse_bits(shape: tuple[int, int], count: int) -> int:
    """What `count` single values of a matrix take, their places counted."""
    return count * 2 * VALUE_BITS + (shape[0] + 1) * POINTER_BITS


def thin_bits(shape: tuple[int, int], rank: int) -> int:
    """What a correction of this rank takes."""
    return (shape[0] + shape[1]) * rank * VALUE_BITS
