from hypothesis import given, settings
from hypothesis import strategies as st

from subeight.text.tokens import continue_text, encode, encode_spans, end_document, prefix_of

from .conftest import make_tokenizer

TOKENIZER = make_tokenizer()


class Slow:
    """A tokenizer without offsets, as those written in Python are."""

    is_fast = False
    eos_token_id = None

    def __call__(self, text, **options):
        assert "return_offsets_mapping" not in options
        return {"input_ids": [ord(character) for character in text]}


def test_prefix_is_what_the_tokenizer_adds(plain, with_bos):
    assert prefix_of(plain) == []
    assert prefix_of(with_bos) == [with_bos.bos_token_id]
    assert encode("the cat", with_bos) == encode("the cat", plain)


def test_documents_are_closed_once(plain):
    end = plain.eos_token_id
    assert end_document([5, 6], plain) == [5, 6, end]
    assert end_document([5, end], plain) == [5, end]
    assert end_document([5, end, 7], plain) == [5, end, 7]
    assert end_document([5], Slow()) == [5]


def test_spaces_go_to_the_continuation(plain):
    before, after = continue_text("the cat ", "sat on", plain)
    assert before == encode("the cat", plain)
    assert after == encode(" sat on", plain)


def test_a_context_keeps_its_ids_when_the_continuation_would_melt_into_it(plain):
    assert len(encode("the", plain)) == 1
    before, after = continue_text("th", "e", plain)
    assert (before, after) == (encode("th", plain), encode("e", plain))


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="the catäß\n.", max_size=30), st.text(alphabet="the catäß\n.", min_size=1, max_size=30))
def test_continuing_loses_no_character(context, continuation):
    before, after = continue_text(context, continuation, TOKENIZER)
    assert TOKENIZER.decode(before + after) == context + continuation
    assert after


@settings(max_examples=60, deadline=None)
@given(st.text(alphabet="the catäß\n.", min_size=1, max_size=40), st.data())
def test_spans_cover_their_characters(text, data):
    start = data.draw(st.integers(0, len(text) - 1))
    stop = data.draw(st.integers(start + 1, len(text)))
    ids, inside = encode_spans(text, [(start, stop)], TOKENIZER)
    assert ids == encode(text, TOKENIZER)
    assert text[start:stop] in TOKENIZER.decode([token for token, flag in zip(ids, inside, strict=True) if flag])
    assert inside == sorted(inside[: inside.index(True)]) + inside[inside.index(True) :]


def test_spans_without_offsets():
    ids, inside = encode_spans("abcdef", [(1, 3), (5, 6)], Slow())
    assert inside == [False, True, True, False, False, True]
    assert ids == [ord(character) for character in "abcdef"]
