"""A budget in its own unit: milliseconds count what was measured, and what no linear takes is paid first."""

from itertools import product
from pathlib import Path

import pytest

from subeight.errors import SubeightError
from subeight.map.budget import parse_budget
from subeight.map.choices import monotone
from subeight.map.decision import Decision
from subeight.map.explain import Explainer
from subeight.map.mapfile import MapFile
from subeight.map.spend import Latency
from tests.map import records

REST = 2e-3
SPEED = {None: 1.0, "int8:g64:sym": 0.7, "int4:g64:sym": 1.1, "int3:g64:sym": 0.3, "int2:g64:sym": 0.25}  # int4 is slow


def timed(found: MapFile) -> Latency:
    seconds = {
        (name, format): 1e-8 * speed * place.weights / len(place.linears)
        for place in found.places
        for name in place.linears
        for format, speed in SPEED.items()
    }
    return Latency(512, REST, seconds)


@pytest.fixture
def found(tmp_path: Path) -> MapFile:
    return records.read(tmp_path, rows=records.places(blocks=2))


def test_the_least_loss_in_the_time_that_is_left(found: MapFile) -> None:
    """Against every combination."""
    latency, limit = timed(found), 5e-3
    made = Decision(found, parse_budget("latency 5 ms"), latency=latency)
    places = found.places
    losses = [{None: 0.0, **monotone(place, found)} for place in places]
    best = min(
        sum(own[format] for own, format in zip(losses, picked, strict=True))
        for picked in product(SPEED, repeat=len(places))
        if REST + sum(latency.of(place, format) for place, format in zip(places, picked, strict=True)) <= limit
    )
    assert made.made.loss == pytest.approx(best, rel=1e-9)
    assert REST + made.made.cost <= limit * (1 + 1e-9)
    assert "int4:g64:sym" not in made.formats.values()  # neither fast nor careful


def test_its_numbers_and_its_words(found: MapFile) -> None:
    decision = Decision(found, parse_budget("latency 4 ms"), latency=timed(found))
    told = decision._latency()
    kept = sum(1e-8 * place.weights for place in found.places)
    assert told == {
        "seconds": pytest.approx(REST + decision.made.cost),
        "context": 512,
        "rest_seconds": REST,
        "seconds_baseline": pytest.approx(REST + kept),
    }
    rows = Explainer(found, decision.made, 1.0, timed=True).choices()
    assert any("µs" in row["reason"] for row in rows) and not any(" kB" in row["reason"] for row in rows)


def test_what_cannot_be_met_names_the_nearest_that_can(found: MapFile) -> None:
    with pytest.raises(SubeightError, match=r"the nearest that can be met is 'latency \d\.\d{3} ms'") as raised:
        Decision(found, parse_budget("latency 1 ms"), latency=timed(found)).made  # noqa: B018
    nearest = str(raised.value).rsplit("'", 2)[1]
    assert Decision(found, parse_budget(nearest), latency=timed(found)).made.loss > 0
