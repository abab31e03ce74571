"""The curve from sums to wholes: through its points, rising, invertible, and honest about what it misses."""

import math

import numpy as np
import pytest

from subeight.map.curve import Curve

SUMS = np.array([0.01, 0.05, 0.3, 1.0])
LOSSES = np.array([0.012, 0.05, 0.36, 3.0])


def test_it_goes_through_its_points_and_rises_between() -> None:
    curve = Curve(SUMS, LOSSES)
    assert [curve.at(x) for x in SUMS] == pytest.approx(LOSSES)
    values = [curve.at(x) for x in np.geomspace(1e-4, 10, 300)]
    assert (np.diff(values) > 0).all()


def test_below_the_ratio_stays_and_above_the_last_slope_goes_on() -> None:
    curve = Curve(SUMS, LOSSES)
    assert curve.at(0.001) == pytest.approx(0.0012)
    slope = math.log(3.0 / 0.36) / math.log(1.0 / 0.3)
    assert curve.at(2.0) == pytest.approx(3.0 * 2**slope)
    assert curve.at(0.0) == 0.0


def test_the_inverse_undoes_it() -> None:
    curve = Curve(SUMS, LOSSES)
    for loss in np.geomspace(1e-6, 100, 40):
        assert curve.at(curve.inverse(loss)) == pytest.approx(loss, rel=1e-9)
    assert curve.inverse(0.0) == 0.0


def test_points_out_of_order_or_empty_do_not_bend_it() -> None:
    falling = Curve(np.array([0.3, 0.1, 0.0, 0.2]), np.array([0.5, 0.2, 0.1, 0.1]))
    assert falling.at(0.1) == pytest.approx(0.2) and falling.at(0.3) == pytest.approx(0.5)
    for curve in (Curve(np.array([]), np.array([])), Curve(np.array([0.0]), np.array([0.0]))):
        assert curve.at(0.7) == pytest.approx(0.7) and curve.inverse(0.7) == 0.7 and curve.error_near(0.7) == 0.0
    single = Curve(np.array([0.1]), np.array([0.2]))
    assert single.at(0.05) == pytest.approx(0.1) and single.at(0.4) == pytest.approx(0.8)
    assert single.inverse(0.8) == pytest.approx(0.4)


def test_what_a_point_is_off_counts_near_it() -> None:
    straight = Curve(2.0 ** np.arange(9), 3 * 2.0 ** np.arange(9))
    assert straight.missed == pytest.approx(np.zeros(7), abs=1e-12) and straight.error_near(4.0) < 1e-12
    losses = 3 * 2.0 ** np.arange(9)
    losses[1] *= 1.2
    bent = Curve(2.0 ** np.arange(9), losses)
    assert bent.missed[0] == pytest.approx(math.log(1.2), rel=0.05)
    assert bent.error_near(2.0) > 0.05 > 1e-3 > bent.error_near(128.0)
