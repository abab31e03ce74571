"""A lock is small, the same every time, and refuses what cannot be verified later."""

import json

import pytest

from subeight import evaluate, lock
from subeight.errors import InputError, RecordError
from subeight.lock.lockfile import LARGEST, Lock
from subeight.lock.outcomes import read_outcomes
from subeight.records import Run
from tests.verbs import small

pytestmark = pytest.mark.usefixtures("no_check")


@pytest.fixture
def measured(house, made, tmp_path):
    """The run directory of an evaluation of the GPTQ checkpoint."""
    options = house.options(out=tmp_path / "run", eval_tokens=700)
    evaluate(str(made("gptq").directory), str(house.base), options=options)
    return tmp_path / "run"


def test_a_lock_holds_what_fixes_the_number(house, measured, tmp_path):
    path = tmp_path / "git" / "subeight.lock"
    result = lock(str(measured), options=house.options(out=path))
    held, record = Lock.read(path), Run.open(measured).read()
    assert path.stat().st_size < LARGEST
    assert held.coordinates == record.coordinates == result.record.coordinates
    assert held.numbers["kl"] == record.numbers["kl"]
    assert held.numbers["categories"].keys() == {"prose", "code"}
    assert held.numbers["categories"]["code"]["kl_ci"] == record.numbers["categories"]["code"]["kl_ci"]
    assert held.stack == record.stack and held.distributions["torch"] == record.stack["packages"]["torch"]
    assert {"numpy", "pytest", "subeight"} <= held.distributions.keys()
    assert held.baseline.label == "base" and not held.baseline.name.startswith("/")
    assert {probe["name"].split()[0] for probe in held.probes} == {
        "linear", "attention", "rmsnorm", "softmax", "activation", "head", "unpack", "dequantize",
    }  # fmt: skip
    assert all(probe["error"] <= probe["bound"] for probe in held.probes)
    assert result.directory is None and "commit it together" in result.lines[0]


def test_token_ids_and_outcomes_lie_beside_it_by_hash(house, measured, tmp_path):
    path = tmp_path / "subeight.lock"
    lock(str(measured), options=house.options(out=path))
    held = Lock.read(path)
    assert held.outcomes.file == f"subeight.lock.d/{held.outcomes.sha256[:16]}.parquet"
    sequences, outcome = read_outcomes(path, held.outcomes)
    rows = Run.open(measured).read_samples()
    assert outcome.count.tolist() == [row["tokens"] for row in rows]
    assert outcome.mean("kl") == pytest.approx(held.numbers["kl"], rel=1e-12)
    first = small.tokenizer()(small.text_rows(40)[0]["text"], add_special_tokens=False)["input_ids"]
    assert list(sequences.samples[0].ids) == first[: len(sequences.samples[0].ids)]


def test_the_same_run_gives_the_same_bytes(house, measured, tmp_path):
    for name in ("one", "two"):
        lock(str(measured), options=house.options(out=tmp_path / name / "subeight.lock"))
    one, two = ((tmp_path / name / "subeight.lock").read_text() for name in ("one", "two"))
    assert one == two
    assert len(list((tmp_path / "one").rglob("*.parquet"))) == 1


def test_answers_of_the_baseline_and_choices_are_kept_as_ids(house, made, tmp_path):
    rows = [
        *small.text_rows(3),
        {"messages": [{"role": "user", "content": "the cat"}]},
        {"text": "the cat", "choices": ["the mat", "a barn"], "answer": 1},
    ]
    evals = small.write_rows(tmp_path / "evals.jsonl", rows)
    options = house.options(out=tmp_path / "run", evals=(str(evals),))
    evaluate(str(made("gptq").directory), str(house.base), options=options)
    lock(str(tmp_path / "run"), options=house.options(out=tmp_path / "l.lock"))
    sequences, outcome = read_outcomes(tmp_path / "l.lock", Lock.read(tmp_path / "l.lock").outcomes)
    assert (sequences.scored, len(sequences.samples)) == (5, 7)
    assert (sequences.question, sequences.option, sequences.answers) == ((0, 0), (0, 1), (1,))
    assert all(sample.count for sample in sequences.samples[:5])
    assert len(outcome.count) == 5


