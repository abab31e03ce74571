import json
from collections import Counter

import pytest
import torch

from subeight.errors import TextError
from subeight.text import Calibration, CalibrationSpec, calibrate
from subeight.text.calibration import cut, further
from subeight.text.tokens import encode

from .conftest import CHATML, make_tokenizer


def write_text(path, count, tokenizer):
    """A text of exactly `count` tokens, no two windows of it alike."""
    text = "".join(f"{number % 97} {number}." for number in range(count))
    path.write_text(tokenizer.decode(encode(text, tokenizer)[:count]), encoding="utf-8")
    assert len(encode(path.read_text(encoding="utf-8"), tokenizer)) == count
    return str(path)


def write_rows(path, **categories):
    rows = [
        {"category": name, "text": f"{name} {number} the cat sat on the mat. " * 4}
        for name, count in categories.items()
        for number in range(count)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return str(path)


def test_a_text_file_is_cut_in_consecutive_windows(tmp_path, plain):
    source = write_text(tmp_path / "a.txt", 85, plain)
    made = calibrate(CalibrationSpec(source, 8, 10, seed=1), plain)
    ids = encode((tmp_path / "a.txt").read_text(encoding="utf-8"), plain)
    assert made.ids.dtype == torch.int64 and made.ids.shape == (8, 10)
    assert made.categories == ["text"] * 8
    windows = [ids[at : at + 10] for at in range(0, 80, 10)]
    assert sorted(made.ids.tolist()) == sorted(windows)
    assert made.ids.tolist() != windows
    assert calibrate(CalibrationSpec(source, 8, 10, seed=2), plain).ids.tolist() != made.ids.tolist()


def test_hash_follows_ids_and_seed_and_not_the_path(tmp_path, plain):
    source = write_text(tmp_path / "a.txt", 85, plain)
    made = calibrate(CalibrationSpec(source, 4, 10, seed=1), plain)
    assert calibrate(CalibrationSpec(source, 4, 10, seed=1), plain).hash == made.hash
    moved = write_text(tmp_path / "b.txt", 85, plain)
    assert calibrate(CalibrationSpec(moved, 4, 10, seed=1), plain).hash == made.hash
    assert calibrate(CalibrationSpec(source, 4, 10, seed=2), plain).hash != made.hash
    assert Calibration.of(made.ids + 1, source, 1, made.categories).hash != made.hash
    assert Calibration.of(made.ids, "self", 1, made.categories).hash != made.hash


def test_fewer_sequences_are_the_beginning_of_more(tmp_path, plain):
    source = write_rows(tmp_path / "a.jsonl", prose=9, code=9)
    few, more = (calibrate(CalibrationSpec(source, count, 16), plain) for count in (5, 11))
    assert torch.equal(few.ids, more.ids[:5])


def test_categories_are_balanced_as_far_as_they_reach(tmp_path, plain):
    source = write_rows(tmp_path / "a.jsonl", prose=30, code=30, poems=1)
    made = calibrate(CalibrationSpec(source, 15, 32), plain)
    counts = Counter(made.categories)
    assert counts["poems"] < 5 and abs(counts["prose"] - counts["code"]) <= 1
    assert len({tuple(row) for row in made.ids.tolist()}) == 15
    for row, name in zip(made.ids.tolist(), made.categories, strict=True):
        assert name in plain.decode(row)


def test_documents_are_joined_with_the_end_of_text_between(tmp_path, plain):
    source = write_rows(tmp_path / "a.jsonl", prose=3)
    length = len(encode("prose 0 the cat sat on the mat. " * 4, plain)) * 3 + 2
    (row,) = calibrate(CalibrationSpec(source, 1, length), plain).ids.tolist()
    assert row.count(plain.eos_token_id) == 2
    assert plain.decode(row).split("</s>")[1].startswith("prose 1")
    with pytest.raises(TextError, match="shorter than one window"):
        calibrate(CalibrationSpec(source, 1, length + 1), plain)


def test_every_window_begins_as_the_tokenizer_begins_a_text(tmp_path, with_bos):
    source = write_text(tmp_path / "a.txt", 90, with_bos)
    made = calibrate(CalibrationSpec(source, 10, 10), with_bos)
    assert (made.ids[:, 0] == with_bos.bos_token_id).all()
    assert not (made.ids[:, 1:] == with_bos.bos_token_id).any()
    assert cut([0, 5, 6, 7, 8], 3, [0]) == [[0, 5, 6], [0, 7, 8]]
    assert cut([0, 5, 6, 7, 8], 3, []) == [[0, 5, 6]]


def test_conversations_and_completions(tmp_path):
    tokenizer = make_tokenizer(bos=True, template="{{ bos_token }}" + CHATML)
    rows = [
        {"category": "a", "messages": [{"role": "user", "content": "the cat"}], "completion": "sat"},
        {"category": "b", "text": "the cat", "completion": " sat on the mat"},
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    made = calibrate(CalibrationSpec(str(tmp_path / "a.jsonl"), 4, 6), tokenizer)
    rows = {tokenizer.decode(row): name for row, name in zip(made.ids, made.categories, strict=True)}
    assert [name for row, name in rows.items() if row.startswith("<s><|im_start|>user\n")] == ["a"]
    assert [name for row, name in rows.items() if row.startswith("<s>the cat sat")] == ["b"]


def test_too_many_windows_says_how_many_there_are(tmp_path, plain):
    source = write_text(tmp_path / "a.txt", 85, plain)
    with pytest.raises(TextError, match="gives 8 windows of 10 tokens, and 9 were asked for: set `sequences` to 8"):
        calibrate(CalibrationSpec(source, 9, 10), plain)
    with pytest.raises(TextError, match=r"shorter than one window: 85 tokens .* a window has 512"):
        calibrate(CalibrationSpec(source, 1, 512), plain)


def test_builtin_lasts_longer_with_windows_half_way_between(plain):
    made = calibrate(CalibrationSpec("builtin", 8, 512), plain)
    assert set(made.categories) == {"prose", "code", "german", "chat"}
    with pytest.raises(TextError, match="were asked for") as caught:
        calibrate(CalibrationSpec("builtin", 100_000, 512), plain)
    most = int(str(caught.value).split(" gives ")[1].split(" ")[0])
    ids = calibrate(CalibrationSpec("builtin", most, 512), plain).ids
    assert len({tuple(row) for row in ids.tolist()}) == most
    starts = [row[:256] for row in ids.tolist()]
    ends = {tuple(row[256:]) for row in ids.tolist()}
    assert sum(tuple(start) in ends for start in starts) > most // 3


def test_what_is_asked_must_make_sense(with_bos):
    with pytest.raises(TextError, match="at least 1 sequence"):
        CalibrationSpec("builtin", 0, 512)
    with pytest.raises(TextError, match="length of at least 2"):
        CalibrationSpec("builtin", 1, 1)
    with pytest.raises(TextError, match="`--calibration self` to a verb that has the model"):
        calibrate(CalibrationSpec("self"), with_bos)


def test_errors_name_the_document(tmp_path):
    tokenizer = make_tokenizer(template="{{ raise_exception('no') }}")
    row = {"id": "talk-9", "messages": [{"role": "user", "content": "hi"}]}
    (tmp_path / "a.jsonl").write_text(json.dumps(row), encoding="utf-8")
    with pytest.raises(TextError, match="document 'talk-9': the model's chat template refuses"):
        calibrate(CalibrationSpec(str(tmp_path / "a.jsonl"), 1, 4), tokenizer)


def test_further_windows_are_others_of_the_same_draw(tmp_path, plain):
    source = write_text(tmp_path / "a.txt", 85, plain)
    made = calibrate(CalibrationSpec(source, 3, 10, seed=1), plain)
    more = further(CalibrationSpec(source, 3, 10, seed=1), plain, made.ids, 100)
    every = calibrate(CalibrationSpec(source, 8, 10, seed=1), plain)
    assert [ids for _, ids in more] == every.ids[3:].tolist()
    assert further(CalibrationSpec(source, 3, 10, seed=1), plain, made.ids, 2) == more[:2]
    other = write_text(tmp_path / "b.txt", 45, plain)
    begun = calibrate(CalibrationSpec(other, 2, 10, seed=1), plain)
    assert len(further(CalibrationSpec(other, 1, 10), plain, begun.ids, 100)) == 2, "4 windows, of which 2 are known"


def test_what_is_added_or_forced_is_another_calibration(tmp_path, plain):
    source = write_text(tmp_path / "a.txt", 85, plain)
    made = calibrate(CalibrationSpec(source, 3, 10, seed=1), plain)
    windows = further(CalibrationSpec(source, 3, 10, seed=1), plain, made.ids, 2)
    more = made.and_more(windows)
    assert torch.equal(more.ids[:3], made.ids) and more.ids[3:].tolist() == [ids for _, ids in windows]
    assert (more.added, len(more.categories)) == (2, 5)
    forced = made.shown_to_all()
    assert forced.forced and torch.equal(forced.ids, made.ids)
    assert len({made.hash, more.hash, forced.hash, more.shown_to_all().hash}) == 4
    assert more.shown_to_all().added == 2 and made.and_more([]) is made
