"""How well one weight explains another, and the positive diagonal or the rotation that lies between two of them.

All of it is least squares over many numbers, so it works on weights that were rounded after they were moved.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_ROWS = 8192
_CORRELATED = 0.7  # rounding to 2 bits leaves about 0.9, another weight about 0
_STEP = 0.1


@dataclass(frozen=True)
class Fit:
    """A weight against the baseline's: correlation, slope of the regression, difference relative to its norm."""

    correlation: float
    slope: float
    difference: float
    norm: float = 0.0

    @classmethod
    def of(cls, pairs: Iterable[tuple[Tensor, Tensor]]) -> "Fit":
        """The fit over pairs (baseline, candidate) of equal shapes: parts of one weight."""
        aa = ac = cc = dd = 0.0
        for a, c in pairs:
            a, c = a.float(), c.float()
            aa += float(a.square().sum(dtype=torch.float64))
            cc += float(c.square().sum(dtype=torch.float64))
            ac += float((a * c).sum(dtype=torch.float64))
            dd += float((a - c).square().sum(dtype=torch.float64))
        if aa == 0 or cc == 0:
            same = aa == cc
            return cls(float(same), float(same), 0.0 if same else 1.0, aa**0.5)
        return cls(ac / (aa * cc) ** 0.5, ac / aa, (dd / aa) ** 0.5, aa**0.5)

    @property
    def is_rounding(self) -> bool:
        """Whether rounding alone could have made the difference; coarse rounding may change the slope, fine may not."""
        noise = 1 - self.correlation**2
        return self.correlation >= _CORRELATED and abs(self.slope - 1) <= 0.01 + 2 * noise


def row_pairs(a: Tensor, c: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both weights in float32, some thousand rows at a time."""
    for start in range(0, a.shape[0], _ROWS):
        yield a[start : start + _ROWS].float(), c[start : start + _ROWS].float()


@dataclass(frozen=True)
class Ratios:
    """Per row, the factor between two weights, the inverse of its variance, and whether it can be believed.

    Rows that are not `alive` are zero in both.
    """

    factor: Tensor
    precision: Tensor
    sure: Tensor
    alive: Tensor


def row_ratios(a: Tensor, c: Tensor) -> Ratios:
    """The factors f with c[k] near f[k] * a[k], for weights [rows, n]."""
    a, c = a.double(), c.double()
    aa, ac, cc = a.square().sum(1), (a * c).sum(1), c.square().sum(1)
    alive = (aa > 0) & (cc > 0)
    factor = torch.where(alive, ac / aa, 1.0)
    sure = alive & (ac >= _CORRELATED * (aa * cc).sqrt())
    unexplained = (1 - ac.square() / (aa * cc).clamp_min(1e-300)).clamp_min(1e-12)
    return Ratios(factor, a.shape[1] / unexplained, sure, alive | (aa != cc))


def diagonal(written: Ratios, read: Ratios) -> tuple[Tensor, Tensor] | None:
    """The scale s per channel where its producer was divided by s and its readers multiplied by it, and what is sure.

    None where the two sides do not differ by more than their own disagreement: nothing was moved.
    """
    sure = written.sure & read.sure
    if 2 * int(sure.sum()) < len(sure):
        return None
    up, down = read.factor[sure].log(), written.factor[sure].log()
    moved, noise = (up - down) / 2, (up + down) / 2
    if moved.square().mean().sqrt() <= 3 * noise.square().mean().sqrt() + 1e-6:
        return None
    # Both sides tell s; the one that was rounded more finely, relative to its numbers, tells it better.
    up_weight, down_weight = read.precision[sure], written.precision[sure]
    s = torch.ones_like(written.factor)
    s[sure] = ((up * up_weight - down * down_weight) / (up_weight + down_weight)).exp()
    return s.float(), sure | ~(written.alive & read.alive)


def sharpened(s: Tensor, baseline: Tensor, candidate: Tensor) -> Tensor:
    """`s` made exact where a vector that is not rounded (a bias) was divided by it too."""
    exact = baseline.float() / candidate.float()
    near = torch.isfinite(exact) & ((exact / s - 1).abs() < _STEP)
    return torch.where(near, exact, s)


def norm_ratio(ours: Tensor, theirs: Tensor, exact: float) -> Tensor | None:
    """By what a norm's gain [width] was divided; 1 where its sign changed; None where it differs by rounding only."""
    ratio = torch.where((ours == 0) & (theirs == 0), 1.0, ours / theirs)
    s = torch.where(torch.isfinite(ratio) & (ratio > 0), ratio, 1.0)
    return None if bool(((s - 1).abs() <= 2 * exact).all()) else s


def taken_up(readers: Iterable[Callable[[], Iterable[tuple[Tensor, Tensor]]]], s: Tensor) -> bool:
    """Whether the readers (their parts: baseline, candidate) are nearer with their columns multiplied by `s`.

    A reader's rows may have been scaled as well, so its rows are fitted with a factor each; where that does not decide
    (all of `s` is one number), the plain distance does. Readers that are other weights altogether have no vote.
    """
    votes = 0
    for parts in readers:
        plain, scaled = _Rows.of(parts()), _Rows.of((a.float() * s, c) for a, c in parts())
        if max(plain.explained, scaled.explained) < _CORRELATED**2 * plain.size:
            continue
        gained = scaled.explained - plain.explained
        if abs(gained) <= 1e-3 * (plain.size - max(plain.explained, scaled.explained)):
            gained = plain.distance - scaled.distance
        votes += 1 if gained > 0 else -1
    return votes > 0


@dataclass(frozen=True)
class _Rows:
    """Squared norms: of the candidate, of what a factor for each row of the baseline explains, of the difference."""

    size: float
    explained: float
    distance: float

    @classmethod
    def of(cls, pairs: Iterable[tuple[Tensor, Tensor]]) -> "_Rows":
        size = explained = distance = 0.0
        for a, c in pairs:
            a, c = a.float(), c.float()
            aa, ac = a.square().sum(1, dtype=torch.float64), (a * c).sum(1, dtype=torch.float64)
            size += float(c.square().sum(dtype=torch.float64))
            explained += float((ac.clamp_min(0).square() / aa.clamp_min(1e-300)).sum())
            distance += float((a - c).square().sum(dtype=torch.float64))
        return cls(size, explained, distance)


def procrustes(pairs: Iterable[tuple[Tensor, Tensor]]) -> tuple[Tensor | None, float, float]:
    """The rotation R with c near a @ R, and the relative differences with it and without.

    R is None where the weights do not span the space, so that several would do.
    """
    cross: Tensor | None = None
    aa = cc = 0.0
    for a, c in pairs:
        part = a.double().T @ c.double()
        cross = part if cross is None else cross + part
        aa += float(a.square().sum(dtype=torch.float64))
        cc += float(c.square().sum(dtype=torch.float64))
    assert cross is not None
    plain = max(aa + cc - 2 * float(cross.trace()), 0.0)
    left, sizes, right = torch.linalg.svd(cross)
    turned = max(aa + cc - 2 * float(sizes.sum()), 0.0)
    spans = bool(sizes[-1] > 1e-9 * sizes[0])
    return (left @ right).float() if spans else None, (turned / aa) ** 0.5, (plain / aa) ** 0.5
