import json
import pickle

import pyarrow
import pyarrow.parquet
import pytest

from subeight.errors import TextError
from subeight.text.documents import name_of, read_documents

TALK = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]


def write_lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
    return path


def test_a_text_file_is_one_document(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfone\n\ntwo\n")
    (document,) = read_documents(tmp_path / "a.txt")
    assert (document.id, document.category, document.text) == ("a.txt", "text", "one\n\ntwo\n")


def test_jsonl_fields(tmp_path):
    path = write_lines(
        tmp_path / "a.jsonl",
        {"id": "first", "text": "2 + 2 =", "category": "sums", "completion": " 4", "else": 1},
        "",
        {"text": "Sky?", "choices": ["red", "blue"], "answer": "blue"},
        {"text": "Sky?", "choices": ["red", "blue"], "answer": 0},
        {"messages": TALK},
        {"text": "  "},
        {"text": "a\u2028b"},
    )
    first, by_name, by_index, talk, separator = read_documents(str(path))
    assert (first.id, first.category, first.completion) == ("first", "sums", " 4")
    assert (by_name.choices, by_name.answer, by_index.answer) == (("red", "blue"), 1, 0)
    assert (talk.id, talk.category, talk.text) == ("a.jsonl:5", "chat", None)
    assert [message["content"] for message in talk.messages] == ["hi", "hello"]
    assert separator.text == "a\u2028b"


def test_openai_content_parts_and_tool_calls(tmp_path):
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    parts = {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}
    (document,) = read_documents(write_lines(tmp_path / "a.jsonl", {"messages": [parts, call]}))
    assert [message["content"] for message in document.messages] == ["ab", ""]
    assert document.messages[1]["tool_calls"] == [{"id": "1"}]


def test_parquet_reads_like_jsonl(tmp_path):
    rows = [{"text": "one", "messages": None}, {"text": None, "messages": TALK}]
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    text, talk = read_documents(tmp_path / "a.parquet")
    assert (text.id, text.text, talk.category) == ("a.parquet:1", "one", "chat")
    assert list(talk.messages) == TALK


def test_a_directory_is_read_in_order_of_names(tmp_path):
    (tmp_path / "sub").mkdir()
    for name in ("b.txt", "a.txt", "sub/c.txt", ".hidden.txt", "notes.md"):
        (tmp_path / name).write_text(name, encoding="utf-8")
    assert [document.id for document in read_documents(tmp_path)] == ["a.txt", "b.txt", "sub/c.txt"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b" \n\t", "is empty"),
        (b"good \xff", r"not UTF-8: byte 5 \(0xff\)"),
        (b"\xef\xbb\xbfgood \xff", r"not UTF-8: byte 8 \(0xff\)"),
    ],
)
def test_bad_bytes(tmp_path, content, message):
    (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(TextError, match=message):
        read_documents(tmp_path / "a.txt")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{not json", r"a\.jsonl, line 2 is not JSON"),
        ("[" * 100_000, "line 2 is nested too deep"),
        ("3", "line 2 is not a JSON object"),
        ({"prompt": "x"}, "line 2 has neither"),
        ({"text": "x", "messages": TALK}, "line 2 has both"),
        ({"text": 3}, "`text` is a number"),
        ({"messages": []}, "`messages` is empty"),
        ({"messages": "hi"}, "`messages` is a string"),
        ({"messages": ["hi"]}, "line 2, message 1 is a string"),
        (
            {"messages": [*TALK, {"role": "robot", "content": "x"}]},
            "message 3 has the role 'robot': allowed are sys",
        ),
        ({"messages": [{"role": "user"}]}, "message 1 has no `content`"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "not text: leave out images"),
        ({"text": "x", "completion": ""}, "`completion` is empty"),
        ({"text": "x", "category": 3}, "`category` is a number"),
        ({"text": "x", "choices": ["one"]}, "two strings or more"),
        ({"text": "x", "choices": ["one", ""]}, "each of `choices`"),
        ({"text": "x", "choices": ["one", "two"], "answer": 2}, "index from 0 to 1"),
        ({"text": "x", "choices": ["one", "two"], "answer": True}, "index from 0 to 1"),
    ],
)
def test_bad_rows_name_their_line(tmp_path, row, message):
    path = write_lines(tmp_path / "a.jsonl", {"text": "good"}, row)
    with pytest.raises(TextError, match=message):
        read_documents(path)


def test_sources_that_cannot_be(tmp_path):
    with pytest.raises(TextError, match="no file or source 'bultin': allowed are builtin"):
        read_documents("bultin")
    with pytest.raises(TextError, match="has no text in it"):
        read_documents(tmp_path)
    (tmp_path / "a.pkl").write_bytes(pickle.dumps("x"))
    with pytest.raises(TextError, match=r"unknown kind '\.pkl'"):
        read_documents(tmp_path / "a.pkl")
    with pytest.raises(TextError, match="holds no text"):
        read_documents(write_lines(tmp_path / "blank.jsonl", {"text": " "}))


def test_bad_parquet(tmp_path):
    path = tmp_path / "a.parquet"
    path.write_bytes(b"PAR1 and then nothing")
    with pytest.raises(TextError, match="not a Parquet file that can be read"):
        read_documents(path)
    pyarrow.parquet.write_table(pyarrow.table({"prompt": ["x"]}), path)
    with pytest.raises(TextError, match="has the columns prompt"):
        read_documents(path)


def test_paths_do_not_enter_hashes(tmp_path):
    assert name_of(tmp_path / "a.txt") == name_of("builtin_copy.txt") == "file"
    assert name_of("builtin:evaluation") == "builtin:evaluation"
    assert name_of("hf:wikitext") == "hf:wikitext"


def test_builtin_parts():
    calibration, evaluation = (read_documents("builtin", part) for part in ("calibration", "evaluation"))
    for documents in (calibration, evaluation):
        assert {document.category for document in documents} == {"prose", "code", "german", "chat"}
        assert len({document.id for document in documents}) == len(documents)
    assert not {document.id for document in calibration} & {document.id for document in evaluation}