def test_a_quantize_run_is_evaluated_first(house, made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = house.options(out=tmp_path / "subeight.lock", eval_tokens=300)
    result = lock(str(made("gptq").directory), options=options)
    assert result.numbers["kl"] > 0
    assert Lock.read(tmp_path / "subeight.lock").candidate.label == "made-gptq"


def test_what_cannot_be_locked_is_one_sentence(house, made, measured, tmp_path):
    options = house.options(out=tmp_path / "subeight.lock")
    with pytest.raises(RecordError, match="not a run directory"):
        lock(str(house.base), options=options)
    with pytest.raises(RecordError, match=r"--tolerance was given 'kl=much'"):
        lock(str(measured), tolerance="kl=much", options=options)
    with pytest.raises(RecordError, match=r"--tolerance was given 'ppl=1'"):
        lock(str(measured), tolerance="ppl=1", options=options)
    other = small.save_llama(tmp_path / "other", seed=1)
    with pytest.raises(RecordError, match="measured against another baseline than other"):
        lock(str(measured), baseline=str(other), options=options)
    assert not (tmp_path / "subeight.lock").exists()


def test_a_run_of_another_stack_is_refused(house, measured, tmp_path):
    record = json.loads((measured / "record.json").read_text())
    record["stack"]["packages"]["torch"] = "2.0.0"
    (measured / "record.json").write_text(json.dumps(record))
    with pytest.raises(RecordError, match=r"another stack than this one \(torch: 2.0.0 -> "):
        lock(str(measured), options=house.options(out=tmp_path / "subeight.lock"))


def test_changed_text_is_refused(house, tmp_path):
    evals = small.write_rows(tmp_path / "evals.jsonl", small.text_rows(4))
    options = house.options(out=tmp_path / "run", evals=(str(evals),))
    evaluate(str(house.base), str(house.base), options=options)
    small.write_rows(evals, small.text_rows(3))
    with pytest.raises(RecordError, match=r"is not what .* measured"):
        lock(str(tmp_path / "run"), options=house.options(out=tmp_path / "subeight.lock"))
    evals.unlink()
    with pytest.raises(InputError, match="no file or source"):
        lock(str(tmp_path / "run"), options=house.options(out=tmp_path / "subeight.lock"))


def test_choices_alone_are_refused(house, tmp_path):
    row = {"messages": [{"role": "assistant", "content": "the cat"}], "choices": ["the mat", "a barn"], "answer": 0}
    evals = small.write_rows(tmp_path / "evals.jsonl", [row] * 3)
    evaluate(str(house.base), str(house.base), options=house.options(out=tmp_path / "run", evals=(str(evals),)))
    with pytest.raises(RecordError, match="scored no token, only choices"):
        lock(str(tmp_path / "run"), options=house.options(out=tmp_path / "subeight.lock"))


def test_a_damaged_lock_is_one_sentence(house, measured, tmp_path):
    path = tmp_path / "subeight.lock"
    lock(str(measured), tolerance="0.25", options=house.options(out=path))
    assert Lock.read(path).tolerance == {"kl": 0.25, "top1": 0.01, "nll": 0.01}
    good = path.read_text()
    for text, said in {
        good[: len(good) // 2]: "is not a lock .it is not JSON",
        "{}": "is not a lock; give",
        good.replace('"schema": 1', '"schema": 9'): "has schema 9",
        good.replace('"tolerance"', '"tolerances"'): "is damaged at tolerance",
        good.replace('"window": 512', '"window": "512"'): "damaged at evaluation.window",
    }.items():
        path.write_text(text)
        with pytest.raises(RecordError, match=said):
            Lock.read(path)
    with pytest.raises(RecordError, match="cannot be read"):
        Lock.read(tmp_path / "missing.lock")
