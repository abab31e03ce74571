"""The ratio estimator: exact where the model holds, unbiased by which samples a cell saw, honest intervals."""

import numpy as np
import pytest

from subeight.map.estimate import estimate


def synthetic(seed: int, noise: float, cells: int = 40, samples: int = 16):
    rng = np.random.default_rng(seed)
    mean = np.exp(rng.normal(-5, 1, cells))
    difficulty = np.exp(rng.normal(0, 0.5, samples))
    counts = rng.integers(100, 300, samples).astype(float)
    difficulty /= (difficulty * counts).sum() / counts.sum()
    totals = mean[:, None] * difficulty * counts * np.exp(rng.normal(0, noise, (cells, samples)) - noise**2 / 2)
    return mean, difficulty, counts, totals, rng


def test_without_noise_few_samples_are_enough() -> None:
    mean, difficulty, counts, totals, rng = synthetic(0, 0.0)
    totals[:, 2:][rng.random((40, 14)) < 0.8] = np.nan  # all saw two samples, few the others
    totals[0] = mean[0] * difficulty * counts  # one saw all
    got = estimate(totals, counts)
    assert got.mean == pytest.approx(mean, rel=1e-3)
    assert got.difficulty == pytest.approx(difficulty, rel=1e-3)
    assert (got.relative < 1e-2).all()


def test_intervals_hold_the_truth() -> None:
    inside, count = 0, 0
    for seed in range(30):
        mean, _, counts, totals, _ = synthetic(seed, 0.4)
        totals[10:, 4:] = np.nan  # most cells saw 4 of 16 samples
        low, high = estimate(totals, counts).interval()
        inside += int(((low <= mean) & (mean <= high)).sum())
        count += len(mean)
    assert 0.9 < inside / count < 0.995


def test_a_cell_that_loses_nothing_is_nothing() -> None:
    totals = np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]])
    got = estimate(totals, np.array([10.0, 10.0, 10.0]))
    assert got.mean[0] == 0.0 and got.interval()[1][0] == 0.0
    assert got.mean[1] == pytest.approx(0.2)


def test_a_sample_that_nobody_saw_has_no_difficulty() -> None:
    got = estimate(np.array([[1.0, np.nan], [2.0, np.nan]]), np.array([10.0, 10.0]))
    assert np.isnan(got.difficulty[1]) and got.difficulty[0] == pytest.approx(1.0)
