"""A rising curve through points of (sum of single losses, loss of the whole), in logarithms of both."""

import math
from functools import cached_property

import numpy as np
import numpy.typing as npt
from scipy.interpolate import PchipInterpolator
from scipy.optimize import brentq

Floats = npt.NDArray[np.float64]

_TINY = 1e-12
_NEAR = 3  # points by which the error at a place is judged


class Curve:
    """Monotone through the points with a positive sum and loss: the cubic of Fritsch and Carlson (1980).

    Without any point it is the identity.
    """

    def __init__(self, sums: Floats, losses: Floats) -> None:
        good = (sums > _TINY) & (losses > _TINY)
        order = np.argsort(sums[good], kind="stable")
        x, y = np.log(sums[good][order]), np.maximum.accumulate(np.log(losses[good][order]))
        keep = np.concatenate([[True], (np.diff(x) > 0) & (np.diff(y) > 0)]) if len(x) else good[:0]
        self._x, self._y = x[keep], y[keep]
        self._inside = PchipInterpolator(self._x, self._y) if len(self._x) > 1 else None

    def at(self, value: float) -> float:
        """The loss of the whole where the single ones come to `value`."""
        return math.exp(self._log(math.log(value))) if value > 0 else 0.0

    def inverse(self, loss: float) -> float:
        """The sum at which the whole loses this much."""
        if loss <= 0:
            return 0.0
        if not len(self._x):
            return loss
        target, wide = math.log(loss), abs(math.log(loss)) + 50.0
        low, high = self._x[0] - wide, self._x[-1] + wide * self._steepness
        return math.exp(brentq(lambda x: self._log(x) - target, low, high, xtol=1e-14))

    def error_near(self, value: float) -> float:
        """How far, in the logarithm, the nearest inner points are from what the others say: root of the mean square."""
        if value <= 0 or not len(self.missed):
            return 0.0
        nearest = np.argsort(np.abs(self._x[1:-1] - math.log(value)), kind="stable")[:_NEAR]
        return float(np.sqrt(np.mean(np.square(self.missed[nearest]))))

    @cached_property
    def missed(self) -> Floats:
        """By how much, in the logarithm, each inner point is off the curve through the others."""
        found = []
        for at in range(1, len(self._x) - 1):
            others = PchipInterpolator(np.delete(self._x, at), np.delete(self._y, at))
            found.append(self._y[at] - float(others(self._x[at])))
        return np.asarray(found)

    def _log(self, x: float) -> float:
        if not len(self._x):
            return x
        if x <= self._x[0]:
            return float(self._y[0] + x - self._x[0])
        if self._inside is None or x > self._x[-1]:
            return float(self._y[-1] + (x - self._x[-1]) / self._steepness)
        return float(self._inside(x))

    @property
    def _steepness(self) -> float:
        """Sum over loss beyond the last point, in logarithms: the inverse of the last slope."""
        if len(self._x) < 2:
            return 1.0
        return float((self._x[-1] - self._x[-2]) / (self._y[-1] - self._y[-2]))
