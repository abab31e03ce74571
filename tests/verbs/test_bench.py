import pytest

from subeight import bench
from subeight.errors import InputError

pytestmark = pytest.mark.usefixtures("no_check")


def test_both_are_timed_in_turn(house, made, tmp_path):
    options = house.options(out=tmp_path / "bench")
    found = bench(str(made("gptq").directory), batch=(1, 2), prompt=8, tokens=3, rounds=2, options=options)
    rows = found.numbers["rows"]
    assert [row["packed"]["batch"] for row in rows] == [1, 2]
    for row in rows:
        for name in ("packed", "dequantized"):
            low, high = row[name]["decode_spread"]
            assert 0 < low <= row[name]["decode_seconds"] <= high
            assert row[name]["prefill_tokens_per_second"] == row[name]["batch"] * 8 / row[name]["prefill_seconds"]
        wanted = row["dequantized"]["decode_seconds"] / row["packed"]["decode_seconds"]
        assert row["ratio"]["decode"] == pytest.approx(wanted)
    assert found.numbers["weight_bytes"] < found.numbers["dequantized_bytes"]
    assert (tmp_path / "bench" / "record.json").is_file() and len(found.lines) == 2


def test_more_than_the_model_knows(house):
    with pytest.raises(InputError, match="exceed the"):
        bench(str(house.base), prompt=10**6, options=house.options())
