"""What a model is measured on: token sequences, and which of their tokens are scored.

A `completion`: its tokens. Messages that end with the assistant: the assistant's turns. Messages that end
with the user: the baseline's own greedy answer, which the evals add with `with_answer`. Text: all tokens. The
first token of a sequence is never scored, for nothing predicts it.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from subeight.errors import TextError
from subeight.text.chat import answer_text, render, render_scored, template_name
from subeight.text.documents import read_documents
from subeight.text.hashing import hash_tokens
from subeight.text.rows import Document, naming
from subeight.text.tokens import Tokenizer, continue_text, encode, prefix_of


@dataclass(frozen=True)
class Sample:
    """One sequence; `scored[t]` says that token t, predicted from the tokens before it, counts."""

    ids: tuple[int, ...]
    scored: tuple[bool, ...]
    category: str
    document: str
    choices: tuple[tuple[int, ...], ...] | None = None  # continuations of `ids`
    answer: int | None = None
    needs_answer: bool = False

    @property
    def count(self) -> int:
        """How many tokens are scored."""
        return sum(self.scored)


@dataclass(frozen=True)
class EvaluationSet:
    """Samples in their fixed order, and the fingerprint that the evaluation coordinate carries."""

    samples: tuple[Sample, ...]
    hash: str

    @property
    def tokens(self) -> int:
        """All tokens of the samples, scored or not."""
        return sum(len(sample.ids) for sample in self.samples)


@dataclass(frozen=True)
class _Cut:
    window: int
    stride: int
    longest: int | None
    prefix: tuple[int, ...]


def evaluate_set(
    sources: Sequence[str | Path] | str | Path,
    tokenizer: Tokenizer,
    window: int = 512,
    tokens: int | None = None,
    stride: int | None = None,
    longest: int | None = None,
) -> EvaluationSet:
    """The samples of all `sources`, one of each category in turn, at most `tokens` tokens in all.

    A smaller cap gives a beginning of what a larger one gives; the last sample is cut. Plain text is cut in
    windows of `window` tokens; with `stride` the windows overlap and each scores only what the one before it
    did not reach. Other samples stay whole, up to `longest` tokens (what the model takes): of longer ones the
    end is kept.
    """
    listed = [sources] if isinstance(sources, str | Path) else list(sources)
    prefix = prefix_of(tokenizer)
    _check(listed, window, tokens, stride, len(prefix))
    cuts = _Cut(window, stride or window, longest, tuple(prefix))
    queues: dict[str, list[Sample]] = {}
    for document in _all_documents(listed):
        with naming(document):
            queues.setdefault(document.category, []).extend(_samples(document, tokenizer, cuts))
    samples = tuple(_cap(_in_turn(queues), tokens))
    if not samples:
        raise TextError(
            f"nothing is left to score in {', '.join(map(str, listed))}"
            + (f" with a cap of {tokens} tokens: raise it" if tokens else ": give text of two tokens or more")
        )
    # the caps need no place in it: what they do shows in the ids
    settings = {"window": window, "stride": cuts.stride, "template": template_name(tokenizer)}
    return EvaluationSet(samples, _hash(samples, settings))


def with_answer(sample: Sample, answer_ids: Sequence[int]) -> Sample:
    """`sample` continued by the baseline's own answer, which alone is scored."""
    return replace(
        sample,
        ids=(*sample.ids, *(int(token) for token in answer_ids)),
        scored=(*(False for _ in sample.ids), *(True for _ in answer_ids)),
        needs_answer=False,
    )


def _check(listed: list[str | Path], window: int, tokens: int | None, stride: int | None, prefix: int) -> None:
    if not listed:
        raise TextError("no evaluation text was given: give at least one source, such as builtin")
    if window < prefix + 2:
        raise TextError(f"an evaluation window of {window} tokens scores nothing: give at least {prefix + 2}")
    if stride is not None and not 1 <= stride <= window:
        raise TextError(
            f"a stride of {stride} does not fit windows of {window} tokens: "
            f"give 1 to {window}, or none for windows that do not overlap"
        )
    if tokens is not None and tokens < 2:
        raise TextError(f"a cap of {tokens} evaluation tokens scores nothing: give at least 2")


def _all_documents(sources: list[str | Path]) -> Iterator[Document]:
    """Documents of all sources; an id that an earlier source has used is made another."""
    seen: set[str] = set()
    for number, source in enumerate(sources, start=1):
        documents = read_documents(source, part="evaluation")
        ids = {document.id for document in documents}
        for document in documents:
            yield replace(document, id=f"{number}/{document.id}") if document.id in seen else document
        seen |= ids


