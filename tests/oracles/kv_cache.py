"""What a layer's cache should give back: all tokens kept in full, and which of them have been rounded, run by run."""

from collections.abc import Callable

import numpy as np

Line = Callable[[np.ndarray], np.ndarray]  # one group of numbers to what its codes stand for


class Side:
    """Keys or values [batch, heads, tokens, dim]; `run` tokens are rounded at a time, groups along them or across."""

    def __init__(self, line: Line | None, run: int, along_tokens: bool, group: int, window: int, sinks: int) -> None:
        self.line, self.run, self.along_tokens, self.group = line, run, along_tokens, group
        self.window, self.sinks = window, sinks
        self.exact: np.ndarray | None = None
        self.rounded = 0  # tokens after the sinks

    def update(self, states: np.ndarray) -> np.ndarray:
        """What the call that brings `states` attends to."""
        self.exact = states if self.exact is None else np.concatenate([self.exact, states], 2)
        seen = self.seen()
        if self.line is not None:
            while self.exact.shape[2] - self.sinks - self.rounded - self.window >= self.run:
                self.rounded += self.run
        return seen

    def seen(self) -> np.ndarray:
        """All tokens, those rounded by now as their codes stand."""
        assert self.exact is not None
        found = self.exact.copy()
        batch, heads, _, dim = found.shape
        for start in range(self.sinks, self.sinks + self.rounded, self.run):
            for b in range(batch):
                for h in range(heads):
                    part = found[b, h, start : start + self.run]
                    if self.along_tokens:
                        for d in range(dim):
                            part[:, d] = self.line(part[:, d])
                    else:
                        for t in range(self.run):
                            for first in range(0, dim, self.group):
                                part[t, first : first + self.group] = self.line(part[t, first : first + self.group])
        return found


def symmetric(bits: int) -> Line:
    """Integers from -2^(bits - 1), scale the largest size over half of all steps, rounded to bf16."""

    def line(values: np.ndarray) -> np.ndarray:
        largest = np.abs(values).max()
        if largest == 0:
            return values * 0
        half = 2 ** (bits - 1)
        scale = _bf16(np.float32(largest) / np.float32(half - 0.5))
        return np.clip(np.rint(np.float32(values) / scale), -half, half - 1) * float(scale)

    return line


def _bf16(value: np.float32) -> np.float32:
    bits = int(np.float32(value).view(np.uint32))
    return np.uint32((bits + 0x7FFF + ((bits >> 16) & 1)) & 0xFFFF0000).view(np.float32)
