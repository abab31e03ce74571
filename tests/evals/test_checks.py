"""A user's own check: what the command is told, what its exit status means, and what the baseline may not fail."""

import json
from pathlib import Path

import pytest
import torch

from subeight.errors import InputError
from subeight.evals.passes import Computing
from subeight.evals.scoring import ask, measure, with_check
from subeight.models.align import align
from subeight.models.model import Model
from subeight.probe.probe import Probe
from subeight.probe.swaps import Swaps
from subeight.text import evaluate_set
from tests.probe.mixtures import rounded_copy
from tests.verbs.small import save_llama, text_rows, write_rows

PLAIN = Computing(torch.float32, torch.device("cpu"), quiet=True)


@pytest.fixture(scope="module")
def asked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("checks")
    base = Model(save_llama(folder / "base"))
    rows = [{**row, "text": row["text"][:24], "completion": " yes"} for row in text_rows(4)]
    source = write_rows(folder / "prompts.jsonl", rows)
    question = ask(base, evaluate_set(source, base.tokenizer()), PLAIN, folder / "cache")
    return folder, base, question


def test_the_command_reads_prompt_and_answer(asked, tmp_path: Path) -> None:
    _, _, question = asked
    seen = tmp_path / "seen.jsonl"
    checked = with_check(question, f"check:cat >> {seen}; echo >> {seen}")
    lines = [json.loads(line) for line in seen.read_text(encoding="utf-8").splitlines()]
    assert len(lines) == 4
    assert set(lines[0]) == {"prompt", "answer", "category", "document"}
    assert all(" yes" not in line["prompt"][-4:] for line in lines)
    assert checked.check is not None and checked.check.passed == (True,) * 4


def test_a_command_that_fails_on_the_baseline(asked) -> None:
    with pytest.raises(InputError, match="fails on all 4 answers of the baseline"):
        with_check(asked[2], "check:false")


def test_a_command_that_cannot_be_run(asked) -> None:
    with pytest.raises(InputError, match="cannot be run"):
        with_check(asked[2], "check:no-such-command-anywhere")


def test_the_baseline_loses_nothing_and_others_what_it_passed(asked, tmp_path: Path) -> None:
    folder, base, question = asked
    answers = tmp_path / "answers"
    with_check(question, f"check:cat >> {answers}; echo >> {answers}")
    first = json.loads(answers.read_text(encoding="utf-8").splitlines()[0])["answer"]
    exactly = tmp_path / "exactly.py"
    exactly.write_text(f"import json, sys\nsys.exit(json.load(sys.stdin)['answer'] != {first!r})\n", encoding="utf-8")
    checked = with_check(question, f"check:python3 {exactly}")
    assert measure(checked, base).value == 0.0
    other = rounded_copy(folder / "base", tmp_path / "other", bits=2)
    lost = measure(checked, Model(other))
    assert lost.total.tolist()[0] == 1.0
    assert sum(lost.total) == sum(checked.check.passed)


def test_mixtures_answer_too(asked, tmp_path: Path) -> None:
    folder, base, question = asked
    checked = with_check(question, "check:true")
    other = Model(rounded_copy(folder / "base", tmp_path / "other", bits=2))
    probe = Probe(base, other, align(base, other), checked, PLAIN)
    everything = Swaps(weights=frozenset(x.name for x in other.linears if x.block is not None))
    assert [probe.restore(everything).value, probe.damage(Swaps()).value] == [0.0, 0.0]
    assert probe.spent.evaluations == 2
