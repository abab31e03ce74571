"""GPTQ in float64 as the paper writes it: Frantar et al., https://arxiv.org/abs/2210.17323, algorithm 1 with B = 1.

The inverse Hessian's upper Cholesky factor is computed as such, every later column is updated after every column, and
scales belong to the column's own group whatever the order (`static groups` of the authors' code).
"""

import numpy as np

from tests.oracles.rtn import round_one


def gptq(
    weight: np.ndarray,
    hessian: np.ndarray,
    scales: np.ndarray,
    zeros: np.ndarray,
    group: int,
    grid: list[float],
    damping: float,
    by_activation: bool,
) -> np.ndarray:
    """The rounded weight [out, in], columns in their own places."""
    rows, width = weight.shape
    order, upper = _order_and_factor(hessian, damping, by_activation)
    left = weight[:, order].copy()
    rounded = np.empty_like(weight)
    for a, j in enumerate(order):
        for r in range(rows):
            rounded[r, j] = round_one(left[r, a], scales[r, j // group], zeros[r, j // group], grid)
            error = (left[r, a] - rounded[r, j]) / upper[a, a]
            for b in range(a, width):
                left[r, b] -= error * upper[a, b]
    return rounded


def costs(hessian: np.ndarray, damping: float, by_activation: bool) -> np.ndarray:
    """What a unit of error in each column costs once the later ones have made up for it: OBQ's 1 / [F^-1]_qq."""
    order, upper = _order_and_factor(hessian, damping, by_activation)
    found = np.empty(len(order))
    for a, j in enumerate(order):
        found[j] = 1 / upper[a, a] ** 2
    return found


def _order_and_factor(hessian: np.ndarray, damping: float, by_activation: bool) -> tuple[list[int], np.ndarray]:
    width = len(hessian)
    order = sorted(range(width), key=lambda j: -hessian[j, j]) if by_activation else list(range(width))
    damped = np.empty((width, width))
    for a, i in enumerate(order):
        for b, j in enumerate(order):
            damped[a, b] = hessian[i, j]
    mean = float(np.mean(np.diag(hessian)))
    for a in range(width):
        damped[a, a] += damping * mean
        if damped[a, a] == 0:
            damped[a, a] = mean
    return order, np.linalg.cholesky(np.linalg.inv(damped)).T  # inverse = upper^T upper
