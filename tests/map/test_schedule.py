"""Which cells get more text: those that could change the order or an allocation, within what may be spent."""

import numpy as np
import pytest

from subeight.map.schedule import Known, allocation_stakes, chosen_cells, combined, order_stakes

BYTES = np.array([[8.0, 4.0, 2.0]] * 4)
KEPT = np.full(4, 16.0)


def known(loss: list[list[float]], error: float = 0.01) -> Known:
    log = np.log(np.array(loss))
    return Known(log, np.full_like(log, error), BYTES, KEPT)


def test_neighbours_that_touch_have_stakes_in_the_order() -> None:
    stakes = order_stakes(known([[1e-5, 1e-3, 0.1], [2e-5, 1.001e-3, 1.0], [9e-5, 9e-3, 9.0], [8e-4, 8e-2, 80.0]]))
    assert stakes[0, 1] > 0.1 and stakes[1, 1] > 0.1
    assert stakes[:, 2].max() < 1e-6


def test_a_cell_whose_interval_changes_the_choice_has_a_stake() -> None:
    sure = known([[1e-5, 1e-3, 0.1]] * 4, error=1e-6)
    assert allocation_stakes(sure).max() < 1e-3
    unsure = Known(sure.log, np.where(np.arange(4)[:, None] == 2, 0.5, 1e-6) * np.ones((4, 3)), BYTES, KEPT)
    stakes = allocation_stakes(unsure)
    assert stakes[2].max() > 0.05 and stakes[[0, 1, 3]].max() < 1e-3


def test_no_more_is_spent_than_allowed() -> None:
    rng = np.random.default_rng(0)
    log = rng.normal(-5, 1, (40, 3))
    given = Known(log, np.full_like(log, 0.5), np.tile(BYTES[:1], (40, 1)), np.full(40, 16.0))
    cost = list(rng.integers(1, 10, 40).astype(float))
    chosen = chosen_cells(given, np.ones((40, 3), bool), cost, 60.0)
    assert chosen and sum(cost[place] for place, _ in chosen) <= 60
    assert chosen == chosen_cells(given, np.ones((40, 3), bool), cost, 60.0)
    assert not chosen_cells(given, np.ones((40, 3), bool), cost, 0.0)


def test_settled_formats_read_no_more() -> None:
    given = known([[1e-5, 1e-3, 0.1], [2e-5, 2e-3, 1.0], [9e-5, 9e-3, 9.0], [8e-4, 8e-2, 80.0]], error=1e-4)
    assert chosen_cells(given, np.ones((4, 3), bool), [1.0] * 4, 100.0) == []


def test_a_good_prior_narrows_what_is_known() -> None:
    rng = np.random.default_rng(1)
    truth = np.exp(rng.normal(-5, 1, (60, 1)))
    measured = truth * np.exp(rng.normal(0, 0.5, truth.shape))
    prior = truth * 3 * np.exp(rng.normal(0, 0.1, truth.shape))
    relative = np.full_like(truth, 0.5)
    got = combined(measured, relative, prior, BYTES[:1, :1], KEPT[:1])
    before = np.abs(np.log(measured / truth)).mean()
    assert np.abs(got.log - np.log(truth)).mean() < 0.85 * before
    assert (got.error < 0.5).all()
    blind = combined(measured, relative, np.zeros_like(prior), BYTES[:1, :1], KEPT[:1])
    assert blind.log == pytest.approx(np.log(measured)) and blind.error == pytest.approx(0.5)
