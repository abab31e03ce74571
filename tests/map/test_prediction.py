"""From sums to wholes: through the uniform points, rising, with an interval that covers what it says."""

import math
from pathlib import Path

import pytest

from subeight.map.mapfile import MapFile, read_map
from subeight.map.prediction import Prediction, uniform
from tests.map.records import ADDITIVITY, BITS, SAMPLES, loss_of, numbers, places, read, write


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


def with_mixtures(folder: Path, factors: tuple[float, ...]) -> MapFile:
    """A map with mixtures between int2 and int4, each losing its sum of cells times a factor."""
    rows = places()
    content = numbers(rows)
    inside = [row for row in rows if row["block"] is not None]
    content["mixtures"] = []
    for number, factor in enumerate(factors, 1):
        narrow = {row["name"] for row in inside[: number * len(inside) // (len(factors) + 1)]}
        formats = {row["name"]: "int2:g64:sym" if row["name"] in narrow else "int4:g64:sym" for row in inside}
        loss = factor * sum(loss_of(row, formats[row["name"]]) for row in inside)
        kept = {row["name"]: None for row in rows if row["block"] is None}
        content["mixtures"].append(
            {"formats": formats | kept, "kl": loss, "kl_ci": [0.9 * loss, 1.1 * loss], "samples": [loss] * SAMPLES}
        )
    return read_map(write(folder, content))


def test_mixtures_say_how_the_sums_of_mixtures_add_up(tmp_path: Path) -> None:
    found = with_mixtures(tmp_path, (1.1, 1.2, 1.3))
    prediction = Prediction(found)
    for mixture in found.mixtures:
        expected = prediction.expected(dict(mixture.formats))
        assert expected.loss == pytest.approx(mixture.whole.loss) and expected.low < expected.loss < expected.high
    between = dict(found.mixtures[1].formats)
    between[next(name for name, format in between.items() if format == "int4:g64:sym")] = "int2:g64:sym"
    expected = prediction.expected(between)
    assert 1.2 < expected.loss / expected.sum < 1.3  # and not the 1.5 of the uniform recipes between


def test_the_less_sums_tell_the_wider_the_interval(tmp_path: Path) -> None:
    regular, scattered = (
        with_mixtures(tmp_path / str(number), factors)
        for number, factors in enumerate([(1.2, 1.2, 1.2, 1.2), (1.0, 1.6, 1.0, 1.6)])
    )
    formats = dict(regular.mixtures[1].formats)
    a, b = (Prediction(found).expected(formats) for found in (regular, scattered))
    assert math.log(b.high / b.low) > 2 * math.log(a.high / a.low)


def test_other_text_is_less_certain(tmp_path: Path) -> None:
    found = with_mixtures(tmp_path, (1.1, 1.2, 1.3))
    expected = Prediction(found).expected(uniform(found, "int2:g64:sym"))
    low, high = expected.other
    assert low < expected.low and high > expected.high
