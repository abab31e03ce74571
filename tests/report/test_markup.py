"""Nothing that a model or a prompt says becomes markup."""

import json
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from subeight.report import words
from subeight.report.markup import Column, Html, code, embedded_json, escape, join, prose, table, tag

from .fixtures import BREAKOUT, HOSTILE


class Reader(HTMLParser):
    """Which elements a browser would see, and their text."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.attributes, self.text = [], [], ""
        self.feed(page)
        self.close()

    def handle_starttag(self, name, attributes):
        self.elements.append(name)
        self.attributes += attributes

    def handle_data(self, data):
        self.text += data


@given(st.text())
def test_any_text_comes_out_as_text(text):
    read = Reader(tag("p", tag("b", text, title=text), text))
    assert read.elements == ["p", "b"]
    assert read.text == text * 2 and dict(read.attributes)["title"] == text


@given(st.text())
def test_names_and_sentences_keep_their_words(text):
    read = Reader(code(text))
    assert read.text == text and set(read.elements) <= {"code", "wbr"}
    sentence = Reader(tag("p", prose(text)))
    assert sentence.text.replace("`", "") == text.replace("`", "")
    assert set(sentence.elements) <= {"p", "code", "wbr"}


def test_html_is_kept_and_its_parts_are_not_trusted():
    assert escape(tag("b", "x")) == "<b>x</b>"
    assert join([HOSTILE, tag("i", "y")]) == f"{escape(HOSTILE)}<i>y</i>"
    assert isinstance(escape("x"), Html) and not isinstance(Html("<b>") + "x", Html)
    assert "<script" not in tag("p", HOSTILE, title=BREAKOUT)


def test_table_cells_are_escaped_and_aligned():
    shown = table([Column("a"), Column("n", numeric=True, note=BREAKOUT)], [[HOSTILE, "1"], ["x", "2"]], ["best"])
    read = Reader(shown)
    assert set(read.elements) == {"div", "table", "thead", "tbody", "tr", "th", "td"}
    assert read.attributes.count(("class", "number")) == 3 and ("class", "best") in read.attributes
    with pytest.raises(ValueError):
        table([Column("a")], [["too", "many"]])


@given(st.recursive(st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x), max_leaves=5))
def test_embedded_json_cannot_end_its_script(value):
    text = embedded_json([value, HOSTILE, BREAKOUT])
    assert not set("<>&") & set(text) and text.isascii()
    assert json.loads(text) == [value, HOSTILE, BREAKOUT]


@pytest.mark.parametrize(
    ("value", "shown"),
    [(None, "–"), (0, "0"), (0.03123, "0.0312"), (17.62, "17.6"), (1234.5, "1,234"), (3.1e-7, "3.10e-07"),
     (-0.0339, "−0.0339")],
)  # fmt: skip
def test_three_digits_that_matter(value, shown):
    assert words.significant(value) == shown


def test_words_of_people():
    assert words.interval(0.0312, 0.02981, 0.0327) == "0.0298 to 0.0327"
    assert words.interval(0.0312, None, 0.0327) == words.interval(None, 1, 2) == ""
    assert words.interval(-0.0023, -0.0071, 0.0022) == "−0.00710 to 0.00220"
    assert [words.size(n) for n in (None, 12, 56.4e6, 3.2e9)] == ["–", "12.0 bytes", "56.4 MB", "3.20 GB"]
    assert [words.duration(s) for s in (4.24, 200, 7500)] == ["4.2 s", "3 min 20 s", "2 h 05 min"]
    assert (words.count(1, "linear"), words.count(2100, "linear")) == ("1 linear", "2,100 linears")
    assert words.listed(["a", "b", "c"]) == "a, b and c" and words.listed([]) == ""
    long = "model.layers.10.mlp.experts.127.down_proj"
    assert len(words.shortened(long, 20)) == 20 and words.shortened(long, 20).endswith("down_proj")
    assert words.percent(0.9123) == "91.2 %"
