"""The same files pass with no difference; what got worse is regressed; too little text is undecided."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

from subeight import evaluate, lock, verify
from subeight.errors import RecordError
from subeight.lock import measure
from subeight.lock.lockfile import Lock
from tests.verbs import small

pytestmark = pytest.mark.usefixtures("no_check")


@pytest.fixture(scope="module")
def locked(house, made, tmp_path_factory):
    """A lock of the GPTQ checkpoint on all of the house's text."""
    folder = tmp_path_factory.mktemp("locked")
    evaluate(str(made("gptq").directory), str(house.base), options=house.options(out=folder / "run"))
    lock(str(folder / "run"), options=house.options(out=folder / "subeight.lock"))
    return folder / "subeight.lock"


def _verify(house, candidate, path, out, **options):
    return verify(str(candidate), path, options=replace(house.options(), out=out, threads=None), **options)


def _edited(path, folder, change):
    """A copy of a lock with something else in it."""
    folder.mkdir(exist_ok=True)
    shutil.copytree(path.with_name("subeight.lock.d"), folder / "subeight.lock.d", dirs_exist_ok=True)
    values = json.loads(path.read_text())
    change(values)
    (folder / "subeight.lock").write_text(json.dumps(values))
    return folder / "subeight.lock"


def test_the_same_stack_passes_with_no_difference_at_all(house, made, locked, tmp_path):
    result = _verify(house, made("gptq").directory, locked, tmp_path / "out", summary=tmp_path / "summary.md")
    numbers = result.numbers
    assert (numbers["verdict"], result.exit_status) == ("pass", 0)
    for found in numbers["differences"]:
        assert found["worse"] == 0.0 and found["worse_ci"] == [0.0, 0.0] and found["locked"] == found["today"]
    assert numbers["kl"] == Lock.read(locked).numbers["kl"]
    assert numbers["changes"] == [] and numbers["candidate_changes"] == []
    assert {probe["relation"] for probe in numbers["probes"]} == {"same"}
    assert result.lines[0].startswith("pass: KL ") and "no difference at all" in result.lines[0]
    assert (tmp_path / "out" / "record.json").is_file() and (tmp_path / "out" / "report.html").is_file()
    assert "made-gptq: pass" in (tmp_path / "summary.md").read_text()


def test_a_worse_candidate_is_regressed(house, made, locked, tmp_path):
    result = _verify(house, made("rtn").directory, locked, tmp_path / "out", summary=tmp_path / "s.md")
    assert (result.numbers["verdict"], result.exit_status) == ("regressed", 1)
    assert result.numbers["candidate_changes"] == ["weights", "config"]
    found = result.numbers["differences"][0]
    assert found["worse_ci"][0] > found["tolerance"]
    assert "not the locked checkpoint (other weights, config)" in " ".join(result.lines)
    assert "❌" in (tmp_path / "s.md").read_text()


def test_too_few_tokens_are_undecided_and_the_number_that_decides_is_named(house, made, tmp_path):
    evals = small.write_rows(tmp_path / "evals.jsonl", small.text_rows(3))
    options = house.options(out=tmp_path / "run", evals=(str(evals),))
    evaluate(str(made("gptq").directory), str(house.base), options=options)
    lock(str(tmp_path / "run"), tolerance="top1=0.9,nll=9", options=house.options(out=tmp_path / "few.lock"))
    worse = _verify(house, made("rtn").directory, tmp_path / "few.lock", tmp_path / "first").numbers["differences"][0]
    tolerance = f"kl={worse['worse'] * 0.99},top1=0.9,nll=9"
    lock(str(tmp_path / "run"), tolerance=tolerance, options=house.options(out=tmp_path / "few.lock"))
    result = _verify(house, made("rtn").directory, tmp_path / "few.lock", tmp_path / "out")
    assert (result.numbers["verdict"], result.exit_status) == ("undecided", 3)
    assert result.numbers["more_tokens"] > 0
    assert f"about {result.numbers['more_tokens']:,} more tokens would decide it" in " ".join(result.lines)


