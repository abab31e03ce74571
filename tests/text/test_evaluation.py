import json
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subeight.errors import TextError
from subeight.text import evaluate_set, with_answer
from subeight.text.evaluation import _Cut, _windows
from subeight.text.rows import Document
from subeight.text.tokens import encode

ASK = [{"role": "user", "content": "the cat"}]
TALK = [*ASK, {"role": "assistant", "content": "sat"}]


def write(path, *rows):
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def one(tmp_path, tokenizer, row, **options):
    (sample,) = evaluate_set(write(tmp_path / "a.jsonl", row), tokenizer, **options).samples
    assert len(sample.ids) == len(sample.scored) and not sample.scored[0]
    return sample


def scored_text(sample, tokenizer):
    return tokenizer.decode([token for token, flag in zip(sample.ids, sample.scored, strict=True) if flag])


def test_all_of_a_text_but_its_first_token_is_scored(tmp_path, plain, with_bos):
    sample = one(tmp_path, plain, {"id": "x", "category": "c", "text": "the cat sat"})
    assert list(sample.ids) == encode("the cat sat", plain)
    assert sample.scored == (False, *[True] * (len(sample.ids) - 1))
    assert (sample.document, sample.category, sample.needs_answer) == ("x", "c", False)
    sample = one(tmp_path, with_bos, {"text": "the cat sat"})
    assert scored_text(sample, with_bos) == "the cat sat"
    assert sample.ids[0] == with_bos.bos_token_id


def test_of_a_completion_only_its_tokens_are_scored(tmp_path, with_bos, chatml):
    sample = one(tmp_path, with_bos, {"text": "the cat", "completion": " sat on"})
    assert scored_text(sample, with_bos) == " sat on"
    assert with_bos.decode(sample.ids) == "<s>the cat sat on"
    sample = one(tmp_path, chatml, {"messages": ASK, "completion": "sat"})
    assert scored_text(sample, chatml) == "sat" and not sample.needs_answer
    sample = one(tmp_path, with_bos, {"messages": ASK, "completion": "sat"})
    assert with_bos.decode(sample.ids) == "<s>User: the cat\nAssistant: sat"


def test_of_a_conversation_only_the_assistant_is_scored(tmp_path, chatml):
    sample = one(tmp_path, chatml, {"messages": TALK})
    assert scored_text(sample, chatml) == "sat<|im_end|>"


def test_a_question_waits_for_the_answer_of_the_baseline(tmp_path, chatml):
    sample = one(tmp_path, chatml, {"messages": [*TALK, *ASK]})
    assert sample.needs_answer and sample.count == 0
    assert chatml.decode(sample.ids).endswith("<|im_start|>assistant\n")
    answered = with_answer(sample, [50, 51])
    assert answered.ids == (*sample.ids, 50, 51)
    assert answered.scored == (*sample.scored, True, True)
    assert not answered.needs_answer and answered.document == sample.document


def test_choices_continue_their_text(tmp_path, with_bos, chatml):
    row = {"text": "the cat", "choices": ["sat", " ran"], "answer": 1}
    sample = one(tmp_path, with_bos, row)
    assert [with_bos.decode(choice) for choice in sample.choices] == [" sat", " ran"]
    assert scored_text(sample, with_bos) == "the cat" and sample.answer == 1
    row["text"] += " "
    assert one(tmp_path, with_bos, row).ids == sample.ids
    sample = one(tmp_path, chatml, {"messages": ASK, "choices": ["sat", "ran"]})
    assert [chatml.decode(choice) for choice in sample.choices] == ["sat", "ran"]
    assert sample.needs_answer and sample.answer is None


WIDTHS = st.tuples(st.integers(0, 90), st.integers(4, 20), st.integers(1, 20), st.integers(0, 2))


@settings(max_examples=200)
@given(WIDTHS)
def test_windows_score_every_token_once(numbers):
    count, window, stride, prefix = numbers
    cuts = _Cut(window, min(stride, window), None, tuple(range(900, 900 + prefix)))
    samples = _windows(Document("d", "c", "x"), list(range(count)), cuts)
    scored = [token for made in samples for token, flag in zip(made.ids, made.scored, strict=True) if flag]
    assert len(scored) == len(set(scored)) and max(scored, default=0) < max(count, 1)
    assert all(len(made.ids) <= window and made.ids[:prefix] == cuts.prefix for made in samples)
    if prefix:
        assert scored == list(range(count))
    elif stride < window:
        assert scored == list(range(1, count))
    else:
        assert scored == [token for token in range(count) if token % window]


