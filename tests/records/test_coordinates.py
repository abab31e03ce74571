"""The product's one rule: a comparison moves along one coordinate, or is refused."""

import itertools

import pytest

from subeight.errors import RecordError
from subeight.records import NAMES, Coordinates, Record, differing, fingerprint, require_comparable

A = Coordinates(baseline="b", recipe="r", calibration="c", evaluation="e", stack="s")


def other(**changes):
    return A.model_copy(update=changes)


@pytest.mark.parametrize(("moving", "changed"), list(itertools.product(NAMES, NAMES)))
def test_exactly_the_moving_coordinate_may_differ(moving, changed):
    b = other(**{changed: "2"})
    if moving == changed:
        assert require_comparable(A, b, moving) == []
    else:
        with pytest.raises(RecordError, match=f"{changed} .*--across {changed}") as error:
            require_comparable(A, b, moving)
        assert error.value.exit_status == 2


def test_the_refusal_names_every_difference_and_its_way_out():
    with pytest.raises(RecordError) as error:
        require_comparable(A, other(recipe="2", stack="s2", baseline="b2"))
    message = str(error.value)
    assert "baseline (b and b2)" in message and "stack (s and s2)" in message and "recipe (" not in message
    assert "--across baseline --across stack" in message


def test_across_allows_with_a_warning():
    warnings = require_comparable(A, other(stack="2", recipe="2"), across=["stack"])
    assert len(warnings) == 1 and "stack" in warnings[0]


@pytest.mark.parametrize("name", NAMES[2:])
def test_null_matches_anything_and_unknown_warns(name):
    assert require_comparable(A, other(**{name: None})) == []
    for pair in [(A, other(**{name: "unknown"})), (other(**{name: "unknown"}),) * 2]:
        assert [name in warning for warning in require_comparable(*pair)] == [True]


def test_nothing_may_move_when_nothing_is_asked_about():
    assert require_comparable(A, A, moving=None) == []
    with pytest.raises(RecordError, match="nothing may differ"):
        require_comparable(A, other(recipe="2"), moving=None)


def test_records_are_compared_by_their_coordinates():
    a, b = (Record(kind="evaluate", coordinates=c, numbers={}) for c in (A, other(evaluation="2")))
    with pytest.raises(RecordError, match="evaluation"):
        require_comparable(a, b)
    assert differing(a.coordinates, b.coordinates) == ["evaluation"]


@pytest.mark.parametrize("kwargs", [{"moving": "stak"}, {"across": ["stak"]}])
def test_a_wrong_name_is_answered_with_the_nearest(kwargs):
    with pytest.raises(RecordError, match="did you mean stack"):
        require_comparable(A, A, **kwargs)


def test_fingerprint_ignores_key_order_and_nothing_else():
    assert fingerprint({"a": 1, "b": [1, 2]}) == fingerprint({"b": [1, 2], "a": 1})
    assert len({fingerprint(v) for v in ({"a": 1}, {"a": "1"}, {"a": 2}, [1, 2], [2, 1], None)}) == 6
    assert len(fingerprint("x")) == 16 and int(fingerprint("x"), 16) >= 0
