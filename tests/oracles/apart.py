"""What isolating values gains, and what a product of some rank can make up for, in float64 and the slow way."""

import itertools

import numpy as np


def rounding_error(values: np.ndarray, cost: np.ndarray, levels: int, peak: float) -> float:
    """What plain symmetric rounding of one group costs: absmax scale, `levels` codes from -levels / 2 on."""
    largest = np.abs(values).max()
    scale = largest / peak if largest > 0 else 1.0
    codes = np.clip(np.round(values / scale), -levels // 2, levels // 2 - 1)
    return float((cost * (values - codes * scale) ** 2).sum())


def best_gain(values: np.ndarray, cost: np.ndarray, count: int, levels: int, peak: float) -> float:
    """The most that taking `count` values out of a group gains, by trying all ways."""
    whole = rounding_error(values, cost, levels, peak)
    gains = []
    for chosen in itertools.combinations(range(len(values)), count):
        rest = values.copy()
        rest[list(chosen)] = 0.0
        gains.append(whole - rounding_error(rest, cost, levels, peak))
    return max(gains)


def output_error(lost: np.ndarray, inputs: np.ndarray) -> float:
    """The squared error of the outputs, summed."""
    return float(np.square(inputs @ lost.T).sum())


def least_output_error(lost: np.ndarray, inputs: np.ndarray, rank: int) -> float:
    """What is left of it after the best correction of this rank: the rest of the outputs' singular values."""
    values = np.linalg.svd(inputs @ lost.T, compute_uv=False)
    return float(np.square(values[rank:]).sum())
