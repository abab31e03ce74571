"""The excess of a rounded weight, group by group in plain Python."""

import math

import numpy as np


def excess(weight, found, plain, group):
    """Root of (squared distance of `found`) / (that of plain rounding): of all, and of the median group."""
    weight, found, plain = (np.asarray(value, dtype=np.float64) for value in (weight, found, plain))
    ratios, errors, units = [], 0.0, 0.0
    for row in range(weight.shape[0]):
        for start in range(0, weight.shape[1], group):
            columns = range(start, min(start + group, weight.shape[1]))
            error = sum((weight[row, c] - found[row, c]) ** 2 for c in columns)
            unit = sum((weight[row, c] - plain[row, c]) ** 2 for c in columns)
            ratios.append(error / unit)
            errors, units = errors + error, units + unit
    return math.sqrt(errors / units), math.sqrt(sorted(ratios)[len(ratios) // 2])
