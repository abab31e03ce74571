"""What a static scale of the inputs loses, in float64, value by value."""

import numpy as np


def lost(inputs: np.ndarray, limit: float, bits: int) -> float:
    """Mean squared error."""
    step, total = 2 * limit / (2**bits - 1), 0.0
    for token in inputs.astype(np.float64):
        for value in token:
            code = min(max(round(value / step), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
            total += (code * step - value) ** 2
    return total / inputs.size


def best_range(inputs: np.ndarray, bits: int, tries: int = 64) -> float:
    """The best of ranges a quarter of an octave apart, from the largest value down."""
    largest = float(np.abs(inputs).max())
    ranges = [largest * 2 ** (-at / 4) for at in range(tries)]
    return min(ranges, key=lambda limit: lost(inputs, limit, bits))
