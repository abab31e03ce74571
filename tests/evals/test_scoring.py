import json

import pytest

from subeight.errors import InputError
from subeight.evals import scoring
from subeight.evals.scoring import ask, score
from subeight.models.model import Model
from tests.oracles import evals_scoring as oracle
from tests.verbs import small

CHAT = [
    {"role": "user", "content": "the cat sat on the mat"},
    {"role": "assistant", "content": "and the dog ran to the barn"},
]
CLOSE = {"rel": 2e-5, "abs": 2e-7}


def _scored(pair, evaluation, computing, cache, **options):
    question = ask(Model(pair[0]), evaluation, computing, cache, **options)
    return score(question, Model(pair[1])).numbers


def _models(pair):
    return oracle.load(pair[0]), oracle.load(pair[1])


def _encode(tokenizer, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False)["input_ids"]


def _compare(numbers, expected):
    assert numbers["tokens"] == len(expected.kl)
    assert numbers["kl"] == pytest.approx(float(expected.kl.mean()), **CLOSE)
    assert numbers["kl_max"] == pytest.approx(float(expected.kl.max()), **CLOSE)
    assert numbers["ppl"] == pytest.approx(expected.ppl, **CLOSE)
    assert numbers["ppl_baseline"] == pytest.approx(expected.ppl_baseline, **CLOSE)
    assert numbers["top1"] == pytest.approx(float(expected.agree.double().mean()))


def test_text_is_scored_in_windows_as_plain_transformers_scores_them(pair, plain, texts, tmp_path):
    rows = small.text_rows(8)
    numbers = _scored(pair, texts(rows), plain, tmp_path)
    tokenizer = Model(pair[0]).tokenizer()
    listed = []
    for row in rows:
        ids = _encode(tokenizer, row["text"])
        listed += [(ids[at : at + 48], range(1, len(ids[at : at + 48]))) for at in range(0, len(ids), 48)]
    assert len(listed) > len(rows)
    _compare(numbers, oracle.measure(*_models(pair), listed))
    prose = oracle.measure(*_models(pair), _windows(tokenizer, [r for r in rows if r["category"] == "prose"]))
    assert numbers["categories"]["prose"]["kl"] == pytest.approx(float(prose.kl.mean()), **CLOSE)


def _windows(tokenizer, rows):
    for row in rows:
        ids = _encode(tokenizer, row["text"])
        yield from ((ids[at : at + 48], range(1, len(ids[at : at + 48]))) for at in range(0, len(ids), 48))


def test_completions_and_the_assistants_turns_alone_are_scored(pair, plain, texts, tmp_path):
    completion = {"text": "the cat sat on the mat", "completion": " and the dog ran to"}
    numbers = _scored(pair, texts([completion, {"messages": CHAT}]), plain, tmp_path)
    tokenizer = Model(pair[0]).tokenizer()
    before, after = _encode(tokenizer, completion["text"]), _encode(tokenizer, completion["completion"])
    asked = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template(CHAT, tokenize=False).rstrip("\n")
    prompt, answered = _encode(tokenizer, asked), _encode(tokenizer, whole)
    assert answered[: len(prompt)] == prompt and answered[-1] == tokenizer.convert_tokens_to_ids("<|im_end|>")
    rows = [
        (before + after, range(len(before), len(before + after))),
        (answered, range(len(prompt), len(answered))),
    ]
    _compare(numbers, oracle.measure(*_models(pair), rows))


def test_a_prompt_that_ends_with_the_user_gets_the_baselines_own_answer(pair, plain, texts, tmp_path):
    numbers = _scored(pair, texts([{"messages": CHAT[:1]}]), plain, tmp_path)
    first, second = _models(pair)
    tokenizer = Model(pair[0]).tokenizer()
    asked = tokenizer.apply_chat_template(CHAT[:1], tokenize=False, add_generation_prompt=True)
    prompt = _encode(tokenizer, asked)
    answer = oracle.greedy(first, prompt, 64) or [first.config.eos_token_id]
    assert len(answer) > 1
    row = (prompt + answer, range(len(prompt), len(prompt + answer)))
    _compare(numbers, oracle.measure(first, second, [row]))


def test_answers_are_kept(pair, plain, texts, tmp_path, monkeypatch):
    evaluation = texts([{"messages": CHAT[:1]}, *small.text_rows(2)])
    first = ask(Model(pair[0]), evaluation, plain, tmp_path, generate=2)
    monkeypatch.setattr(scoring, "Whole", None)  # the model must not be loaded whole again
    again = ask(Model(pair[0]), evaluation, plain, tmp_path, generate=2)
    assert again.sequences == first.sequences and again.generations == first.generations


