"""Finding scales: over the full range, or where the squared error is least (clipping the rare extremes).

The `mse` search shrinks and stretches the full range over a fixed row of ratios, then fits the scale to the
chosen codes by least squares, as llama.cpp's k-quants do; where that is asked for, scales of symmetric integers may
come out negative, which turns the longer side of their grid toward the group's extreme. A step is taken only where the
error falls, measured with the scale as it will be stored: the result is never worse than absmax. The same input gives
the same result.
"""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Float
from torch import Tensor

from subeight.errors import FormatError
from subeight.formats.format import Format
from subeight.formats.rotation import rotate, turned_importance
from subeight.formats.scales import Scales, find_global_scale, full_range, grouped, storable, value_range

NOT_FINITE = "a weight holds NaN or Inf, or spans more than float32 can: give finite weights"
_SEARCHES = ("absmax", "minmax", "mse")
# weights looked at in one go: small enough for the cache, and it bounds the memory of the search
_CHUNK = 2**18
_FITS = 3


@torch.no_grad()
def find_scales(
    weight: Float[Tensor, "out in"],
    format: Format,
    *,
    search: str = "absmax",
    importance: Float[Tensor, "in"] | None = None,
    signed: bool = False,
) -> Scales:
    """Scales (and zero points) of a weight.

    `absmax` and `minmax` are the full range, by its name for symmetric formats and for affine ones; `mse`
    looks for the least squared error, in which column j counts `importance[j]` times. `signed` lets it choose negative
    scales of symmetric integers below 8 bits, which most other tools do not.
    """
    if format.rotated:
        turned = None if importance is None else turned_importance(importance)
        return find_scales(rotate(weight), format.plain, search=search, importance=turned, signed=signed)
    if search not in _SEARCHES:
        raise FormatError(f"search {search!r} is not known: choose one of {', '.join(_SEARCHES)}")
    if weight.ndim != 2 or weight.numel() == 0:
        raise FormatError(f"a weight of shape {tuple(weight.shape)} has no scales: give a matrix [out, in]")
    groups = grouped(weight.to(torch.float32), format)
    low, high = value_range(groups, format)
    if not bool(torch.isfinite(high - low).all()):
        raise FormatError(NOT_FINITE)
    global_scale = find_global_scale(format, low, high)
    full = full_range(format, low, high, global_scale)
    if not bool(torch.isfinite(full.scales).all()):
        raise FormatError(f"the scales of this weight are too large for {format}: choose bf16 or fp32 scales")
    if search != "mse":
        return full
    worth = None if importance is None else _worth(importance, weight, format)
    turns = signed and format.symmetric and format.grid.startswith("int") and format.code_bits < 8
    look = _signed_search if turns else _search
    if format.per == "tensor":
        return look(_Task(groups, worth, low, high, format, global_scale))
    step = max(1, _CHUNK // groups[0].numel())
    parts = [
        look(_Task(groups[rows], worth, low[rows], high[rows], format, global_scale))
        for rows in (slice(i, i + step) for i in range(0, len(groups), step))
    ]
    zeros = [part.zeros for part in parts if part.zeros is not None]
    scales = torch.cat([part.scales for part in parts])
    return Scales(scales, torch.cat(zeros) if zeros else None, global_scale)


def _worth(importance: Tensor, weight: Tensor, format: Format) -> Tensor:
    if importance.shape != weight.shape[1:]:
        raise FormatError(
            f"importance of shape {tuple(importance.shape)} does not fit {weight.shape[1]} columns: "
            "give one number for each"
        )
    if not bool((torch.isfinite(importance) & (importance >= 0)).all()):
        raise FormatError("importance holds a negative number, NaN or Inf: give finite numbers from zero up")
    largest = importance.max()
    # only ratios count: a common factor must not push float32 sums out of range
    unit = importance / torch.where(largest > 0, largest, 1.0)
    return grouped(unit.to(torch.float32)[None], format)


@dataclass(frozen=True)
class _Task:
    """What one search looks at: weights [rows, groups, columns], their worth, and their range."""

    groups: Tensor
    worth: Tensor | None
    low: Tensor
    high: Tensor
    format: Format
    global_scale: Tensor | None

    def chunks(self, scales: Scales) -> list[tuple[Tensor, Tensor, Tensor | None]]:
        """Some rows of weights at a time, with effective scales and zeros that broadcast over the columns."""
        scale = scales.effective[..., None]
        zero = None if scales.zeros is None else scales.zeros.to(torch.float32)[..., None]
        if self.format.per != "tensor":
            return [(self.groups, scale, zero)]
        step = max(1, _CHUNK // self.groups[0].numel())
        return [(self.groups[i : i + step], scale, zero) for i in range(0, len(self.groups), step)]

    def total(self, sums: list[Tensor]) -> Tensor:
        """Sums [rows, groups] of the chunks, as one number per scale."""
        if self.format.per != "tensor":
            return sums[0]
        return torch.stack([part.sum(dtype=torch.float64) for part in sums]).sum().view(1, 1)


def _signed_search(task: _Task) -> Scales:
    """A symmetric grid of integers reaches one code further down than up: a negative scale may turn it."""
    found = _search(task)
    mirrored = replace(task, groups=-task.groups, low=-task.high, high=-task.low)
    other = _search(mirrored)
    wins = _error(mirrored, other) < _error(task, found)
    return Scales(torch.where(wins, -other.scales, found.scales))


def _search(task: _Task) -> Scales:
    best = full_range(task.format, task.low, task.high, task.global_scale)
    error = _error(task, best)
    for ratio in _ratios(task.format):
        trial = full_range(task.format, task.low * ratio, task.high * ratio, task.global_scale)
        best, error = _better(task, best, error, trial)
    shifts = (0,) if task.format.symmetric else (0, -1, 1)
    for _ in range(_FITS):
        for shift in shifts:
            best, error = _better(task, best, error, _fitted(task, best, shift))
    return best


def _ratios(format: Format) -> list[float]:
    if format.grid == "mxfp4":
        return [2.0, 0.5, 0.25]
    highest, lowest, count = 1.0, 0.15, 32
    if format.grid == "nvfp4":
        # up to where the extreme is a 4 instead of a 6
        highest, lowest, count = 1.5, 0.5, 16
    elif format.grid == "nf4":
        highest, lowest, count = 1.0, 0.25, 24
    elif format.grid.startswith("fp8"):
        # a float is as fine at any scale: one octave holds all that can differ
        highest, lowest, count = 1.0, 0.5, 12
    elif format.symmetric:
        # up to where a positive extreme is the last code exactly
        highest = format.values.peak / format.levels[1]
    factor = (lowest / highest) ** (1 / (count - 1))
    return [highest * factor**i for i in range(count)]


def _error(task: _Task, scales: Scales) -> Tensor:
    sums = []
    for weight, scale, zero in task.chunks(scales):
        target = weight / scale
        if zero is not None:
            target += zero
        miss = task.format.values.snap(target.clone()).sub_(target).square_()
        if task.worth is not None:
            miss *= task.worth
        sums.append(miss.sum(-1) * scale[..., 0].square())
    return task.total(sums)


def _better(task: _Task, best: Scales, error: Tensor, trial: Scales) -> tuple[Scales, Tensor]:
    trial_error = _error(task, trial)
    wins = trial_error < error
    zeros = best.zeros
    if zeros is not None and trial.zeros is not None:
        zeros = torch.where(wins, trial.zeros, zeros)
    scales = torch.where(wins, trial.scales, best.scales)
    return Scales(scales, zeros, task.global_scale), torch.where(wins, trial_error, error)


def _fitted(task: _Task, best: Scales, shift: int) -> Scales:
    """The codes that `best` chooses (zero points moved by `shift`), with the scale that fits them best."""
    zeros = best.zeros
    if zeros is not None:
        first, last = task.format.levels
        zeros = (zeros.to(torch.int16) + shift).clamp_(first, last).to(torch.int8)
    products, squares = [], []
    for weight, scale, zero in task.chunks(Scales(best.scales, zeros, task.global_scale)):
        target = weight / scale
        value = task.format.values.snap(target if zero is None else target.add_(zero))
        if zero is not None:
            value -= zero
        worthy = value if task.worth is None else value * task.worth
        products.append((worthy * weight).sum(-1))
        squares.append((worthy * value).sum(-1))
    product, square = task.total(products), task.total(squares)
    usable = (product * best.effective > 0) & (square > 0)
    ideal = torch.where(usable, product / square, best.effective).to(torch.float32)
    return Scales(storable(task.format, ideal, task.global_scale), zeros, task.global_scale)
