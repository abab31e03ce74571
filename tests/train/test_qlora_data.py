import pytest
import torch

from subeight.errors import TextError
from subeight.models.model import Model
from subeight.train.qlora_data import IGNORED, LabelledRows, collate, held_out_sequences, lessons, scored_columns
from tests.verbs import small


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Model(small.save_llama(tmp_path_factory.mktemp("model") / "base"))


def read(model, folder, rows, **changed):
    source = small.write_rows(folder / "rows.jsonl", rows)
    return lessons(model, str(source), **{"held_out": None, "share": 0.25, "length": 64, "seed": 0, **changed})


COMPLETION = [{"id": f"d{i}", "text": f"the {'of ' * i}to", "completion": " in"} for i in range(8)]


def test_only_the_completion_and_its_end_are_scored(model, tmp_path):
    found = read(model, tmp_path, COMPLETION)
    tokenizer = model.tokenizer()
    for sample in (*found.train, *found.held_out):
        tail = [token for token, counts in zip(sample.ids, sample.scored, strict=True) if counts]
        assert tokenizer.decode(tail) == " in</s>"
    assert len(found.train) == 6 and len(found.held_out) == 2 and found.has_answers


def test_of_messages_the_assistants_turns_are_scored(model, tmp_path):
    turns = [{"role": "user", "content": "the of"}, {"role": "assistant", "content": "to in"}]
    found = read(model, tmp_path, [{"messages": turns}] * 4)
    tail = [t for t, counts in zip(found.train[0].ids, found.train[0].scored, strict=True) if counts]
    assert model.tokenizer().decode(tail).startswith("to in<|im_end|>") and found.has_answers
    assert "word for word" in found.warnings[0]


def test_text_is_scored_whole_and_has_no_answers(model, tmp_path):
    found = read(model, tmp_path, small.text_rows(8))
    assert all(sample.count == len(sample.ids) - 1 for sample in found.train) and not found.has_answers


def test_choices_teach_the_right_one_and_are_asked_of_the_held_out(model, tmp_path):
    rows = [
        {"text": f"the {w}", "choices": ["of", "to", "in"], "answer": 2}
        for w in ["a", "b", "c", "d", "e", "f", "g", "h"]
    ]
    found = read(model, tmp_path, rows)
    decode = model.tokenizer().decode
    assert all(decode(sample.ids[-sample.count :]).strip() == "in</s>" for sample in found.train)
    asked = held_out_sequences(found)
    assert asked.scored == 2 and len(asked.samples) == 2 + 6 and asked.answers == (2, 2)
    assert decode(asked.samples[-1].ids).endswith(" in")


def test_a_document_is_in_one_part_and_the_split_is_by_seed(model, tmp_path):
    rows = [{"id": f"d{i // 3}", "text": f"the {i}", "completion": " to"} for i in range(24)]
    one, same, other = (read(model, tmp_path, rows, seed=seed) for seed in (0, 0, 1))
    assert one.hash == same.hash != other.hash
    assert not {s.document for s in one.train} & {s.document for s in one.held_out}


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        ([{"messages": [{"role": "user", "content": "a"}]}] * 2, "ends with a user's turn"),
        ([{"text": "a", "choices": ["b", "c"]}] * 2, "no `answer`"),
        ([{"text": "the of"}], "holds one document"),
    ],
)
def test_what_cannot_be_learned_is_refused(model, tmp_path, rows, sentence):
    with pytest.raises(TextError, match=sentence):
        read(model, tmp_path, rows)


def test_a_share_that_is_none_is_refused(model, tmp_path):
    with pytest.raises(TextError, match="between 0 and 1"):
        read(model, tmp_path, COMPLETION, share=1.0)


def test_rows_are_padded_and_only_scored_columns_have_logits(model, tmp_path):
    found = read(model, tmp_path, COMPLETION)
    rows = LabelledRows(found.train)
    batch = collate([rows[index] for index in range(3)], pad=9)
    for row in range(3):
        count = len(rows[row]["input_ids"])
        assert batch["input_ids"][row, :count].tolist() == rows[row]["input_ids"]
        assert batch["attention_mask"][row].sum() == count and (batch["labels"][row, count:] == IGNORED).all()
    columns, targets = scored_columns(batch["labels"])
    everywhere = batch["labels"][:, 1:]
    assert (targets != IGNORED).sum() == (everywhere != IGNORED).sum()
    assert torch.equal(targets, everywhere[:, columns]) and len(columns) < everywhere.shape[1]
