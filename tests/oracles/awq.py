"""AWQ's search in float64 as the paper writes it: Lin et al., https://arxiv.org/abs/2306.00978, equations 4 and 5.

The loss is the squared change of the outputs on the tokens themselves; no Hessian occurs here.
"""

import numpy as np

from tests.oracles.rtn import absmax_scales, grid_values, rtn


def awq(
    weights: list[np.ndarray],
    inputs: np.ndarray,
    bits: int,
    group: int,
    channels: list[int],
    producers: int,
    steps: int,
    duo: bool,
) -> np.ndarray:
    """`s` per producer channel: the best of the grid, or ones."""
    width = inputs.shape[1]
    mean = [float(np.mean(np.abs(inputs[:, j]))) for j in range(width)]
    size = _sizes(weights, group)
    best, least = np.ones(producers), loss(weights, inputs, np.ones(width), bits, group)
    for step in range(steps):
        a = step / steps
        wanted = [mean[j] ** a / (max(size[j] ** (1 - a), 1e-4) if duo else 1.0) for j in range(width)]
        s = np.ones(producers)
        for p in range(producers):
            readers = [max(wanted[j], 1e-4) for j in range(width) if channels[j] == p]
            s[p] = np.prod(readers) ** (1 / len(readers))
        s /= np.sqrt(s.max() * s.min())
        error = loss(weights, inputs, np.array([s[c] for c in channels]), bits, group)
        if error < least:
            best, least = s, error
    return best


def loss(weights: list[np.ndarray], inputs: np.ndarray, s: np.ndarray, bits: int, group: int) -> float:
    total = 0.0
    for weight in weights:
        scaled = weight * s
        scales = absmax_scales(scaled, bits, group)
        rounded = rtn(scaled, scales, np.zeros_like(scales), group, grid_values(f"int{bits}"))
        total += float(np.sum(((inputs / s) @ rounded.T - inputs @ weight.T) ** 2))
    return total


def _sizes(weights: list[np.ndarray], group: int) -> list[float]:
    stacked = np.concatenate(weights)
    sizes = []
    for j in range(stacked.shape[1]):
        start = j // group * group
        shares = [abs(row[j]) / max(abs(v) for v in row[start : start + group]) for row in stacked]
        sizes.append(sum(shares) / len(shares))
    return sizes
