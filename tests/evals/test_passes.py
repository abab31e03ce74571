import dataclasses

import pytest
import torch

from subeight.evals import passes
from subeight.evals.passes import Computing, Sequences, reference_pass, run_pass
from subeight.models.model import Model
from subeight.text import batches
from tests.verbs import small

ROWS = [
    *small.text_rows(6),
    {"text": "the cat sat on the mat", "completion": " and the dog ran", "category": "completion"},
    {"text": "the cat sat on", "choices": ["the mat", "the barn", "a hen"], "answer": 1},
]


def _states(model: Model, listed, computing) -> dict[int, torch.Tensor]:
    """Hidden states by sequence, in the order of its tokens."""
    found = {}
    for hidden, batch in zip(run_pass(model, listed, computing, "").hidden, listed, strict=True):
        rows = torch.nonzero(batch.scored)[:, 0]
        found |= {index: hidden[rows == row] for row, index in enumerate(batch.index)}
    return found


def test_padding_changes_nothing(pair, plain, texts):
    model, sequences = Model(pair[0]), Sequences.of(texts(ROWS))
    packed = batches(sequences.samples, 4096)
    assert any(len(set(batch.lengths.tolist())) > 1 for batch in packed), "some rows must be padded"
    together = _states(model, packed, plain)
    alone = _states(model, batches(sequences.samples, 1), plain)
    other_pad = _states(model, batches(sequences.samples, 4096, pad=77), plain)
    for index in range(len(sequences.samples)):
        torch.testing.assert_close(together[index], alone[index], rtol=1e-5, atol=1e-5)
        assert torch.equal(together[index], other_pad[index]), "what pads must not be seen at all"


def test_the_text_of_a_question_counts_too_and_its_options_follow_it(texts):
    sequences = Sequences.of(texts(ROWS))
    assert len(sequences.samples) == sequences.scored + 3
    question = [sample for sample in sequences.samples[: sequences.scored] if sample.category == "text"]
    assert len(question) == 1 and question[0].count == len(question[0].ids) - 1
    options = sequences.samples[sequences.scored :]
    assert (sequences.question, sequences.option, sequences.answers) == ((0, 0, 0), (0, 1, 2), (1,))
    for option in options:
        start = len(question[0].ids)
        assert option.ids[:start] == question[0].ids
        assert option.scored == (False,) * start + (True,) * (len(option.ids) - start)


def test_a_question_in_a_conversation_waits_for_its_answer_but_its_options_do_not(texts):
    messages = [{"role": "user", "content": "the cat"}]
    sequences = Sequences.of(texts([{"messages": messages, "choices": ["the mat", "the barn"], "answer": 0}]))
    asked, *options = sequences.samples
    assert asked.needs_answer and not any(option.needs_answer for option in options)
    assert all(option.ids[: len(asked.ids)] == asked.ids for option in options)


def test_choices_without_an_answer_are_text(texts):
    sequences = Sequences.of(texts([{"text": "the cat sat on the mat", "choices": ["a", "b"]}]))
    assert len(sequences.samples) == sequences.scored == 1


def test_the_reference_is_kept_and_read_back_exactly(pair, plain, texts, tmp_path, monkeypatch):
    model, evaluation = Model(pair[0]), texts(ROWS)
    sequences = Sequences.of(evaluation)
    first = reference_pass(model, sequences, evaluation.hash, plain, tmp_path / "cache")
    assert len(list((tmp_path / "cache").iterdir())) == 1
    monkeypatch.setattr(passes, "run_pass", None)  # it must not be run again
    again = reference_pass(Model(pair[0]), sequences, evaluation.hash, plain, tmp_path / "cache")
    assert all(torch.equal(a, b) for a, b in zip(first.hidden, again.hidden, strict=True))
    probe = torch.randn(3, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(first.head(probe), again.head(probe))


@pytest.mark.parametrize("what", ["baseline", "evaluation", "tokens", "dtype", "threads"])
def test_another_coordinate_is_another_entry(pair, plain, texts, tmp_path, what):
    model, evaluation = Model(pair[0]), texts(ROWS)
    sequences, computing, hashed = Sequences.of(evaluation), plain, evaluation.hash
    reference_pass(model, sequences, hashed, computing, tmp_path / "cache")
    threads = torch.get_num_threads()
    try:
        if what == "baseline":
            model = Model(pair[1])
        elif what == "evaluation":
            hashed = "another"
        elif what == "tokens":
            first = sequences.samples[0]
            changed = dataclasses.replace(first, ids=(*first.ids[:-1], first.ids[-1] ^ 1))
            sequences = dataclasses.replace(sequences, samples=(changed, *sequences.samples[1:]))
        elif what == "dtype":
            computing = Computing(torch.bfloat16, torch.device("cpu"), quiet=True)
        else:
            torch.set_num_threads(2)
        reference_pass(model, sequences, hashed, computing, tmp_path / "cache")
    finally:
        torch.set_num_threads(threads)
    assert len(list((tmp_path / "cache").iterdir())) == 2