def test_a_policy_fails_what_the_tolerance_passes(house, made, locked, tmp_path):
    policy = "kl>0.000001,top1<0.2,code:kl>9"
    result = _verify(house, made("gptq").directory, locked, tmp_path / "out", fail_on=policy)
    assert (result.numbers["verdict"], result.exit_status) == ("regressed", 1)
    (said,) = result.numbers["policy"]
    assert "--fail-on kl>0.000001 forbids" in said
    with pytest.raises(RecordError, match=r"no category 'german'; it has code, prose"):
        _verify(house, made("gptq").directory, locked, tmp_path / "other", fail_on="german:kl>0.05")


def test_a_lock_of_another_model_is_refused(house, made, locked, tmp_path):
    other = small.save_llama(tmp_path / "other", seed=1)
    with pytest.raises(RecordError, match=r"other is not the baseline that was locked \(base\): its weights differ"):
        _verify(house, made("gptq").directory, locked, tmp_path / "a", baseline=str(other))
    deeper = small.save_llama(tmp_path / "deeper", num_hidden_layers=3)
    with pytest.raises(RecordError, match=r"a lock of another model: .* num_hidden_layers 2, and deeper has 3"):
        _verify(house, deeper, locked, tmp_path / "b")
    copied = shutil.copytree(made("gptq").directory, tmp_path / "copied")
    record = json.loads((copied / "record.json").read_text())
    record["coordinates"]["baseline"] = "0123456789abcdef"
    (copied / "record.json").write_text(json.dumps(record))
    with pytest.raises(RecordError, match="copied was made from the baseline 0123456789abcdef"):
        _verify(house, copied, locked, tmp_path / "c")
    assert not any((tmp_path / name).exists() for name in "abc")


def test_damaged_outcomes_are_refused(house, made, locked, tmp_path):
    path = _edited(locked, tmp_path / "git", lambda values: None)
    (stored,) = path.with_name("subeight.lock.d").iterdir()
    base = {"baseline": str(house.base)}
    stored.write_bytes(stored.read_bytes()[:-1])
    with pytest.raises(RecordError, match="its hash differs"):
        _verify(house, made("gptq").directory, path, tmp_path / "out", **base)
    stored.unlink()
    with pytest.raises(RecordError, match="commit and copy both together"):
        _verify(house, made("gptq").directory, path, tmp_path / "out", **base)


def test_another_machine_passes_and_the_rounding_is_explained(house, made, locked, tmp_path):
    def elsewhere(values):
        values["stack"]["cpu"] = "Another CPU"
        values["stack"]["packages"]["torch"] = values["distributions"]["torch"] = "2.0.0"
        values["distributions"]["only-there"] = "1.0"
        values["probes"][0]["sha256"] = "0" * 16
        values["tolerance"]["kl"] = 0.05

    path = _edited(locked, tmp_path / "git", elsewhere)
    base = small.save_llama(tmp_path / "moved")
    result = _verify(house, made("gptq").directory, path, tmp_path / "out", baseline=str(base))
    assert result.numbers["verdict"] == "pass"
    assert [change["what"] for change in result.numbers["changes"]] == ["torch", "cpu", "only-there"]
    assert [change["suspicion"] for change in result.numbers["changes"]] == ["high", "medium", "low"]
    text = " ".join(result.lines)
    assert "torch: 2.0.0 -> " in text and "kernel probes round otherwise than in the lock" in text


def test_a_stack_that_computes_otherwise_is_regressed_and_its_probe_named(house, made, locked, tmp_path, monkeypatch):
    real = torch.nn.functional.silu
    monkeypatch.setattr(torch.nn.functional, "silu", lambda x, inplace=False: -real(x))
    packages = {**Lock.read(locked).distributions, "fast": "2"}
    monkeypatch.setattr(measure, "distributions", lambda: packages)
    result = _verify(house, made("gptq").directory, locked, tmp_path / "out")
    assert result.exit_status in {1, 3}
    wrong = [probe["name"] for probe in result.numbers["probes"] if probe["relation"] == "wrong"]
    assert len(wrong) == 1 and wrong[0].startswith("activation silu")
    text, total = " ".join(result.lines), len(result.numbers["probes"])
    assert f"1 of {total} kernel probes are wrong" in text
    assert "fast: absent -> 2" in text and "it is the stack" in text
