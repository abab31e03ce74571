import json
import shutil

import pytest

from subeight import evaluate, quantize
from subeight.errors import InputError, RecordError
from subeight.evals import passes
from subeight.records import Record, Run
from subeight.verbs import evaluate as verb
from tests.oracles import evals_scoring as oracle
from tests.verbs import small

pytestmark = pytest.mark.usefixtures("no_check")


@pytest.fixture
def foreign(made, tmp_path):
    """A checkpoint as another tool would leave it: without a record of ours."""
    directory = shutil.copytree(made("gptq").directory, tmp_path / "foreign")
    for name in ("record.json", "run.json", "plan.json", "recipe.yaml", "report.html"):
        (directory / name).unlink()
    return directory


def test_the_baseline_against_itself_is_exactly_zero(house, tmp_path):
    rows = [*small.text_rows(6), {"messages": [{"role": "user", "content": "the cat"}]}]
    evals = small.write_rows(tmp_path / "evals.jsonl", rows)
    for dtype in ("float32", "bfloat16"):
        options = house.options(out=tmp_path / dtype, evals=(str(evals),), generate=2, dtype=dtype)
        result = evaluate(str(house.base), str(house.base), options=options)
        assert result.numbers["kl"] == result.numbers["kl_max"] == 0.0
        assert result.numbers["kl_ci"] == [0.0, 0.0]
        assert result.numbers["top1"] == 1.0
        assert result.numbers["ppl"] == result.numbers["ppl_baseline"]
        assert result.numbers["generation"]["agreement"] == 1.0
        assert result.record.coordinates.recipe is None
        assert result.numbers["bits_per_weight"] == 32.0


def test_numbers_are_those_of_plain_transformers_on_a_dense_export(house, tmp_path):
    made = quantize(str(house.base), str(house.rtn), to="dense", options=house.options(out=tmp_path / "dense"))
    options = house.options(out=tmp_path / "out", eval_window=40)
    numbers = evaluate(str(made.directory), str(house.base), options=options).numbers
    tokenizer = small.tokenizer()
    rows = []
    for row in small.text_rows(40):
        ids = tokenizer(row["text"], add_special_tokens=False)["input_ids"]
        parts = [ids[at : at + 40] for at in range(0, len(ids), 40)]
        rows += [(part, range(1, len(part))) for part in parts]
    expected = oracle.measure(oracle.load(house.base), oracle.load(made.directory), rows)
    assert numbers["tokens"] == len(expected.kl)
    assert numbers["kl"] == pytest.approx(float(expected.kl.mean()), rel=2e-5)
    assert numbers["ppl"] == pytest.approx(expected.ppl, rel=2e-5)
    assert numbers["ppl_baseline"] == pytest.approx(expected.ppl_baseline, rel=2e-5)
    assert numbers["top1"] == pytest.approx(float(expected.agree.double().mean()))
    assert numbers["kl_ci"][0] < numbers["kl"] < numbers["kl_ci"][1]


def test_the_record_and_its_samples(house, made, tmp_path):
    candidate = made("gptq")
    options = house.options(out=tmp_path / "out", eval_tokens=300, seed=5)
    result = evaluate(str(candidate.directory), str(house.base), options=options)
    record = Record.read(tmp_path / "out")
    assert record == result.record
    own = candidate.record.coordinates
    assert (record.coordinates.recipe, record.coordinates.calibration) == (own.recipe, own.calibration)
    assert record.coordinates.baseline == own.baseline
    assert record.settings["eval_tokens"] == 300
    assert record.settings["seed"] == 5
    assert record.settings["evals"] == [str(house.evals)]
    assert record.numbers["bits_per_weight"] == 4.5
    rows = Run.open(tmp_path / "out").read_samples()
    assert sum(row["tokens"] for row in rows) == record.numbers["tokens"]
    assert set(record.numbers["categories"]) == {"prose", "code"}


