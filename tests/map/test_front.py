"""The front falls, no rival is below it, and the heuristic has the size that it should meet."""

from itertools import pairwise
from pathlib import Path

import pytest

from subeight.map.choices import units_of
from subeight.map.front import front, rivals
from subeight.map.prediction import Prediction
from tests.map.records import BITS, read


@pytest.fixture
def found(tmp_path: Path):
    return read(tmp_path)


def test_the_front_falls_from_the_narrowest_to_all_kept(found) -> None:
    points = front(units_of(found), Prediction(found), points=30)
    assert points[0].bits == pytest.approx(2.25) and points[-1].bits == pytest.approx(16.0)
    assert all(a.bits < b.bits and a.expected.sum > b.expected.sum for a, b in pairwise(points))
    assert all(a.expected.loss >= b.expected.loss for a, b in pairwise(points))
    row = points[5].to_dict()
    assert sum(row["counts"].values()) == len(found.places) and row["counts"]["kept"] >= 1


def test_no_rival_lies_below_the_front(found) -> None:
    prediction = Prediction(found)
    points = front(units_of(found), prediction, points=40)
    for rival in rivals(found, prediction, 3.8):
        near = [point.expected.sum for point in points if point.bits <= rival.bits + 0.1]  # a step of the front
        assert near and min(near) <= rival.expected.sum * 1.0001


def test_uniform_rivals_are_as_measured(found) -> None:
    uniform = {rival.name: rival for rival in rivals(found, Prediction(found), 4.0) if rival.measured}
    assert set(uniform) == set(BITS)
    assert all(uniform[name].bits == pytest.approx(bits) for name, bits in BITS.items())
    assert uniform["int2:g64:sym"].expected.loss == found.whole["int2:g64:sym"].loss


def test_the_heuristic_widens_both_ends_as_far_as_it_fits(found) -> None:
    rival = rivals(found, Prediction(found), 3.8)[-1]
    assert rival.name == "first and last blocks wider (2 of 4)" and rival.bits == pytest.approx(3.75)
    got = [rival.formats[f"model.layers.{block}.mlp.down_proj"] for block in range(4)]
    assert got == ["int4:g64:sym", "int3:g64:sym", "int3:g64:sym", "int4:g64:sym"]
    assert not rival.measured
    assert len(rivals(found, Prediction(found), 2.0)) == len(BITS)  # nothing fits
