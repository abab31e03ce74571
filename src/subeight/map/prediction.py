"""From the sum of the cells to what the whole model will lose, with an interval.

Single losses do not add up: what the uniform recipes lose as a whole, beside the sum of their cells, says by how much.
Between these points the logarithms are interpolated; below the smallest the ratio stays (slope 1), above the largest
the last slope goes on. The interval resamples the evaluation's documents and redraws every cell by its paired error;
what the interpolation itself does wrong is not in it, so `allocate --verify` measures.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from subeight.map.mapfile import MapFile

Floats = npt.NDArray[np.float64]
Formats = dict[str, str | None]  # the format of every place by its name

DRAWS = 400
_TINY = 1e-12


@dataclass(frozen=True)
class Expected:
    """The sum of the cells, and what the whole is expected to lose."""

    sum: float
    loss: float
    low: float
    high: float

    def to_dict(self) -> dict[str, object]:
        """As it stands in a record."""
        return {"sum": self.sum, "kl": self.loss, "kl_ci": [self.low, self.high]}


class Prediction:
    """Predicts for one map; the draws are the same in every call, so that differences are paired."""

    def __init__(self, found: MapFile, seed: int = 0, draws: int = DRAWS) -> None:
        rng = np.random.default_rng(seed)
        self._place = {place.name: number for number, place in enumerate(found.places)}
        self._format = {format: number for number, format in enumerate(found.formats)}
        self._loss, relative = _cells(found)
        texts, wholes = _resampled(found, draws, rng)
        noise = np.exp(relative[None] * rng.standard_normal((draws, *relative.shape)))
        # the first draw is what was measured; then [draws, places, formats]
        self._drawn = np.concatenate([self._loss[None], self._loss[None] * noise * texts[:, None, :]])
        inside = np.asarray([place.inside for place in found.places])
        sums = np.where(inside[None, :, None], self._drawn, 0.0).sum(1)  # [draws + 1, formats]
        measured = np.asarray([found.whole[format].loss for format in found.formats])
        losses = np.concatenate([measured[None], measured[None] * wholes])
        self._points = [_rising(one, other) for one, other in zip(sums, losses, strict=True)]

    def expected(self, formats: Formats) -> Expected:
        """What a model with these formats will lose."""
        at = [(self._place[name], self._format[f]) for name, f in formats.items() if f is not None]
        if not at:
            return Expected(0.0, 0.0, 0.0, 0.0)
        rows, columns = np.asarray(at).T
        sums = self._drawn[:, rows, columns].sum(1)
        whole = np.asarray([_interpolated(s, points) for s, points in zip(sums, self._points, strict=True)])
        low, high = np.quantile(whole[1:], [0.025, 0.975])
        return Expected(float(sums[0]), float(whole[0]), float(min(low, whole[0])), float(max(high, whole[0])))

    def sum_for(self, loss: float) -> float:
        """The sum of cells at which the whole is expected to lose this much."""
        sums, losses = self._points[0]
        return _interpolated(loss, (losses, sums))


def _cells(found: MapFile) -> tuple[Floats, Floats]:
    """Loss and relative error [places, formats]; 0 where nothing was measured."""
    cells = [[found.cell(place.name, format) for format in found.formats] for place in found.places]
    loss = [[max(cell.loss, 0.0) if cell else 0.0 for cell in row] for row in cells]
    relative = [[cell.relative if cell else 0.0 for cell in row] for row in cells]
    return np.asarray(loss), np.asarray(relative)


def _resampled(found: MapFile, draws: int, rng: np.random.Generator) -> tuple[Floats, Floats]:
    """By how much harder each draw of documents is [draws, formats]: for single cells, and for whole models."""
    names = {name: number for number, name in enumerate(dict.fromkeys(s.document for s in found.samples))}
    one = np.ones((draws, len(found.formats)))
    if len(names) < 2:
        return one, one
    document = np.asarray([names[sample.document] for sample in found.samples])
    tokens = np.asarray([sample.tokens for sample in found.samples])
    times = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)[:, document] * tokens
    weight = np.maximum(times.sum(1), _TINY)
    cells, wholes = one.copy(), one.copy()
    for number, format in enumerate(found.formats):
        hard = np.asarray([1.0 if q is None else q for q in found.difficulty[format]])
        seen = np.asarray(found.whole[format].samples)
        cells[:, number] = times @ hard / weight / max(float(tokens @ hard / tokens.sum()), _TINY)
        if len(seen) == len(tokens):
            wholes[:, number] = times @ seen / weight / max(float(tokens @ seen / tokens.sum()), _TINY)
    return np.maximum(cells, _TINY), np.maximum(wholes, _TINY)


def _rising(sums: Floats, losses: Floats) -> tuple[Floats, Floats]:
    """The points with a positive sum and loss, the smallest first, losses made rising."""
    good = (sums > _TINY) & (losses > _TINY)
    order = np.argsort(sums[good], kind="stable")
    first, second = sums[good][order], np.maximum.accumulate(losses[good][order])
    keep = np.concatenate([[True], (np.diff(first) > 0) & (np.diff(second) > 0)]) if len(first) else good[:0]
    return first[keep], second[keep]


def _interpolated(value: float, points: tuple[Floats, Floats]) -> float:
    """The other coordinate on the line through the points, in logarithms."""
    first, second = points
    if value <= 0:
        return 0.0
    if not len(first):
        return float(value)
    if value <= first[0] or len(first) == 1:
        return float(second[0] * value / first[0])
    x, y = np.log(first), np.log(second)
    if value <= first[-1]:
        return float(np.exp(np.interp(np.log(value), x, y)))
    slope = (y[-1] - y[-2]) / (x[-1] - x[-2])
    return float(np.exp(y[-1] + slope * (np.log(value) - x[-1])))


def uniform(found: MapFile, format: str | None, skip: Sequence[str] = ()) -> Formats:
    """Every place of the blocks in one format; embeddings and head kept."""
    return {p.name: format if p.inside and p.name not in skip else None for p in found.places}
