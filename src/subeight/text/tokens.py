"""Text to token ids, the way the model's own tokenizer does it.

The tokens that a tokenizer puts in front of every text (BOS, where it has that habit) are kept apart, because
windows cut out of the middle of a text need them as well: some models compute nonsense without.
"""

from typing import Any, Protocol


class Tokenizer(Protocol):
    """What this room uses of a tokenizer of transformers."""

    chat_template: Any
    eos_token_id: Any
    is_fast: Any
    all_special_ids: Any

    def __call__(self, text: str, **options: Any) -> Any: ...

    def decode(self, token_ids: Any, **options: Any) -> Any: ...

    def get_chat_template(self) -> Any: ...

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any: ...


def encode(text: str, tokenizer: Tokenizer) -> list[int]:
    """The ids of `text` alone, nothing put before or after it."""
    return list(tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


def encode_spans(text: str, spans: list[tuple[int, int]], tokenizer: Tokenizer) -> tuple[list[int], list[bool]]:
    """The ids of `text`, and for each token whether it overlaps one of the `spans` of characters."""
    if not tokenizer.is_fast:
        return _encode_spans_by_prefix(text, spans, tokenizer)
    encoded = tokenizer(text, add_special_tokens=False, verbose=False, return_offsets_mapping=True)
    inside = [
        any(begin < stop and end > start and end > begin for start, stop in spans)
        for begin, end in encoded["offset_mapping"]
    ]
    return list(encoded["input_ids"]), inside


def _encode_spans_by_prefix(
    text: str, spans: list[tuple[int, int]], tokenizer: Tokenizer
) -> tuple[list[int], list[bool]]:
    # tokenizers written in Python keep no offsets: the tokens before a span are counted instead
    ids = encode(text, tokenizer)
    inside = [False] * len(ids)
    for start, stop in spans:
        first, last = (len(encode(text[:at], tokenizer)) for at in (start, stop))
        inside[first:last] = [True] * len(inside[first:last])
    return ids, inside


def prefix_of(tokenizer: Tokenizer) -> list[int]:
    """The ids that the tokenizer puts in front of a text by default: often [BOS] or nothing."""
    probe = "a"
    alone = encode(probe, tokenizer)
    whole = list(tokenizer(probe, verbose=False)["input_ids"])
    for at in range(len(whole) - len(alone) + 1):
        if whole[at : at + len(alone)] == alone:
            return whole[:at]
    return []


def end_document(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    """`ids` closed by the end-of-text token, unless a chat template has closed them already."""
    end = tokenizer.eos_token_id
    if end is None or end in ids[-2:]:  # templates often write a line break after their last mark
        return ids
    return [*ids, end]


def continue_text(context: str, continuation: str, tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """The ids of `context` and of `continuation`, split where a model that reads and then writes splits them.

    Spaces at the end of the context belong to the first token of the continuation, as in lm-eval. Where the
    two would melt into one token, the continuation is tokenized alone: the context's ids stay what they are.
    """
    kept = context.rstrip(" ")
    if kept:
        continuation = context[len(kept) :] + continuation
        context = kept
    before = encode(context, tokenizer)
    whole = encode(context + continuation, tokenizer)
    if whole[: len(before)] == before and len(whole) > len(before):
        return before, whole[len(before) :]
    return before, encode(continuation, tokenizer)
