"""One document: a row of a JSONL or Parquet file, checked field by field."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from subeight.errors import TextError
from subeight.text.chat import Message

ROLES = ("system", "developer", "user", "assistant", "tool", "function")


@dataclass(frozen=True)
class Document:
    """A text or a conversation, its category, and where there are any, its completion or choices.

    Resampling for intervals is by document: `id` says which tokens belong together.
    """

    id: str
    category: str
    text: str | None = None
    messages: tuple[Message, ...] | None = None
    completion: str | None = None
    choices: tuple[str, ...] | None = None
    answer: int | None = None


@contextmanager
def naming(document: Document) -> Iterator[None]:
    """Errors inside say which document they are about."""
    try:
        yield
    except TextError as error:
        raise TextError(f"document {document.id!r}: {error}") from error


def document_of(row: object, where: str, name: str) -> Document | None:
    """The document that a row describes; None for a row of blank text.

    `where` is how an error names the row ("chat.jsonl, line 3"), `name` the id of a row that brings none.
    """
    if not isinstance(row, Mapping):
        raise TextError(f"{where} is not a JSON object: each line must be {{...}} with `text` or `messages`")
    text, messages = row.get("text"), row.get("messages")
    if (text is None) == (messages is None):
        has = "has neither `text` nor `messages`" if text is None else "has both `text` and `messages`"
        raise TextError(f"{where} {has}: give exactly one of them")
    if text is not None and not isinstance(text, str):
        raise TextError(f"{where}: `text` is {_kind(text)}, and must be a string")
    if text is not None and not text.strip():
        return None
    choices = _choices(row.get("choices"), where)
    return Document(
        id=str(row["id"]) if row.get("id") is not None else name,
        category=_string(row, "category", where) or ("text" if messages is None else "chat"),
        text=text,
        messages=None if messages is None else _messages(messages, where),
        completion=_string(row, "completion", where),
        choices=choices,
        answer=_answer(row.get("answer"), choices, where),
    )


def _string(row: Mapping[str, Any], field: str, where: str) -> str | None:
    value = row.get(field)
    if value is None:
        return None
    if not isinstance(value, str) or not value:
        raise TextError(f"{where}: `{field}` is {_kind(value)}, and must be a string that is not empty")
    return value


def _messages(value: object, where: str) -> tuple[Message, ...]:
    if not isinstance(value, Sequence) or isinstance(value, str) or not value:
        raise TextError(f"{where}: `messages` is {_kind(value)}, and must be a list of {{role, content}}")
    return tuple(_message(message, f"{where}, message {n}") for n, message in enumerate(value, start=1))


def _message(value: object, where: str) -> Message:
    if not isinstance(value, Mapping):
        raise TextError(f"{where} is {_kind(value)}, and must be an object {{role, content}}")
    role = value.get("role")
    if role not in ROLES:
        raise TextError(f"{where} has the role {role!r}: allowed are {', '.join(ROLES)}")
    # Parquet fills the fields that a message lacks with nulls
    kept = {key: field for key, field in value.items() if field is not None}
    return {**kept, "role": role, "content": _content(value.get("content"), kept, where)}


def _content(content: object, message: Mapping[str, Any], where: str) -> str:
    """Content as text: the OpenAI form also writes a list of parts, or null beside tool calls."""
    if isinstance(content, str):
        return content
    if content is None and ("tool_calls" in message or "function_call" in message):
        return ""
    if isinstance(content, Sequence):
        parts = [part.get("text") if isinstance(part, Mapping) else None for part in content]
        if all(isinstance(part, str) for part in parts):
            return "".join(str(part) for part in parts)
        raise TextError(f"{where} has content that is not text: leave out images and audio")
    raise TextError(f"{where} has no `content`: a message must say something")


def _choices(value: object, where: str) -> tuple[str, ...] | None:
    if value is None:
        return None
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) < 2:
        raise TextError(f"{where}: `choices` is {_kind(value)}, and must be a list of two strings or more")
    if not all(isinstance(choice, str) and choice.strip() for choice in value):
        raise TextError(f"{where}: each of `choices` must be a string that is not empty")
    return tuple(value)


def _answer(value: object, choices: tuple[str, ...] | None, where: str) -> int | None:
    if value is None or choices is None:  # data sets also call a free text `answer`: without choices it is not ours
        return None
    if isinstance(value, str) and value in choices:
        return choices.index(value)
    if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(choices):
        return value
    raise TextError(
        f"{where}: `answer` is {value!r}, and must be an index from 0 to {len(choices) - 1} or one of `choices`"
    )


def _kind(value: object) -> str:
    if isinstance(value, str | Sequence) and not value:
        return "empty"
    return {str: "a string", list: "a list", dict: "an object", bool: "a truth value"}.get(
        type(value), "a number" if isinstance(value, int | float) else type(value).__name__
    )
