"""SignRound of one linear in float64, value by value: the gradient through rounding by hand, then one step.

y = x Q^T with Q = (code - zero) scale factor, code = round(position). Straight through means d code / d position = 1;
after a step every position is brought back to where it rounds to one of the levels.
"""

import numpy as np

FIRST, SECOND = 0.9, 0.99  # how much of Adam's moments stays


class Linear:
    """The parameters of one weight [out, in] in groups along its rows; every scale has a factor."""

    def __init__(self, weight, codes, scales, zeros, group: int, bits: int) -> None:
        self.first, self.last = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
        self.group, self.scales = group, scales
        self.zeros = np.zeros_like(scales) if zeros is None else zeros
        self.factor = np.ones_like(scales)
        self.position = np.zeros(weight.shape)
        for row in range(weight.shape[0]):
            for column in range(weight.shape[1]):
                at = row, column // group
                wanted = weight[row, column] / scales[at] + self.zeros[at]
                off = min(max(wanted - codes[row, column], -0.49), 0.49)
                self.position[row, column] = codes[row, column] + off
        self.moments = [np.zeros_like(self.position) for _ in range(2)] + [np.zeros_like(scales) for _ in range(2)]
        self.count = 0

    def codes(self) -> np.ndarray:
        return np.round(self.position)

    def weight(self) -> np.ndarray:
        """The rounded weight [out, in]."""
        found = np.zeros_like(self.position)
        codes = self.codes()
        for row in range(found.shape[0]):
            for column in range(found.shape[1]):
                at = row, column // self.group
                found[row, column] = (codes[row, column] - self.zeros[at]) * self.scales[at] * self.factor[at]
        return found

    def step(self, x: np.ndarray, y: np.ndarray, size: float, descent: str) -> None:
        """One step on the mean squared distance of x Q^T from y."""
        slope = 2 / y.size * (x @ self.weight().T - y).T @ x
        codes = self.codes()
        to_position, to_factor = np.zeros_like(self.position), np.zeros_like(self.factor)
        for row in range(slope.shape[0]):
            for column in range(slope.shape[1]):
                at = row, column // self.group
                to_position[row, column] = slope[row, column] * self.scales[at] * self.factor[at]
                to_factor[at] += slope[row, column] * (codes[row, column] - self.zeros[at]) * self.scales[at]
        self.count += 1
        moved = self.position - size * self._direction(to_position, 0, descent)
        self.position = np.minimum(np.maximum(moved, self.first - 0.49), self.last + 0.49)
        self.factor -= size / 3 * self._direction(to_factor, 2, descent)

    def _direction(self, slope: np.ndarray, at: int, descent: str) -> np.ndarray:
        if descent == "sign":
            return np.sign(slope)
        self.moments[at] = FIRST * self.moments[at] + (1 - FIRST) * slope
        self.moments[at + 1] = SECOND * self.moments[at + 1] + (1 - SECOND) * slope**2
        mean = self.moments[at] / (1 - FIRST**self.count)
        quiet = 0.3 * np.sqrt(np.mean(slope**2))
        return mean / (np.sqrt(self.moments[at + 1] / (1 - SECOND**self.count)) + quiet)