def test_overlapping_windows_give_more_context(tmp_path, plain):
    (tmp_path / "a.txt").write_text("the cat sat on the mat and the dog ran. " * 10, encoding="utf-8")
    source = str(tmp_path / "a.txt")
    apart, strided = (evaluate_set(source, plain, window=32, stride=stride) for stride in (None, 8))
    assert {sample.document for sample in apart.samples} == {"a.txt"}
    assert len(strided.samples) > 2 * len(apart.samples)
    assert all(not any(sample.scored[:24]) for sample in strided.samples[1:-1])
    assert apart.hash != strided.hash
    assert evaluate_set(source, plain, window=32, stride=32).hash == apart.hash


def mixed(tmp_path):
    texts = [
        {
            "id": f"{name}{number}",
            "category": name,
            "text": f"{name} {number} the cat sat on the mat. " * size,
        }
        for name, size in (("a", 3), ("b", 9), ("c", 1))
        for number in range(6)
    ]
    return write(tmp_path / "mixed.jsonl", *texts, {"category": "d", "messages": ASK})


def test_categories_take_turns(tmp_path, plain):
    made = evaluate_set(mixed(tmp_path), plain)
    assert [sample.category for sample in made.samples[:8]] == ["a", "b", "c", "d", "a", "b", "c", "a"]
    assert Counter(sample.category for sample in made.samples) == {"a": 6, "b": 6, "c": 6, "d": 1}


def test_a_smaller_cap_is_a_beginning_of_a_larger_one(tmp_path, plain):
    source = mixed(tmp_path)
    whole = evaluate_set(source, plain)
    flat = [(sample.ids, sample.scored) for sample in whole.samples]
    for tokens in range(5, whole.tokens + 30, 37):
        made = evaluate_set(source, plain, tokens=tokens)
        *full, last = made.samples
        assert [(sample.ids, sample.scored) for sample in full] == flat[: len(full)]
        ids, scored = flat[len(full)]
        assert (ids[: len(last.ids)], scored[: len(last.ids)]) == (last.ids, last.scored)
        assert made.tokens <= min(tokens, whole.tokens)
        # less than the cap only where the prompt that comes next cannot be cut, or one token was left over
        following = whole.samples[len(made.samples)] if len(made.samples) < len(flat) else None
        if following is not None and made.tokens < tokens:
            assert following.needs_answer or tokens - made.tokens == 1
    assert evaluate_set(source, plain, tokens=10**6).hash == whole.hash


def test_longer_conversations_keep_their_end(tmp_path, with_bos):
    row = {"messages": [{"role": "user", "content": "the mat " * 40}, *TALK]}
    whole, short = one(tmp_path, with_bos, row), one(tmp_path, with_bos, row, longest=12)
    assert len(short.ids) == 12 and short.ids[0] == with_bos.bos_token_id
    assert (short.ids[1:], short.scored[1:]) == (whole.ids[-11:], whole.scored[-11:])


def test_documents_of_several_sources_stay_apart(tmp_path, plain):
    sources = []
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
        sources.append(write(tmp_path / name / "a.jsonl", {"text": f"the {name} cat sat"}))
    made = evaluate_set(sources, plain)
    assert [sample.document for sample in made.samples] == ["a.jsonl:1", "2/a.jsonl:1"]


def test_the_hash_follows_what_is_measured(tmp_path, plain, chatml):
    rows = [
        {"text": "the cat sat"},
        {"text": "the cat", "completion": " sat"},
        {"text": "the cat sat", "choices": ["on", "in"]},
        {"text": "the cat sat", "choices": ["on", "in"], "answer": 1},
    ]
    hashes = [evaluate_set(write(tmp_path / f"{n}.jsonl", row), plain).hash for n, row in enumerate(rows)]
    hashes.append(evaluate_set(str(tmp_path / "0.jsonl"), chatml).hash)
    hashes.append(evaluate_set(str(tmp_path / "0.jsonl"), plain, window=100).hash)
    assert len(set(hashes)) == len(hashes)
    assert evaluate_set(write(tmp_path / "elsewhere.jsonl", rows[0]), plain).hash == hashes[0]


def test_what_is_asked_must_make_sense(tmp_path, plain, with_bos):
    source = write(tmp_path / "a.jsonl", {"messages": ASK})
    with pytest.raises(TextError, match="at least one source"):
        evaluate_set([], plain)
    with pytest.raises(TextError, match="window of 2 tokens scores nothing: give at least 3"):
        evaluate_set(source, with_bos, window=2)
    with pytest.raises(TextError, match="stride of 9 does not fit windows of 8 tokens: give 1 to 8"):
        evaluate_set(source, plain, window=8, stride=9)
    with pytest.raises(TextError, match="cap of 1 evaluation tokens"):
        evaluate_set(source, plain, tokens=1)
    with pytest.raises(TextError, match="with a cap of 3 tokens: raise it"):
        evaluate_set(source, plain, tokens=3)
    with pytest.raises(TextError, match="two tokens or more"):
        evaluate_set(write(tmp_path / "b.jsonl", {"text": "a"}), plain)
