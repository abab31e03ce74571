import datetime

import pytest

from subeight.errors import TextError
from subeight.text.chat import TODAY, render, render_scored, template_name
from subeight.text.tokens import encode

from .conftest import CHATML, make_tokenizer

TALK = [
    {"role": "user", "content": "the cat"},
    {"role": "assistant", "content": " sat\n"},
    {"role": "user", "content": "and"},
    {"role": "assistant", "content": "ran"},
]


def scored_text(messages, tokenizer):
    ids, scored = render_scored(messages, tokenizer)
    assert len(ids) == len(scored)
    return tokenizer.decode([token for token, flag in zip(ids, scored, strict=True) if flag])


def test_template_is_applied_as_transformers_does(chatml):
    expected = chatml.apply_chat_template(TALK, tokenize=True, add_generation_prompt=True)["input_ids"]
    assert render(TALK, chatml, add_generation_prompt=True) == expected
    assert render_scored(TALK, chatml)[0] == render(TALK, chatml, add_generation_prompt=False)


def test_assistant_turns_with_their_end_mark_are_scored(chatml):
    assert scored_text(TALK, chatml) == " sat\n<|im_end|>ran<|im_end|>"


def test_an_assistant_that_speaks_first(chatml, plain):
    talk = [{"role": "assistant", "content": "the cat"}, {"role": "user", "content": "and"}]
    assert scored_text(talk, chatml) == "the cat<|im_end|>"
    assert scored_text(talk, plain) == " the cat"


def test_plain_form_without_a_template(with_bos):
    assert template_name(with_bos) == "plain"
    ids = render(TALK[:1], with_bos, add_generation_prompt=True)
    assert ids[0] == with_bos.bos_token_id
    assert with_bos.decode(ids[1:]) == "User: the cat\nAssistant:"
    assert scored_text(TALK, with_bos) == "  sat ran"


def test_bos_is_not_doubled_after_a_template():
    tokenizer = make_tokenizer(bos=True, template="{{ bos_token }}" + CHATML)
    ids = render(TALK, tokenizer, add_generation_prompt=False)
    assert ids.count(tokenizer.bos_token_id) == 1 and ids[0] == tokenizer.bos_token_id
    assert render_scored(TALK, tokenizer)[0] == ids


def test_a_template_that_rewrites_earlier_turns():
    """As templates of reasoning models do: earlier turns are shortened once a new one follows."""
    tokenizer = make_tokenizer(
        template="{% for m in messages %}<|im_start|>{{ m['role'] }}\n"
        "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}"
        "{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    talk = [*TALK[:1], {"role": "assistant", "content": "sat"}, *TALK[2:]]
    assert scored_text(talk, tokenizer) == "sat<think></think>ran<|im_end|>"


def test_a_template_that_hides_a_turn():
    tokenizer = make_tokenizer(template="{{ messages[-1]['content'] }}")
    with pytest.raises(TextError, match="hides turn 2"):
        render_scored(TALK, tokenizer)


def test_a_template_that_refuses():
    tokenizer = make_tokenizer(template="{{ raise_exception('roles must alternate') }}")
    with pytest.raises(TextError, match=r"refuses a conversation of roles user \(roles must alternate\)"):
        render(TALK[:1], tokenizer, add_generation_prompt=True)


def test_the_date_in_a_template_stands_still():
    tokenizer = make_tokenizer(
        template="{{ strftime_now('%Y') }} {{ strftime_now( \"%d\" ) }} {{ date_string }}{{ messages[0]['content'] }}"
    )
    assert datetime.date(2025, 1, 1) == TODAY
    ids = render(TALK[:1], tokenizer, add_generation_prompt=False)
    assert ids == encode("2025 01 01 Jan 2025the cat", tokenizer)


def test_template_names_tell_templates_apart(chatml):
    other = make_tokenizer(template=CHATML + " ")
    assert template_name(chatml).startswith("template:")
    assert template_name(chatml) == template_name(make_tokenizer(template=CHATML)) != template_name(other)
