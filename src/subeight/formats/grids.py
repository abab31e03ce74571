"""The numbers that a code can stand for, before a scale stretches them.

Integers (int2 to int8), 16 quantiles of the normal distribution (nf4, QLoRA, https://arxiv.org/abs/2305.14314,
appendix E), and small floats: fp8 e4m3 and e5m2 (https://arxiv.org/abs/2209.05433) and fp4 e2m1, the grid of
mxfp4 (OCP Microscaling, https://arxiv.org/abs/2310.10537) and of nvfp4. Every grid rounds to nearest.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import ceil

import torch
from torch import Tensor

NF4_VALUES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)
FP4_MAGNITUDES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)

PIECE = 1 << 20  # values that a codebook places at once, with some twenty bytes each beside them


@dataclass(frozen=True)
class Grid(ABC):
    """What codes stand for. `peak` is the grid value on which a full-range scale puts the largest weight."""

    bits: int
    peak: float
    code_dtype: torch.dtype

    @abstractmethod
    def codes(self, scaled: Tensor) -> Tensor:
        """The codes nearest to weights already divided by their scale; `scaled` may be overwritten."""

    @abstractmethod
    def values(self, codes: Tensor) -> Tensor:
        """What the codes stand for, float32."""

    def snap(self, scaled: Tensor) -> Tensor:
        """The nearest grid values themselves, in the type of `scaled`, which may be overwritten."""
        return self.values(self.codes(scaled)).to(scaled.dtype)


@dataclass(frozen=True)
class IntGrid(Grid):
    """Signed integers, all of them: int4 is -8 to 7."""

    low: int
    high: int

    def codes(self, scaled: Tensor) -> Tensor:
        return self.snap(scaled).to(torch.int8)

    def values(self, codes: Tensor) -> Tensor:
        return codes.to(torch.float32)

    def snap(self, scaled: Tensor) -> Tensor:
        return scaled.clamp_(self.low, self.high).round_()


@dataclass(frozen=True)
class Fp8Grid(Grid):
    """An 8-bit float type of torch; what is too large becomes the largest finite value."""

    def codes(self, scaled: Tensor) -> Tensor:
        return scaled.clamp_(-self.peak, self.peak).to(self.code_dtype)

    def values(self, codes: Tensor) -> Tensor:
        return codes.to(torch.float32)

    def snap(self, scaled: Tensor) -> Tensor:
        return self.codes(scaled).to(scaled.dtype)


@dataclass(frozen=True)
class Codebook(Grid):
    """Sixteen or fewer ascending values, each with its code; a tie goes up where `ties_up` says so."""

    ascending: tuple[float, ...]
    code_of: tuple[int, ...]
    ties_up: tuple[bool, ...]
    cells_per_unit: int

    def codes(self, scaled: Tensor) -> Tensor:
        return self._looked_up(_table(self.code_of, scaled.device, torch.uint8), scaled)

    def values(self, codes: Tensor) -> Tensor:
        by_code = dict(zip(self.code_of, self.ascending, strict=True))
        values = _table(tuple(by_code.get(i, 0.0) for i in range(16)), codes.device, torch.float32)
        return values.index_select(0, codes.flatten().to(torch.int32)).view(codes.shape)

    def snap(self, scaled: Tensor) -> Tensor:
        return self._looked_up(_table(self.ascending, scaled.device, scaled.dtype), scaled)

    def _looked_up(self, table: Tensor, scaled: Tensor) -> Tensor:
        """The entry of `table` for the place of each value in `ascending`; some at a time, for memory."""
        flat = scaled.reshape(-1)
        found = table.new_empty(flat.shape)
        for values, into in zip(flat.split(PIECE), found.split(PIECE), strict=True):
            into.copy_(table.index_select(0, self._index(values)))
        return found.view(scaled.shape)

    def _index(self, scaled: Tensor) -> Tensor:
        """Places in `ascending`, flat: a cell is so narrow that it holds at most one boundary."""
        below, boundary = _cells(self, scaled.device)
        # NaN would be no index; the scale of its group is NaN too and carries it on
        flat = scaled.to(torch.float32).flatten().nan_to_num(nan=0.0)
        cell = (flat * self.cells_per_unit).add_(len(below) / 2).clamp_(0, len(below) - 1).to(torch.int32)
        return below.index_select(0, cell).add_(flat > boundary.index_select(0, cell))


@lru_cache(maxsize=32)
def _table(values: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
    return torch.tensor(values, dtype=dtype, device=device)


@lru_cache(maxsize=32)
def _cells(book: Codebook, device: torch.device) -> tuple[Tensor, Tensor]:
    """For each cell the number of boundaries below it, and the boundary inside it (or Inf)."""
    middles = [(lower + upper) / 2 for lower, upper in pairwise(book.ascending)]
    reach = ceil(book.ascending[-1] * book.cells_per_unit) + 1
    # an odd number of cells: their edges fall between the round numbers that boundaries of fp4 are
    edges = torch.arange(2 * reach + 1, dtype=torch.float64) - (2 * reach + 1) / 2
    place = torch.searchsorted(torch.tensor(middles, dtype=torch.float64) * book.cells_per_unit, edges, right=True)
    limits = torch.tensor(middles, dtype=torch.float32)
    lower = torch.nextafter(limits, torch.tensor(-torch.inf))
    limits = torch.where(torch.tensor(book.ties_up), lower, limits)
    inside = torch.cat([limits, torch.tensor([torch.inf])])[place]
    return place.to(torch.int32).to(device), inside.to(device)


def _int_grid(bits: int) -> IntGrid:
    half = 2 ** (bits - 1)
    # half a code beyond the last one is still the last one: llm-compressor stretches symmetric scales so
    return IntGrid(bits=bits, peak=half - 0.5, code_dtype=torch.int8, low=-half, high=half - 1)


def _nf4_grid() -> Codebook:
    # bitsandbytes gives a tie to the lower value
    return Codebook(4, 1.0, torch.uint8, NF4_VALUES, tuple(range(16)), (False,) * 15, cells_per_unit=64)


def _fp4_grid(peak: float) -> Codebook:
    """e2m1: the magnitude's place in three bits, the sign in the fourth; ties go to the even place."""
    magnitudes = FP4_MAGNITUDES[1:]
    ascending = (*(-value for value in reversed(magnitudes)), 0.0, *magnitudes)
    codes = (*range(15, 8, -1), *range(8))
    upward = tuple(place % 2 == 1 for place in range(7))
    ties_up = (*(not up for up in reversed(upward)), *upward)
    return Codebook(4, peak, torch.uint8, ascending, codes, ties_up, cells_per_unit=8)


def _fp8_grid(dtype: torch.dtype) -> Fp8Grid:
    return Fp8Grid(bits=8, peak=torch.finfo(dtype).max, code_dtype=dtype)


GRIDS: dict[str, Grid] = {
    **{f"int{bits}": _int_grid(bits) for bits in range(2, 9)},
    "nf4": _nf4_grid(),
    "fp8": _fp8_grid(torch.float8_e4m3fn),
    "fp8_e5m2": _fp8_grid(torch.float8_e5m2),
    # OCP divides by the largest power of two of the grid and lets (6, 8) saturate
    "mxfp4": _fp4_grid(peak=4.0),
    "nvfp4": _fp4_grid(peak=6.0),
}
