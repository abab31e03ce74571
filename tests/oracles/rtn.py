"""Rounding to nearest in float64, one weight at a time, against a list of every value that a grid can stand for."""

import math

import numpy as np
import torch

from subeight.formats import GRIDS


def grid_values(grid: str) -> list[float]:
    """Every finite value of a grid, ascending; computed from the format's definition, not from its rounding."""
    if grid.startswith("int"):
        half = 2 ** (int(grid[3:]) - 1)
        return [float(v) for v in range(-half, half)]
    if grid in ("mxfp4", "nvfp4"):
        magnitudes = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0]
        return sorted({sign * m for sign in (1, -1) for m in magnitudes})
    if grid in ("fp8", "fp8_e5m2"):
        mantissa, bias, top = (3, 7, 448.0) if grid == "fp8" else (2, 15, 57344.0)
        values = set()
        for exponent in range(2 ** (7 - mantissa)):
            for m in range(2**mantissa):
                fraction = m / 2**mantissa + (exponent > 0)
                values.add(fraction * 2.0 ** (max(exponent, 1) - bias))
        kept = [v for v in values if v <= top]
        return sorted({sign * v for sign in (1, -1) for v in kept})
    assert grid == "nf4"
    return sorted(float(v) for v in GRIDS[grid].values(torch.arange(16, dtype=torch.uint8)))


def nearest(value: float, grid: list[float]) -> float:
    """The value of the grid next to `value`, by looking at all of them."""
    return min(grid, key=lambda g: (abs(g - value), g))


def round_one(value: float, scale: float, zero: float, grid: list[float]) -> float:
    """One weight rounded under one scale and zero point."""
    return (nearest(value / scale + zero, grid) - zero) * scale


def absmax_scales(weight: np.ndarray, bits: int, group: int) -> np.ndarray:
    """Symmetric scales [out, groups] in bfloat16: the largest value of a group is half a step beyond the last code."""
    rows, width = weight.shape
    scales = np.ones((rows, math.ceil(width / group)))
    for r in range(rows):
        for g in range(scales.shape[1]):
            largest = max(abs(v) for v in weight[r, g * group : (g + 1) * group])
            if largest > 0:
                scales[r, g] = to_bfloat16(largest / (2 ** (bits - 1) - 0.5))
    return scales


def to_bfloat16(value: float) -> float:
    return float(torch.tensor(value, dtype=torch.float32).to(torch.bfloat16))


def rtn(weight: np.ndarray, scales: np.ndarray, zeros: np.ndarray, group: int, grid: list[float]) -> np.ndarray:
    """The rounded weight; scales and zeros are [out, groups]."""
    rounded = np.empty_like(weight)
    for r in range(weight.shape[0]):
        for j in range(weight.shape[1]):
            rounded[r, j] = round_one(weight[r, j], scales[r, j // group], zeros[r, j // group], grid)
    return rounded


def clipped_scales(
    weight: np.ndarray, inputs: np.ndarray, bits: int, group: int, ratios: tuple[float, ...]
) -> np.ndarray:
    """For each row and group the ratio of its absmax scale that changes the group's outputs least, on real tokens."""
    full, grid = absmax_scales(weight, bits, group), grid_values(f"int{bits}")
    best = full.copy()
    for r in range(weight.shape[0]):
        for g in range(full.shape[1]):
            part = weight[r, g * group : (g + 1) * group]
            x = inputs[:, g * group : (g + 1) * group]
            least = math.inf
            for ratio in ratios:
                scale = to_bfloat16(np.float32(full[r, g]) * np.float32(ratio))
                error = np.array([round_one(v, scale, 0.0, grid) - v for v in part])
                loss = float(np.sum((x @ error) ** 2))
                if loss < least * (1 - 1e-6):
                    best[r, g], least = scale, loss
    return best