def test_choices_are_picked_as_plain_transformers_picks_them(pair, plain, texts, tmp_path):
    contexts = [row["text"] for row in small.text_rows(12, words=6)]
    choices = ["the mat", "the barn where the hens were", "a dog"]
    rows = [{"text": text, "choices": choices, "answer": at % 3} for at, text in enumerate(contexts)]
    numbers = _scored(pair, texts(rows), plain, tmp_path)
    first, second = _models(pair)
    tokenizer = Model(pair[0]).tokenizer()
    pairs = []
    for text in contexts:
        context = _encode(tokenizer, text)
        options = [_encode(tokenizer, f"{text} {choice}")[len(context) :] for choice in choices]
        pairs.append((oracle.picked(first, context, options), oracle.picked(second, context, options)))
    right = [(a == at % 3, b == at % 3) for at, (a, b) in enumerate(pairs)]
    assert numbers["choices"]["n"] == 12
    assert numbers["choices"]["accuracy_baseline"] == pytest.approx(sum(a for a, _ in right) / 12)
    assert numbers["choices"]["accuracy"] == pytest.approx(sum(b for _, b in right) / 12)
    assert numbers["choices"]["flips"] == pytest.approx(sum(a != b for a, b in right) / 12)
    assert numbers["choices"]["changed"] == pytest.approx(sum(a != b for a, b in pairs) / 12)
    assert numbers["tokens"] == sum(len(_encode(tokenizer, text)) - 1 for text in contexts), "their text counts too"


def test_generation_agreement_is_that_of_transformers(pair, plain, texts, tmp_path):
    rows = small.text_rows(8)
    numbers = _scored(pair, texts(rows, window=128), plain, tmp_path, generate=6)
    first, second = _models(pair)
    evaluation = texts(rows, window=128)
    prompts = [list(s.ids[: max(8, len(s.ids) // 3)]) for s in evaluation.samples[:6]]
    answers = [(oracle.greedy(first, p, 64), oracle.greedy(second, p, 64)) for p in prompts]
    assert numbers["generation"]["prompts"] == 6
    assert numbers["generation"]["agreement"] == pytest.approx(sum(a == b for a, b in answers) / 6)
    shared = [next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), None) for a, b in answers]
    expected = [at for at in shared if at is not None]
    assert numbers["generation"]["first_difference"] == pytest.approx(sum(expected) / len(expected))


def test_a_model_against_itself_is_at_no_distance(pair, plain, texts, tmp_path):
    rows = [*small.text_rows(4), {"messages": CHAT[:1]}, {"text": "the cat", "choices": ["a", "b"], "answer": 0}]
    question = ask(Model(pair[0]), texts(rows), plain, tmp_path, generate=2)
    numbers = score(question, Model(pair[0])).numbers
    assert numbers["kl"] == numbers["kl_max"] == 0.0
    assert numbers["top1"] == 1.0
    assert numbers["ppl"] == numbers["ppl_baseline"]
    assert numbers["choices"]["flips"] == 0.0
    assert numbers["generation"]["agreement"] == 1.0


def test_answers_stop_at_the_end_of_the_context(plain, tmp_path):
    base = small.save_llama(tmp_path / "short", max_position_embeddings=40)
    model = Model(base)
    found = scoring._answers(model, [[5] * 30, [5] * 40], plain, model)
    assert len(found[0]) <= 10 and found[1] == []


def test_rows_of_samples_add_up_to_the_whole(pair, plain, texts, tmp_path):
    scored = score(ask(Model(pair[0]), texts(small.text_rows(5)), plain, tmp_path), Model(pair[1]))
    tokens = sum(row["tokens"] for row in scored.rows)
    assert tokens == scored.numbers["tokens"]
    assert sum(row["kl"] * row["tokens"] for row in scored.rows) / tokens == pytest.approx(scored.numbers["kl"])
    assert json.dumps(scored.numbers)


def test_another_vocabulary_is_refused(pair, plain, texts, tmp_path):
    other = small.save_llama(tmp_path / "other", vocab_size=300)
    question = ask(Model(pair[0]), texts(small.text_rows(2)), plain, tmp_path / "cache")
    with pytest.raises(InputError, match="vocabulary of 300 and base one of 320"):
        score(question, Model(other))


def test_where_the_baseline_says_nothing_its_end_is_scored(pair, plain, texts, tmp_path, monkeypatch):
    monkeypatch.setattr(scoring, "_answers", lambda model, prompts, *_: [[] for _ in prompts])
    question = ask(Model(pair[0]), texts([{"messages": CHAT[:1]}]), plain, tmp_path)
    (sample,) = question.sequences.samples
    assert (sample.ids[-1], sample.count, sample.needs_answer) == (1, 1, False)
