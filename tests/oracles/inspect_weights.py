"""The x-ray's numbers of one weight in float64 and loops, straight from their definitions."""

import numpy as np


def round_groups(weight, bits, group, exact):
    """Symmetric absmax rounding to the full range of codes, groups of columns; values in `exact` take no part."""
    low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1
    rounded = weight.copy()
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            columns = [c for c in range(start, min(start + group, weight.shape[1])) if not exact[row, c]]
            absmax = max((abs(weight[row, c]) for c in columns), default=0.0)
            scale = bfloat16(absmax / (2 ** (bits - 1) - 0.5)) if absmax else 1.0
            for c in columns:
                rounded[row, c] = min(max(np.rint(weight[row, c] / scale), low), high) * scale
    return rounded


def bfloat16(value):
    """A positive number rounded to the nearest bfloat16, ties to even."""
    mantissa, exponent = np.frexp(np.float32(value))
    return float(np.ldexp(np.rint(np.float64(mantissa) * 256) / 256, exponent))


def relative_error(weight, bits, group=64):
    rounded = round_groups(weight, bits, group, np.zeros(weight.shape, dtype=bool))
    return float(np.linalg.norm(rounded - weight) / np.linalg.norm(weight))


def share(weight, bits, count, group=64):
    """What part of the squared error goes away when the `count` largest values are exact and out of the scales."""
    exact = np.zeros(weight.size, dtype=bool)
    exact[np.argsort(-np.abs(weight).ravel(), kind="stable")[:count]] = True
    before = round_groups(weight, bits, group, np.zeros(weight.shape, dtype=bool)) - weight
    after = round_groups(weight, bits, group, exact.reshape(weight.shape)) - weight
    return 1 - float((after**2).sum() / (before**2).sum())
