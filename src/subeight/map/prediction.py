"""From the sum of the cells to what the whole model will lose, with an interval.

Single losses do not add up. By how much they miss is read off allocations that the map measured as wholes (a map
without them has the uniform recipes), along a monotone curve through these points in logarithms; below the smallest the
ratio stays (slope 1), above the largest the last slope goes on.

Two intervals. On the map's own text: every cell is redrawn by its paired error, in the points and in what is predicted
alike, and every draw is off by as much as the nearest points are when each is predicted from the others. On other text
of the same kind: the documents are resampled too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from subeight.map.curve import Curve
from subeight.map.mapfile import MapFile, WholeLoss

Floats = npt.NDArray[np.float64]
Formats = dict[str, str | None]  # the format of every place by its name

DRAWS = 400
_TINY = 1e-12
ENOUGH = 3  # mixtures below which the uniform recipes between are points too


@dataclass(frozen=True)
class Expected:
    """The sum of the cells, and what the whole is expected to lose, on the map's text and on other text like it."""

    sum: float
    loss: float
    low: float
    high: float
    other: tuple[float, float]

    def to_dict(self) -> dict[str, object]:
        """As it stands in a record."""
        return {"sum": self.sum, "kl": self.loss, "kl_ci": [self.low, self.high], "kl_other_ci": list(self.other)}


class Prediction:
    """Predicts for one map; the draws are the same in every call, so that differences are paired."""

    def __init__(self, found: MapFile, seed: int = 0, draws: int = DRAWS) -> None:
        rng = np.random.default_rng(seed)
        self.kept = (found.kept_weights, found.kept_bytes)
        self._place = {place.name: number for number, place in enumerate(found.places)}
        self._format = {format: number for number, format in enumerate(found.formats)}
        loss, relative = _cells(found)
        tokens = np.asarray([sample.tokens for sample in found.samples])
        times = _resampled(found, tokens, draws, rng)
        noise = np.exp(relative[None] * rng.standard_normal((draws, *relative.shape)))
        # the first draw is what was measured; then [draws, places, formats]
        self._own = np.concatenate([loss[None], loss[None] * noise])
        texts = np.concatenate([np.ones((1, 1, len(found.formats))), _harder(found, times, tokens)[:, None, :]])
        self._other = self._own * texts
        anchors = _anchors(found)
        cells = [self._at(formats) for formats, _ in anchors]
        losses = np.asarray([[whole.loss] * (draws + 1) for _, whole in anchors]).reshape(-1, draws + 1)
        elsewhere = np.asarray([[1.0, *_hardness(whole.samples, times, tokens)] for _, whole in anchors])
        self._curves = _curves(self._own, cells, losses)
        self._other_curves = _curves(self._other, cells, losses * elsewhere.reshape(losses.shape))
        self._luck = np.concatenate([[0.0], rng.standard_normal(draws)])

    def expected(self, formats: Formats) -> Expected:
        """What a model with these formats will lose."""
        at = self._at(formats)
        if at is None:
            return Expected(0.0, 0.0, 0.0, 0.0, (0.0, 0.0))
        own, other = (
            np.asarray([curve.at(s) for s, curve in zip(_sums(drawn, at), curves, strict=True)])
            for drawn, curves in ((self._own, self._curves), (self._other, self._other_curves))
        )
        total = float(_sums(self._own[:1], at)[0])
        missed = np.exp(self._luck * self._curves[0].error_near(total))
        (low, high), (least, most) = (_ends(own * missed), _ends(other * missed))
        return Expected(total, float(own[0]), low, high, (least, most))

    def sum_for(self, loss: float) -> float:
        """The sum of cells at which the whole is expected to lose this much."""
        return self._curves[0].inverse(loss)

    def _at(self, formats: Formats) -> tuple[npt.NDArray[np.int_], npt.NDArray[np.int_]] | None:
        """The cells that are quantized, by number."""
        found = [(self._place[name], self._format[format]) for name, format in formats.items() if format is not None]
        if not found:
            return None
        rows, columns = np.asarray(found).T
        return rows, columns


def _anchors(found: MapFile) -> list[tuple[Formats, WholeLoss]]:
    """What was measured as a whole: mixtures between both ends, or where a map has none the uniform recipes."""
    mixtures = [(dict(mixture.formats), mixture.whole) for mixture in found.mixtures]
    ends = {found.formats[0], found.formats[-1]} if len(mixtures) >= ENOUGH else set(found.formats)
    return mixtures + [(uniform(found, format), found.whole[format]) for format in found.formats if format in ends]


def _curves(drawn: Floats, cells: Sequence[tuple | None], losses: Floats) -> list[Curve]:
    """Of every draw, the curve through the sums of the anchors and what they lose."""
    sums = np.asarray([_sums(drawn, at) if at is not None else np.zeros(len(drawn)) for at in cells])
    return [Curve(one, other) for one, other in zip(sums.T, losses.T, strict=True)]


def _sums(drawn: Floats, at: tuple) -> Floats:
    return np.asarray(drawn[:, at[0], at[1]].sum(1))


def _ends(drawn: Floats) -> tuple[float, float]:
    low, high = np.quantile(drawn[1:], [0.025, 0.975])
    return float(min(low, drawn[0])), float(max(high, drawn[0]))


def _cells(found: MapFile) -> tuple[Floats, Floats]:
    """Loss and relative error [places, formats]; 0 where nothing was measured."""
    cells = [[found.cell(place.name, format) for format in found.formats] for place in found.places]
    loss = [[max(cell.loss, 0.0) if cell else 0.0 for cell in row] for row in cells]
    relative = [[cell.relative if cell else 0.0 for cell in row] for row in cells]
    return np.asarray(loss), np.asarray(relative)


def _resampled(found: MapFile, tokens: Floats, draws: int, rng: np.random.Generator) -> Floats:
    """The tokens of every sample in each draw of documents [draws, samples]."""
    names = {name: number for number, name in enumerate(dict.fromkeys(s.document for s in found.samples))}
    if len(names) < 2:
        return np.tile(tokens, (draws, 1))
    document = np.asarray([names[sample.document] for sample in found.samples])
    return rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=draws)[:, document] * tokens


def _harder(found: MapFile, times: Floats, tokens: Floats) -> Floats:
    """By how much harder each draw of documents is for single cells [draws, formats]."""
    rows = [[1.0 if q is None else q for q in found.difficulty[format]] for format in found.formats]
    return np.stack([_hardness(row, times, tokens) for row in rows], 1)


def _hardness(losses: Sequence[float], times: Floats, tokens: Floats) -> Floats:
    """The mean of losses per token in each draw, relative to that of all documents [draws]."""
    if len(losses) != times.shape[1]:
        return np.ones(len(times))
    hard = np.asarray(losses)
    usual = max(float(tokens @ hard / tokens.sum()), _TINY)
    return np.maximum(times @ hard / np.maximum(times.sum(1), _TINY) / usual, _TINY)


def uniform(found: MapFile, format: str | None, skip: Sequence[str] = ()) -> Formats:
    """Every place of the blocks in one format; embeddings and head kept."""
    return {p.name: format if p.inside and p.name not in skip else None for p in found.places}
