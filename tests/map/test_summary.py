"""The sentences of a map: the worst places, what it cost, and a warning where a format breaks the model."""

from subeight.map.summary import sentences
from tests.map.records import numbers, places


def content() -> dict:
    return numbers(places()) | {"cost": {"share": 0.0871}}


def test_the_worst_places_are_named() -> None:
    size, worst = sentences(content())
    assert size == "9 places in 4 formats, for 8.7% of the block runs of the naive way."
    assert worst.startswith("At int2:g64:sym most is lost in ") and "layers.3" in worst


def test_a_format_that_breaks_the_model_is_called_by_name() -> None:
    broken = content()
    broken["whole"]["int2:g64:sym"]["kl"] *= 3
    *_, said = sentences(broken)
    assert said.startswith("All of it in int2:g64:sym loses") and "4.5 times" in said and "asymmetric" in said
