"""Records go through JSON unchanged, and what is not a record is refused in one sentence."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from subeight.errors import RecordError
from subeight.records import Coordinates, Record

POINT = Coordinates(baseline="b1", recipe="r1", calibration=None, evaluation="e1", stack="unknown")


def make(**changes):
    fields = {"kind": "evaluate", "coordinates": POINT, "numbers": {"kl": 0.031}} | changes
    return Record(**fields)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.text(), json_values, max_size=4))
def test_json_round_trip_is_exact(numbers):
    record = make(numbers=numbers, settings={"window": 512}, command=["subeight", "evaluate"])
    assert Record.from_json(record.to_json()) == record


def test_the_contract_fields_stand_in_the_json():
    values = json.loads(make(seconds=1.5, peak_rss_bytes=7).to_json())
    assert values["schema"] == 1
    assert values["coordinates"]["stack"] == "unknown" and values["coordinates"]["calibration"] is None
    assert (values["seconds"], values["peak_rss_bytes"], values["kind"]) == (1.5, 7, "evaluate")


def test_numpy_and_paths_become_plain_json():
    record = make(numbers={"kl": np.float32(0.5), "ci": (np.float64(1), 2), "n": np.int64(3), "at": Path("a/b")})
    assert record.numbers == {"kl": 0.5, "ci": [1.0, 2], "n": 3, "at": "a/b"}
    assert type(record.numbers["n"]) is int


def test_non_finite_numbers_are_null_and_named():
    record = make(numbers={"kl_max": float("inf"), "rows": [{"kl": float("nan")}]}, warnings=["first"])
    assert record.numbers == {"kl_max": None, "rows": [{"kl": None}]}
    assert record.warnings[0] == "first"
    assert [warning.split()[0] for warning in record.warnings[1:]] == ["numbers.kl_max", "numbers.rows[0].kl"]


def test_what_json_cannot_hold_is_refused_by_place():
    with pytest.raises(RecordError, match=r"numbers\.x\[0\] is a object"):
        make(numbers={"x": [object()]})


@pytest.mark.parametrize(
    "changes",
    [
        {"speed": 1},
        {"kind": "Not a kind"},
        {"kind": ""},
        {"seconds": -1.0},
        {"peak_rss_bytes": 1.5},
        {"schema": 2},
    ],
)
def test_fields_are_strict(changes):
    with pytest.raises(ValidationError):
        make(**changes)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("{", "is not JSON"),
        ("[1]", "has no `schema`"),
        ('{"kind": "x"}', "has no `schema`"),
        ('{"schema": 2}', "schema 2, and this Subeight reads schema 1"),
        ('{"schema": 1, "kind": "x", "numbers": {}}', "coordinates: field required"),
        ('{"schema": 1, "kind": "x", "numbers": {}, "coordinates": {"phase": "1"}}', "coordinates.phase"),
    ],
)
def test_bad_json_is_one_sentence(text, says, tmp_path):
    file = tmp_path / "record.json"
    file.write_text(text)
    with pytest.raises(RecordError, match=says) as error:
        Record.read(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)


def test_read_takes_a_file_or_a_run_directory(tmp_path):
    (tmp_path / "record.json").write_text(make().to_json())
    assert Record.read(tmp_path).numbers == Record.read(tmp_path / "record.json").numbers == {"kl": 0.031}
    with pytest.raises(RecordError, match=r"other.json cannot be read"):
        Record.read(tmp_path / "other.json")
