"""Neither workers, a Ray cluster nor a limit of memory changes what `evaluate` and `compare` find, to the last byte."""

from pathlib import Path

import pytest

from subeight import Where, compare, diagnose, evaluate
from subeight.evals import spread
from subeight.verbs import map as mapped
from tests.verbs import small

pytestmark = pytest.mark.usefixtures("no_check")
TIMES = {"quantize_seconds", "peak_rss_bytes", "checkpoint"}


@pytest.fixture(scope="module")
def asked(house) -> Path:
    rows = [*small.text_rows(12), {"messages": [{"role": "user", "content": "the cat"}], "category": "chat"}]
    return small.write_rows(house.folder / "asked.jsonl", rows)


@pytest.fixture
def fresh_cache(tmp_path, monkeypatch) -> None:
    """No states of an earlier test: the baseline is run again."""
    monkeypatch.setattr("subeight.verbs.options.cache_directory", lambda: tmp_path / "cache")


@pytest.fixture
def small_batches(monkeypatch) -> None:
    monkeypatch.setattr("subeight.evals.passes.BATCH_TOKENS", 128)


def measured(result) -> tuple:
    return result.numbers, (result.directory / "samples.parquet").read_bytes()


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("*.safetensors")}


def compared(result) -> tuple:
    rows = [{key: value for key, value in row.items() if key not in TIMES} for row in result.numbers["rows"]]
    checkpoints = [files_of(Path(row["checkpoint"])) for row in result.numbers["rows"]]
    assert all(checkpoints)
    return rows, checkpoints, result.numbers["pairs"], result.numbers["why"]


@pytest.mark.usefixtures("fresh_cache", "small_batches")
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_limit_of_memory_changes_nothing(house, made, asked, tmp_path, monkeypatch, dtype) -> None:
    numbers = []
    for limit in (None, 20_000):
        monkeypatch.setattr("subeight.verbs.options.cache_directory", lambda at=limit: tmp_path / f"cache-{at}")
        options = house.options(
            out=tmp_path / f"out-{limit}", evals=(str(asked),), dtype=dtype, max_memory=limit, generate=2,
            scratch=tmp_path / "scratch",
        )  # fmt: skip
        numbers.append(measured(evaluate(str(made("rtn").directory), str(house.base), options=options)))
    assert numbers[0] == numbers[1]
    assert list((tmp_path / "scratch").iterdir()) == [], "what lay there is gone"


@pytest.mark.usefixtures("fresh_cache")
def test_a_limit_of_memory_changes_no_map(house, asked, tmp_path) -> None:
    found = []
    for limit in (None, 20_000):
        options = house.options(out=tmp_path / f"map-{limit}", evals=(str(asked),), eval_window=24, max_memory=limit)
        numbers = mapped(str(house.base), ("int4:g32", "int2:g32"), share=0.5, options=options).numbers
        found.append([(cell["place"], cell["format"], cell["view"], cell["kl"]) for cell in numbers["cells"]])
    assert found[0] == found[1] and found[0]


@pytest.mark.usefixtures("fresh_cache")
def test_a_limit_of_memory_changes_no_diagnosis(house, made, asked, tmp_path) -> None:
    found = []
    for limit in (None, 20_000):
        options = house.options(out=tmp_path / f"d-{limit}", evals=(str(asked),), max_memory=limit)
        numbers = diagnose(str(made("rtn").directory), str(house.base), options=options).numbers
        told = [(f["suspect"], f["verdict"]) for f in numbers["findings"] if f["suspect"] != "kernels"]
        found.append((numbers["loss"], numbers["loss_ci"], told))
    assert found[0] == found[1]


@pytest.mark.usefixtures("fresh_cache", "small_batches")
def test_workers_change_nothing(house, made, asked, tmp_path, monkeypatch) -> None:
    candidate = str(made("gptq").directory)
    names = [str(house.gptq), str(house.rtn)]
    alone = house.options(out=tmp_path / "alone", evals=(str(asked),), generate=1)
    expected = measured(evaluate(candidate, str(house.base), options=alone))
    table = compared(compare(str(house.base), names, options=house.options(out=tmp_path / "table")))
    ran: list[int] = []
    known = spread.spread_pass
    monkeypatch.setattr("subeight.evals.scoring.spread_pass", lambda *a: ran.append(len(a[2])) or known(*a))
    for where in (Where(workers=2), Where(workers=2, cluster="local")):
        folder = tmp_path / f"{where.cluster}"
        monkeypatch.setattr("subeight.verbs.options.cache_directory", lambda at=folder: at / "cache")
        options = house.options(out=folder / "one", evals=(str(asked),), generate=1)
        assert measured(evaluate(candidate, str(house.base), workers=where, options=options)) == expected
        both = compare(str(house.base), names, workers=where, options=house.options(out=folder / "table"))
        assert compared(both) == table
    assert len(ran) == 2 * (2 + 3) and ran[0] > 1, "every pass was spread, over several batches"


def test_dry_runs_write_nothing_and_say_what_they_will_take(house, made, tmp_path) -> None:
    options = house.options(out=tmp_path / "out", dry_run=True)
    results = [
        evaluate(str(made("rtn").directory), str(house.base), options=options),
        diagnose(str(made("rtn").directory), str(house.base), options=options),
        mapped(str(house.base), ("int4:g32",), options=options),
    ]
    for result in results:
        found = result.numbers["predicted"]
        assert found["seconds"] >= 0 and found["memory_bytes"] > 0 and found["disk_bytes"] > 0
        assert result.directory is None
    assert not (tmp_path / "out").exists()
