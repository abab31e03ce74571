"""HQQ's turns in float64, by group: shrink what the codes miss, then fit zero point and scale to the rest."""

import numpy as np

from tests.oracles.rtn import nearest, round_one


def objective(weights: np.ndarray, scale: float, zero: float, grid: list[float], p: float) -> float:
    """The mean of |e|^p of one group."""
    return float(np.mean([abs(w - round_one(w, scale, zero, grid)) ** p for w in weights]))


def turn(
    weights: np.ndarray, scale: float, zero: float, grid: list[float], p: float, strength: float, affine: bool
) -> tuple[float, float]:
    """Scale (before it is rounded to its type) and zero point after one turn over one group."""
    codes, kept = [], []
    for w in weights:
        code = nearest(w / scale + zero, grid)
        miss = w / scale - (code - zero)
        size = max(abs(miss) - max(abs(miss), 1e-8) ** (p - 1) / strength, 0.0)
        codes.append(code)
        kept.append(w / scale - np.sign(miss) * size)
    if affine:
        zero = min(max(float(np.round(np.mean(np.array(codes) - np.array(kept)))), grid[0]), grid[-1])
    values = np.array(codes) - zero
    product, square = float(np.mean(values * kept)), float(np.mean(values * values))
    return (scale * product / square if product > 0 and square > 0 else scale), zero
