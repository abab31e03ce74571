import json

import numpy as np
import pytest

from subeight.diagnose import cutting
from subeight.diagnose.baseline import examine
from subeight.diagnose.cutting import Dressed, as_used, common, cut_alike, differing
from subeight.errors import ModelError
from subeight.text import Sample
from subeight.verbs import parity
from tests.diagnose.baseline_case import case_of, copied, nothing, quantized
from tests.text.conftest import make_tokenizer
from tests.verbs import small
from tests.verbs.conftest import unchecked

TEMPLATE = "{% for message in messages %}{{ message['role'] }}: {{ message['content'] }} ; {% endfor %}"


def chats(count):
    return [
        {
            "id": f"c{n}",
            "category": "chat",
            "messages": [
                {"role": "user", "content": small.text_rows(count)[n]["text"]},
                {"role": "assistant", "content": small.text_rows(2 * count)[count + n]["text"]},
            ],
        }
        for n in range(count)
    ]


@pytest.fixture(scope="module", autouse=True)
def no_parity():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(parity, "check", unchecked)
        yield


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A model whose tokenizer puts a BOS first."""
    directory = small.save_llama(tmp_path_factory.mktemp("base") / "base")
    make_tokenizer(bos=True, template=small.CHATML).save_pretrained(directory)
    return directory


@pytest.fixture
def candidate(base, tmp_path):
    made = quantized(base, tmp_path, "candidate")
    make_tokenizer(bos=True, template=small.CHATML).save_pretrained(made)
    return made


def test_a_missing_bos_is_named_and_what_is_left_is_the_quantization(base, candidate, tmp_path):
    make_tokenizer(template=small.CHATML).save_pretrained(candidate)
    case = case_of(tmp_path, candidate, base, small.text_rows(12))
    finding, after = examine(case)
    (cause,) = finding.causes
    assert (cause.kind, cause.places) == ("bos", ("tokenizer.bos",))
    assert cause.recovered.low > 0
    np.testing.assert_array_equal(after.loss.total, case.measure(case.candidate).total)
    assert finding.details["begins_with"] == {"baseline": [0], "candidate": []}
    assert finding.details["prompts_that_differ"] == len(case.evaluation.samples)


def test_another_chat_template_is_named(base, candidate, tmp_path):
    make_tokenizer(bos=True, template=TEMPLATE).save_pretrained(candidate)
    finding, after = examine(case_of(tmp_path, candidate, base, chats(12)))
    (cause,) = finding.causes
    assert (cause.kind, cause.places) == ("chat_template", ("chat_template",))
    assert after.loss.value < after.whole.value


def test_a_template_that_no_prompt_uses_accuses_nobody(base, candidate, tmp_path):
    make_tokenizer(bos=True, template=TEMPLATE).save_pretrained(candidate)
    finding, _ = examine(case_of(tmp_path, candidate, base, small.text_rows(8)))
    assert finding.verdict == "cleared"
    assert finding.details["chat_template"] is True
    assert "although chat template differ" in finding.evidence


def test_another_vocabulary_is_named(base, candidate, tmp_path):
    path = candidate / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["merges"] = content["model"]["merges"][:20]
    path.write_text(json.dumps(content))
    finding, after = examine(case_of(tmp_path, candidate, base, small.text_rows(12)))
    assert "merges" in finding.details["tokenizer"]
    assert [cause.kind for cause in finding.causes] in ([], ["tokenizer"])
    np.testing.assert_array_equal(after.loss.total, after.measure(after.candidate).total)


def test_a_checkpoint_without_tokenizer_is_asked_as_the_baseline_is(base, candidate, tmp_path):
    for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
        (candidate / name).unlink(missing_ok=True)
    finding, _ = examine(case_of(tmp_path, candidate, base, small.text_rows(4)))
    assert finding.verdict == "cleared"
    assert "has no tokenizer of its own" in finding.evidence


def test_generation_settings_are_told(base, candidate, tmp_path):
    for directory, value in ((base, 0.5), (candidate, 0.9)):
        (directory / "generation_config.json").write_text(json.dumps({"temperature": value, "do_sample": True}))
    finding, _ = examine(case_of(tmp_path, candidate, base, small.text_rows(4)))
    assert finding.verdict == "cleared"
    rows = finding.details["generation"]
    assert rows == [{"field": "generation_config.temperature", "baseline": 0.5, "candidate": 0.9}]


@pytest.mark.parametrize("words", [24, 200])
def test_the_same_tokenizer_cuts_the_same_samples(words, base, tmp_path):
    rows = [*small.text_rows(3, words), *chats(3)]
    rows.append({"id": "q", "text": "the cat sat", "choices": [" on the mat", " in the barn"], "answer": 0})
    rows.append({"id": "k", "text": "the dog ran", "completion": " to the barn"})
    case = case_of(tmp_path, base, base, rows)
    own = cut_alike(case.question, case.sources, case.baseline.tokenizer())
    assert differing(case.question, own) == []
    assert own.samples == case.evaluation.samples
    assert float(as_used(case.question, case.sources, case.candidate).total.sum()) == 0


def test_windows_without_a_bos_hold_the_same_text(base, tmp_path):
    case = case_of(tmp_path, base, base, small.text_rows(3, 200))
    own = cut_alike(case.question, case.sources, make_tokenizer(template=small.CHATML))
    for ours, theirs in zip(case.evaluation.samples, own.samples, strict=True):
        assert ours.ids[1:] == theirs.ids
    assert max(len(sample.ids) for sample in case.evaluation.samples) == 64


def test_choices_are_picked_on_the_candidates_own_tokens(base, tmp_path):
    rows = [
        {"id": f"q{n}", "text": row["text"], "choices": [" on the mat", " in the barn and the dog"], "answer": n % 2}
        for n, row in enumerate(small.text_rows(12))
    ]
    candidate = copied(base, tmp_path / "copy", nothing)
    make_tokenizer(template=small.CHATML).save_pretrained(candidate)
    case = case_of(tmp_path, candidate, base, rows)
    assert float(as_used(case.question, case.sources, case.baseline, "choices").total.sum()) == 0
    lost = as_used(case.question, case.sources, case.candidate, "choices")
    assert set(lost.total.tolist()) <= {0.0, 1.0}
    assert len(lost.total) == 12


def sample(ids, scored=None):
    return Sample(tuple(ids), tuple(scored or [True] * len(ids)), "text", "d")


def test_common_places():
    assert common(sample([0, 5, 6, 7]), sample([5, 6, 7])) == [(2, 1), (3, 2)]  # nothing predicts the first of theirs
    assert common(sample([1, 2, 9, 4]), sample([1, 2, 8, 8, 4])) == [(1, 1), (3, 4)]
    assert common(sample([1, 2, 3], [False, False, True]), sample([1, 2, 3])) == [(2, 2)]
    assert common(sample([1, 2]), sample([3, 4])) == []


def test_tokenizers_without_a_common_token_are_bad_input(base, tmp_path, monkeypatch):
    case = case_of(tmp_path, base, base, small.text_rows(2))
    monkeypatch.setattr(cutting, "common", lambda *_: [])
    with pytest.raises(ModelError, match="not one token"):
        as_used(case.question, case.sources, case.candidate, tokenizer=make_tokenizer())


def test_a_tokenizer_in_another_dress():
    plain, begun = make_tokenizer(template=TEMPLATE), make_tokenizer(bos=True, template=small.CHATML)
    dressed = Dressed(plain, template=begun, begin=begun)
    assert dressed("the cat")["input_ids"] == begun("the cat")["input_ids"]
    assert dressed("the cat", add_special_tokens=False)["input_ids"] == plain("the cat")["input_ids"]
    assert dressed.get_chat_template() == small.CHATML
    assert dressed.decode([5]) == plain.decode([5])
