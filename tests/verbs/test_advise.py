import pytest

from subeight import advise
from subeight.errors import InputError

pytestmark = pytest.mark.usefixtures("no_check")


def test_every_scheme_is_foretold_and_measured(house, tmp_path):
    options = house.options(out=tmp_path / "advise", dtype="bfloat16")
    found = advise(str(house.base), batch=(1, 2), context=24, options=options)
    rows = {row["name"]: row for row in found.numbers["rows"]}
    assert rows["W4A16"]["weight_bytes"] < rows["W8A8"]["weight_bytes"] < rows["bf16"]["weight_bytes"]
    for row in rows.values():
        assert row["measured"]["prefill_seconds"] > 0 and set(row["measured"]["decode_seconds"]) == {"1", "2"}
        assert row["foretold"]["prefill"]["bound"] in ("memory", "products", "calls")
    assert rows["bf16"]["measured"]["kernels"]["prompt"] == "bf16"
    assert found.numbers["advice"] and found.lines[-1] == found.numbers["advice"][-1]


@pytest.mark.parametrize(
    "changed, words", [({"goal": "speed"}, "allowed are latency"), ({"context": 10**6}, "leaves no room")]
)
def test_bad_input(house, tmp_path, changed, words):
    with pytest.raises(InputError, match=words):
        advise(str(house.base), **changed, options=house.options(out=tmp_path / "advise"))
    assert not (tmp_path / "advise").exists()