def _samples(document: Document, tokenizer: Tokenizer, cuts: _Cut) -> list[Sample]:
    if document.choices is not None:
        return [_choice_sample(document, tokenizer, cuts)]
    if document.completion is not None:
        before, after = _context(document, document.completion, tokenizer, cuts)
        return [_sample(document, before + after, [False] * len(before) + [True] * len(after), cuts)]
    if document.messages is None:
        return _windows(document, encode(document.text or "", tokenizer), cuts)
    if document.messages[-1]["role"] == "assistant":
        ids, scored = render_scored(document.messages, tokenizer)
        return [_sample(document, ids, scored, cuts)]
    ids = render(document.messages, tokenizer, add_generation_prompt=True)
    return [replace(_sample(document, ids, [False] * len(ids), cuts), needs_answer=True)]


def _context(document: Document, continuation: str, tokenizer: Tokenizer, cuts: _Cut) -> tuple[list[int], list[int]]:
    """The ids before a continuation, and its own."""
    if document.messages is None:
        before, after = continue_text(document.text or "", continuation, tokenizer)
        return [*cuts.prefix, *before], after
    before = render(document.messages, tokenizer, add_generation_prompt=True)
    return before, encode(answer_text(continuation, tokenizer), tokenizer)


def _choice_sample(document: Document, tokenizer: Tokenizer, cuts: _Cut) -> Sample:
    """A question with its choices; its text counts like any text, a conversation waits for its answer."""
    gap = "" if document.messages is not None or (document.text or "")[-1:].isspace() else " "
    choices = document.choices or ()
    pairs = [
        _context(document, choice if choice[:1].isspace() else gap + choice, tokenizer, cuts) for choice in choices
    ]
    ids = pairs[0][0]
    whole_text = document.messages is None
    return replace(
        _sample(document, ids, [whole_text] * len(ids), cuts),
        choices=tuple(tuple(after) for _, after in pairs),
        needs_answer=not whole_text and (document.messages or ())[-1]["role"] != "assistant",
    )


def _sample(document: Document, ids: list[int], scored: list[bool], cuts: _Cut) -> Sample:
    if cuts.longest is not None and len(ids) > cuts.longest:
        head = len(cuts.prefix) if tuple(ids[: len(cuts.prefix)]) == cuts.prefix else 0
        kept = cuts.longest - head
        ids, scored = ids[:head] + ids[-kept:], scored[:head] + scored[-kept:]
    return Sample(
        ids=tuple(ids),
        scored=(False, *scored[1:]),
        category=document.category,
        document=document.id,
        answer=document.answer,
    )


def _windows(document: Document, body: list[int], cuts: _Cut) -> list[Sample]:
    """Windows of a long text, each begun as the tokenizer begins a text, each scoring what is new in it."""
    prefix = list(cuts.prefix)
    if body[: len(prefix)] == prefix:
        body = body[len(prefix) :]
    width = cuts.window - len(prefix)
    step = min(cuts.stride, width)
    samples, reached = [], 0
    for start in range(0, max(len(body), 1), step):
        end = min(start + width, len(body))
        new = [False] * (len(prefix) + reached - start) + [True] * (end - reached)
        sample = _sample(document, prefix + body[start:end], new, replace(cuts, longest=None))
        if sample.count:
            samples.append(sample)
        reached = end
        if end == len(body):
            break
    return samples


def _in_turn(queues: dict[str, list[Sample]]) -> Iterator[Sample]:
    """One sample of each category in turn, categories in the order of their first document."""
    for number in range(max(map(len, queues.values()), default=0)):
        yield from (queue[number] for queue in queues.values() if number < len(queue))


def _cap(samples: Iterator[Sample], tokens: int | None) -> Iterator[Sample]:
    left = tokens
    for sample in samples:
        if left is None or len(sample.ids) <= left:
            yield sample
            left = None if left is None else left - len(sample.ids)
            continue
        short = replace(sample, ids=sample.ids[:left], scored=sample.scored[:left])
        # half a prompt is another prompt: only what is scored as it stands can be cut
        if short.count and not sample.needs_answer and sample.choices is None:
            yield short
        return


def _hash(samples: Sequence[Sample], settings: Mapping[str, object]) -> str:
    rows = [row for sample in samples for row in (sample.ids, *(sample.choices or ()))]
    shapes = [[len(sample.choices or ()), sample.answer, sample.needs_answer] for sample in samples]
    return hash_tokens(rows, [sample.scored for sample in samples], {**settings, "samples": shapes})