def test_other_text_is_another_evaluation(house, tmp_path):
    found = set()
    for name, changed in {"a": {}, "b": {"eval_tokens": 200}, "c": {"eval_window": 20}}.items():
        result = evaluate(str(house.base), str(house.base), options=house.options(out=tmp_path / name, **changed))
        found.add(result.record.coordinates.evaluation)
    assert len(found) == 3


def test_the_baseline_runs_once(house, made, tmp_path, monkeypatch):
    labels = []
    real = passes.run_pass

    def counted(model, *args):
        labels.append(model.label)
        return real(model, *args)

    monkeypatch.setattr(passes, "run_pass", counted)
    monkeypatch.setattr("subeight.evals.scoring.run_pass", counted)
    candidate = str(made("gptq").directory)
    results = [
        evaluate(candidate, str(house.base), options=house.options(out=tmp_path / name, eval_tokens=333))
        for name in ("one", "two")
    ]
    assert labels == ["base", "made-gptq", "made-gptq"]
    assert results[0].numbers == results[1].numbers


def test_another_tools_checkpoint_is_unknown_and_warns(house, foreign, made, tmp_path):
    result = evaluate(str(foreign), str(house.base), options=house.options(out=tmp_path / "out"))
    assert (result.record.coordinates.recipe, result.record.coordinates.calibration) == ("unknown", "unknown")
    assert any("no record of ours" in warning for warning in result.record.warnings)
    known = evaluate(str(made("gptq").directory), str(house.base), options=house.options(out=tmp_path / "known"))
    assert known.numbers["kl"] == result.numbers["kl"]
    assert not any("no record of ours" in warning for warning in known.record.warnings)


def test_another_baseline_is_refused_by_name_unless_it_is_meant(house, made, tmp_path):
    other = small.save_llama(tmp_path / "other", seed=1)
    candidate = str(made("gptq").directory)
    with pytest.raises(RecordError, match=r"differ in baseline .*--across baseline"):
        evaluate(candidate, str(other), options=house.options(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
    allowed = house.options(out=tmp_path / "out", across=("baseline",))
    result = evaluate(candidate, str(other), options=allowed)
    assert any("baseline" in warning for warning in result.record.warnings)
    assert result.numbers["kl"] > 0.5


def test_another_vocabulary_is_refused_before_anything_runs(house, tmp_path, monkeypatch):
    monkeypatch.setattr("subeight.evals.scoring.reference_pass", None)
    other = small.save_llama(tmp_path / "other", vocab_size=300)
    with pytest.raises(InputError, match="vocabulary of 300"):
        evaluate(str(other), str(house.base), options=house.options(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()


def test_choices_alone_and_a_table_of_them_are_words_too(house, made, tmp_path):
    rows = [{"text": row["text"], "choices": ["the mat", "a barn"], "answer": 0} for row in small.text_rows(4)]
    evals = small.write_rows(tmp_path / "evals.jsonl", rows)
    options = house.options(out=tmp_path / "out", evals=(str(evals),))
    result = evaluate(str(made("gptq").directory), str(house.base), options=options)
    assert result.numbers["choices"]["n"] == 4
    assert json.loads((tmp_path / "out" / "record.json").read_text())["numbers"]["choices"]["n"] == 4
    assert "KL" in result.lines[0]
    assert "accuracy 0.5 (baseline 0.75)" in verb.__globals__["sentence"](
        "x", {"kl": None, "choices": {"accuracy": 0.5, "accuracy_baseline": 0.75}}
    )


def test_a_nan_in_the_candidate_leaves_nothing_behind(house, tmp_path):
    broken = small.save_llama(tmp_path / "broken")
    name = "model.layers.1.mlp.down_proj.weight"
    value = small.tensor(broken, name)
    value[3, 4] = float("nan")
    small.change_tensor(broken, name, value)
    with pytest.raises(InputError, match=name):
        evaluate(str(broken), str(house.base), options=house.options(out=tmp_path / "out"))
    assert not (tmp_path / "out").exists()
