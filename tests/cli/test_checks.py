"""`lock` and `verify` on the command line: exit statuses, sentences, and where output goes."""

import json

import pytest


@pytest.fixture
def locked(run, house, made, tmp_path):
    evals = ("--evals", house.evals, "--eval-tokens", 500, "--threads", 1, "--dtype", "float32", "--quiet")
    done = run("evaluate", made("gptq").directory, "--against", house.base, *evals, "--out", tmp_path / "run")
    assert done.status == 0, done.err
    done = run("lock", tmp_path / "run", "--out", tmp_path / "subeight.lock", "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out)["kind"] == "lock" and "commit it together" in done.err
    return tmp_path / "subeight.lock"


def test_the_same_stack_passes_and_a_policy_or_another_candidate_does_not(run, made, locked, tmp_path):
    command = ("verify", made("gptq").directory, "--lock", locked, "--quiet")
    done = run(*command, "--out", tmp_path / "a", "--json", "--summary", tmp_path / "s.md")
    assert done.status == 0 and json.loads(done.out)["numbers"]["verdict"] == "pass"
    assert done.err.splitlines()[-1] == f"record {tmp_path / 'a' / 'record.json'} report {tmp_path / 'a'}/report.html"
    assert (tmp_path / "s.md").read_text().startswith("## ")
    done = run(*command, "--out", tmp_path / "b", "--fail-on", "kl>0")
    assert done.status == 1 and done.out == "" and "--fail-on kl>0 forbids" in done.err
    assert (tmp_path / "b" / "record.json").is_file()
    done = run("verify", made("rtn").directory, "--lock", locked, "--quiet", "--out", tmp_path / "c")
    assert done.status == 1 and done.err.startswith("warning" if "warning" in done.err else "regressed")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--lock", "missing.lock"), "The lock missing.lock cannot be read"),
        (("--fail-on", "perplexity>3"), "the metric 'perplexity'"),
        (("--fail-on", "german:kl>3"), "no category 'german'"),
        (("--baseline", "nowhere/at/all"), "There is no model at nowhere/at/all"),
    ],
)
def test_bad_input_is_one_sentence(run, made, locked, tmp_path, words, said):
    done = run("verify", made("gptq").directory, "--lock", locked, "--quiet", "--out", tmp_path / "out", *words)
    assert done.status == 2 and done.out == "" and said in done.err
    assert len(done.err.strip().splitlines()) == 1 and "Traceback" not in done.err
    assert not (tmp_path / "out").exists()


def test_a_replay_of_what_is_the_same_costs_nothing(run, made, locked, tmp_path):
    command = ("verify", made("gptq").directory, "--lock", locked, "--quiet", "--out", tmp_path / "out", "--replay")
    done = run(*command)
    assert done.status == 0 and "nothing to replay" in done.err


def test_a_replay_of_another_candidate_is_refused_in_words(run, made, locked, tmp_path):
    done = run("verify", made("rtn").directory, "--lock", locked, "--quiet", "--out", tmp_path / "out", "--replay")
    assert done.status == 1 and "Nothing is replayed: the candidate is not the locked checkpoint." in done.err
