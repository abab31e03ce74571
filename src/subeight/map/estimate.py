"""From what some samples lost in some cells to every cell's mean over the whole text, with a paired interval.

Samples differ in how hard they are, and they are hard for all cells of a format alike. So the loss of cell c on sample
d is taken to be a_c x q_d x its tokens, q_d the sample's difficulty: a ratio estimator, whose error is only what is
left after that. A cell that saw few samples is thereby compared with one that saw many as if both had seen all.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import stats as scipy_stats

Floats = npt.NDArray[np.float64]

_ROUNDS = 50  # of alternating between cells and samples; it converges in a few
_OWN = 4  # samples' worth of belief in the spread that all cells of a format have together
_TINY = 1e-12  # nats: below this nothing is lost


@dataclass(frozen=True)
class Estimates:
    """Of the cells of one format: mean loss per token, its relative standard error, degrees of freedom.

    `difficulty` [samples] is 1 on average over tokens; NaN where no cell saw the sample.
    """

    mean: Floats
    relative: Floats
    freedom: Floats
    difficulty: Floats

    def interval(self, level: float = 0.95) -> tuple[Floats, Floats]:
        """The paired interval of each mean; log-normal, since losses are positive and their errors relative."""
        t = scipy_stats.t.ppf(0.5 + level / 2, np.maximum(self.freedom, 1))
        spread = np.exp(np.minimum(t * self.relative, 50.0))
        return self.mean / spread, self.mean * spread


def estimate(totals: Floats, counts: Floats) -> Estimates:
    """Estimates from nats [cells, samples], NaN where a cell did not see a sample, and tokens [samples]."""
    seen = np.isfinite(totals)
    value = np.where(seen, np.maximum(totals, 0.0), 0.0)
    mean, difficulty = _alternated(value, seen, counts)
    expected = mean[:, None] * difficulty[None, :] * counts[None, :]
    weight = np.where(seen, difficulty * counts, 0.0)
    samples = seen.sum(1)
    with np.errstate(divide="ignore", invalid="ignore"):
        # the variance of a total is taken to grow with what is expected of it
        squares = np.where(seen, (value - expected) ** 2 / (mean[:, None] * np.maximum(expected, _TINY)), 0.0).sum(1)
        squares = np.where(mean > _TINY, squares, 0.0)
        enough = (samples >= 2) & (mean > _TINY)
        freedom = np.maximum(samples - 1, 0).astype(np.float64)
        pooled = squares[enough].sum() / max(freedom[enough].sum(), 1.0) if enough.any() else weight.sum(1).mean()
        spread = (squares + _OWN * pooled) / (freedom + _OWN)
        relative = np.sqrt(spread / np.maximum(weight.sum(1), _TINY))
    known = np.where(seen.any(0), difficulty, np.nan)
    return Estimates(mean, relative, freedom + _OWN, known)


def _alternated(value: Floats, seen: npt.NDArray[np.bool_], counts: Floats) -> tuple[Floats, Floats]:
    """a [cells] and q [samples], so that the sums over each cell's and over each sample's seen entries are right."""
    difficulty = np.ones(len(counts))
    mean = np.zeros(len(value))
    reached = seen.any(0)
    for _ in range(_ROUNDS):
        weight = np.where(seen, difficulty * counts, 0.0).sum(1)
        mean = value.sum(1) / np.maximum(weight, _TINY)
        # every cell speaks with the same weight, whatever it loses
        heard = seen & (mean > _TINY)[:, None]
        shares = np.where(heard, value / np.maximum(mean, _TINY)[:, None], 0.0).sum(0)
        difficulty = np.where(heard.any(0), shares / np.maximum(heard.sum(0) * counts, _TINY), 1.0)
        scale = (difficulty * counts)[reached].sum() / counts[reached].sum() if reached.any() else 1.0
        difficulty = difficulty / max(scale, _TINY)
    weight = np.where(seen, difficulty * counts, 0.0).sum(1)
    return value.sum(1) / np.maximum(weight, _TINY), difficulty
