"""From sums to wholes: through the uniform points, rising, with an interval that covers what it says."""

from pathlib import Path

import pytest

from subeight.map.mapfile import read_map
from subeight.map.prediction import Prediction, uniform
from tests.map.records import ADDITIVITY, BITS, loss_of, numbers, places, read, write


def test_uniform_recipes_are_predicted_as_measured(tmp_path: Path) -> None:
    found = read(tmp_path)
    prediction = Prediction(found)
    for format in BITS:
        expected = prediction.expected(uniform(found, format))
        assert expected.loss == pytest.approx(found.whole[format].loss)
        assert expected.loss == pytest.approx(ADDITIVITY * expected.sum)
        assert expected.low <= expected.loss <= expected.high


def test_between_them_it_rises_and_below_them_the_ratio_stays(tmp_path: Path) -> None:
    content = numbers(places())
    for format, factor in zip(BITS, (1.0, 1.2, 2.0, 4.0), strict=True):  # less additive the more is lost
        content["whole"][format]["kl"] *= factor
    found = read_map(write(tmp_path, content))
    prediction = Prediction(found)
    mixed = uniform(found, "int3:g64:sym")
    previous = prediction.expected(mixed).loss
    for name in [name for name, format in mixed.items() if format]:
        mixed[name] = "int2:g64:sym"
        now = prediction.expected(mixed).loss
        assert now > previous
        previous = now
    single = uniform(found, None) | {"model.layers.1.mlp.down_proj": "int8:g64:sym"}
    expected = prediction.expected(single)
    assert expected.loss / expected.sum == pytest.approx(ADDITIVITY)
    assert prediction.expected(uniform(found, None)).loss == 0.0


def test_a_sum_is_found_for_a_loss(tmp_path: Path) -> None:
    found = read(tmp_path)
    prediction = Prediction(found)
    for format in BITS:
        expected = prediction.expected(uniform(found, format))
        assert prediction.sum_for(expected.loss) == pytest.approx(expected.sum)


def test_a_measured_whole_that_falls_is_made_to_rise(tmp_path: Path) -> None:
    content = numbers(places())
    content["whole"]["int3:g64:sym"]["kl"] = content["whole"]["int4:g64:sym"]["kl"] / 2
    found = read_map(write(tmp_path, content))
    prediction = Prediction(found)
    losses = [prediction.expected(uniform(found, format)).loss for format in reversed(found.formats)]
    assert losses == sorted(losses, reverse=True)


def test_the_interval_is_of_texts_and_cells_and_the_same_every_time(tmp_path: Path) -> None:
    narrow, wide = read(tmp_path / "a", spread=1.01), read(tmp_path / "b", spread=3.0)
    alone = uniform(narrow, None) | {"model.layers.1.mlp.down_proj": "int2:g64:sym"}
    half = [p.high - p.low for p in (Prediction(narrow).expected(alone), Prediction(wide).expected(alone))]
    assert half[1] > 2 * half[0] > 0
    assert Prediction(wide, seed=3).expected(alone) == Prediction(wide, seed=3).expected(alone)
    assert Prediction(wide, seed=3).expected(alone) != Prediction(wide, seed=4).expected(alone)


def test_one_document_and_no_error_give_no_interval(tmp_path: Path) -> None:
    content = numbers(places(), spread=1.0)
    content["samples"] = [row | {"document": "only"} for row in content["samples"]]
    expected = Prediction(found := read_map(write(tmp_path, content))).expected(uniform(found, "int4:g64:sym"))
    assert (expected.low, expected.high) == pytest.approx((expected.loss, expected.loss), rel=1e-12)


def test_a_difficulty_that_nothing_saw_is_ordinary(tmp_path: Path) -> None:
    content = numbers(places(), loss_of)
    content["difficulty"]["int2:g64:sym"][3] = None
    found = read_map(write(tmp_path, content))
    assert Prediction(found).expected(uniform(found, "int2:g64:sym")).high > 0
