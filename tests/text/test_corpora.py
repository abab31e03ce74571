import sys

import datasets
import pytest

from subeight.errors import TextError
from subeight.text import read_documents
from subeight.text.corpora import ROWS, Corpus

ROWS_OF = [{"text": "one", "id": 7}, {"text": ""}, {"text": None}, {"text": "four", "talk": []}]


@pytest.fixture
def hub(monkeypatch):
    """A hub of one data set; says with what it was asked."""
    asked = []

    def load_dataset(name, config, split, streaming):
        asked.append((name, config, split, streaming))
        if name != "org/known":
            raise FileNotFoundError(f"Dataset '{name}' doesn't exist on the Hub")
        return iter(ROWS_OF)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_parse():
    assert Corpus.parse("hf:org/name") == Corpus("org/name", None, "train", 0, ROWS, "text")
    assert Corpus.parse("hf:c4:en:validation[10:30]:body") == Corpus("c4", "en", "validation", 10, 30, "body")
    assert Corpus.parse("hf:c4::[:5]") == Corpus("c4", None, "train", 0, 5, "text")
    assert Corpus.parse("hf:c4:en:test[7:]").last == 7 + ROWS


@pytest.mark.parametrize("source", ["hf:", "hf::en", "hf:a:b:c:d:e", "hf:a:b:train[10%:]"])
def test_what_does_not_parse(source):
    with pytest.raises(TextError, match="does not name a data set: write hf:NAME"):
        read_documents(source)


def test_rows_are_streamed_and_blank_ones_left_out(hub):
    documents = read_documents("hf:org/known:small:test")
    assert [(document.id, document.text) for document in documents] == [("7", "one"), ("org/known:3", "four")]
    assert hub == [("org/known", "small", "test", True)]
    assert [document.text for document in read_documents("hf:org/known::train[1:4]")] == ["four"]


def test_a_column_of_conversations(monkeypatch):
    talk = [{"role": "user", "content": "hi"}]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: iter([{"turns": talk}]))
    (document,) = read_documents("hf:a:b:train:turns")
    assert list(document.messages) == talk


def test_what_the_hub_does_not_have(hub):
    with pytest.raises(TextError, match=r"cannot be read .*doesn't exist"):
        read_documents("hf:org/unknown")
    with pytest.raises(TextError, match="has no column 'body': its columns are text, id"):
        read_documents("hf:org/known:::body")


def test_without_the_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(TextError, match=r"pip install 'subeight\[data\]'"):
        read_documents("hf:org/known")
