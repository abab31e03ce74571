"""What a static scale of the inputs loses, in float64, value by value: the share of each token's own square."""

import numpy as np


def lost(inputs: np.ndarray, limit: float, bits: int) -> float:
    """Mean over tokens of the squared error as a share of the token's mean square."""
    step, total = 2 * limit / (2**bits - 1), 0.0
    for token in inputs.astype(np.float64):
        square = np.mean(token**2)
        for value in token:
            code = min(max(round(value / step), -(2 ** (bits - 1))), 2 ** (bits - 1) - 1)
            total += (code * step - value) ** 2 / square
    return total / inputs.size


def best_range(inputs: np.ndarray, bits: int, tries: int = 64) -> float:
    """The best of ranges a quarter of an octave apart, from the largest value down."""
    largest = float(np.abs(inputs).max())
    ranges = [largest * 2 ** (-at / 4) for at in range(tries)]
    return min(ranges, key=lambda limit: lost(inputs, limit, bits))
