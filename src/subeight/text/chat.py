"""Conversations to token ids: the one place where chat templates are applied.

A tokenizer without a chat template gets the plain form `User: ...`, `Assistant: ...`, one turn a line, and
`template_name` says so. Templates that write today's date are given a fixed one: the same conversation must
give the same tokens tomorrow.
"""

import datetime
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2

from subeight.errors import TextError
from subeight.text.hashing import hash_text
from subeight.text.tokens import Tokenizer, encode, encode_spans, prefix_of

Message = Mapping[str, Any]

TODAY = datetime.date(2025, 1, 1)


def template_name(tokenizer: Tokenizer) -> str:
    """`plain` for a tokenizer without a chat template, else `template:` and the template's hash."""
    if not tokenizer.chat_template:
        return "plain"
    template = tokenizer.chat_template
    text = template if isinstance(template, str) else json.dumps(template, sort_keys=True)
    return f"template:{hash_text(text)}"


def render(messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool) -> list[int]:
    """The ids of a conversation; with `add_generation_prompt`, up to where the assistant starts to write."""
    text = render_text(messages, tokenizer, add_generation_prompt)
    return _text_prefix(tokenizer) + encode(text, tokenizer)


def render_scored(messages: Sequence[Message], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """The ids of a conversation, and for each token whether the assistant wrote it.

    A turn of the assistant reaches from the end of the generation prompt to the end-of-turn mark, included.
    """
    text = render_text(messages, tokenizer, False)
    spans = [
        _span_of_turn(messages, turn, text, tokenizer)
        for turn, message in enumerate(messages)
        if message["role"] == "assistant"
    ]
    ids, scored = encode_spans(text, spans, tokenizer)
    prefix = _text_prefix(tokenizer)
    return prefix + ids, [False] * len(prefix) + scored


def answer_text(text: str, tokenizer: Tokenizer) -> str:
    """`text` as it stands right after the generation prompt."""
    return text if tokenizer.chat_template else " " + text.lstrip(" ")


def render_text(messages: Sequence[Message], tokenizer: Tokenizer, add_generation_prompt: bool) -> str:
    """The conversation as one string, special tokens written out."""
    if not tokenizer.chat_template:
        return _plain(messages, add_generation_prompt)
    try:
        return tokenizer.apply_chat_template(
            [dict(message) for message in messages],
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            chat_template=_without_clock(tokenizer.get_chat_template()),
            date_string=TODAY.strftime("%d %b %Y"),
        )
    except (jinja2.TemplateError, TypeError, ValueError) as error:
        roles = ", ".join(str(message["role"]) for message in messages)
        raise TextError(
            f"the model's chat template refuses a conversation of roles {roles} ({error}): "
            "change the messages to what the template takes, or give the prompt as `text`"
        ) from error


def _without_clock(template: str) -> str:
    """The template with each `strftime_now("...")` replaced by what it gives on the fixed day."""
    return re.sub(
        r"strftime_now\(\s*(['\"])(.*?)\1\s*\)",
        lambda call: json.dumps(TODAY.strftime(call[2])),
        template,
    )


def _plain(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    turns = [f"{str(message['role']).capitalize()}: {message['content']}\n" for message in messages]
    return "".join(turns) + ("Assistant:" if add_generation_prompt else "")


def _text_prefix(tokenizer: Tokenizer) -> list[int]:
    # a template writes its own BOS; the plain form is ordinary text
    return [] if tokenizer.chat_template else prefix_of(tokenizer)


def _span_of_turn(messages: Sequence[Message], turn: int, text: str, tokenizer: Tokenizer) -> tuple[int, int]:
    """Characters of `text` that the assistant wrote at `turn`, found by rendering the messages before it."""
    content = str(messages[turn]["content"]).strip()
    after = render_text(messages[: turn + 1], tokenizer, False)
    intact = text.startswith(after)
    if turn == 0 and tokenizer.chat_template:  # templates cannot render what stands before the first message
        at = after.rfind(content) if intact else text.find(content)
        end = len(after.rstrip()) if intact else at + len(content)
    else:
        before = render_text(messages[:turn], tokenizer, True)
        if intact and after.startswith(before):
            return len(before), max(len(before), len(after.rstrip()))
        # some templates rewrite earlier turns (dropping their reasoning, say): the words are looked for
        at = text.find(content, _common(before, text))
        end = at + len(content)
    if at < 0:
        raise TextError(
            f"the model's chat template hides turn {turn + 1} of a conversation, so it cannot be scored: "
            "leave earlier assistant turns out, or give the prompt as `text` and `completion`"
        )
    return at, end


def _common(one: str, other: str) -> int:
    for at, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return at
    return min(len(one), len(other))
