"""What an adapter learns from and what it is asked: rows of the `text` room, only what is scored counts.

A completion is followed by the end-of-text token, so that the model learns to stop; a row with choices teaches its
answer. Rows are split by document, so that nothing of a held-out document is trained on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from subeight.errors import TextError
from subeight.text import EvaluationSet, Sample, evaluate_set, hash_tokens, read_documents
from subeight.text.tokens import Tokenizer

IGNORED = -100  # a label that does not count, in transformers' words
MOST_HELD_OUT = 400  # documents: more only take longer


@dataclass(frozen=True)
class Lessons:
    """The samples that are trained on, those that are held out, and what a user should know of them."""

    train: tuple[Sample, ...]
    held_out: EvaluationSet
    hash: str  # of what is trained on
    warnings: tuple[str, ...] = ()

    @property
    def tokens(self) -> int:
        """Tokens that are read in one epoch."""
        return sum(len(sample.ids) for sample in self.train)

    @property
    def scored(self) -> int:
        """Tokens that are learned in one epoch."""
        return sum(sample.count for sample in self.train)

    @property
    def longest(self) -> int:
        return max(len(sample.ids) for sample in self.train)


def lessons(
    data: str | Path,
    tokenizer: Tokenizer,
    *,
    length: int,
    held_out: float | str | Path = 0.1,
    seed: int = 0,
    tokens: int | None = None,
) -> Lessons:
    """Reads `data`; `held_out` is a share of its documents, or another source to evaluate on.

    Text is cut in windows of `length` tokens, and of a longer conversation or completion the end is kept. `tokens` caps
    what is evaluated.

    Raises:
        TextError: no row to learn from, a conversation that ends with the user, or too little to hold any out.
    """
    samples = _samples(data, tokenizer, length)
    if isinstance(held_out, float):
        train, asked = _split(samples, held_out, seed, str(data))
    else:
        train, asked = samples, _samples(held_out, tokenizer, length)
    settings: dict[str, object] = {"length": length}
    learned = tuple(taught for sample in train if (taught := _taught(sample)).count)
    if not learned:
        raise TextError(f"{data} has nothing to learn from: no token of it is scored; give rows with a completion.")
    known = {sample.ids for sample in learned}
    again = sum(sample.ids in known for each in asked for sample in [_taught(each)])
    questions = tuple(_capped([part for sample in asked for part in _asked(sample)], tokens))
    warnings = []
    if again:
        warnings.append(f"{again} of {len(asked)} held-out rows are trained on too, word by word: they flatter.")
    found = EvaluationSet(questions, _hash(questions, {**settings, "held out": True}))
    return Lessons(learned, found, _hash(learned, settings), tuple(warnings))


def _samples(source: str | Path, tokenizer: Tokenizer, length: int) -> tuple[Sample, ...]:
    if length < 8:
        raise TextError(f"--length {length} leaves no room for a row; give 8 tokens or more.")
    answered = {d.id for d in read_documents(source) if d.completion is not None or d.choices is not None}
    found = evaluate_set(source, tokenizer, window=length, longest=length - 1).samples
    waiting = [sample.document for sample in found if sample.needs_answer and sample.choices is None]
    if waiting:
        raise TextError(
            f"{len(waiting)} conversations of {source} end with the user (first {waiting[0]!r}), so there is no answer "
            "to learn from; end them with the assistant's turn, or give a `completion`."
        )
    unanswered = [sample.document for sample in found if sample.choices is not None and sample.answer is None]
    if unanswered:
        raise TextError(
            f"{len(unanswered)} rows of {source} have `choices` and no `answer` (first {unanswered[0]!r}); give the "
            "index or the text of the right one."
        )
    return tuple(_ended(sample, tokenizer) if sample.document in answered else sample for sample in found)


def _ended(sample: Sample, tokenizer: Tokenizer) -> Sample:
    """A completion, or every choice, followed by the end of the text."""
    end = tokenizer.eos_token_id
    if not isinstance(end, int):
        return sample
    if sample.choices is not None:
        return replace(sample, choices=tuple((*c, end) if c[-1] != end else c for c in sample.choices))
    if sample.ids[-1] == end:
        return sample
    return replace(sample, ids=(*sample.ids, end), scored=(*sample.scored, True))


def _taught(sample: Sample) -> Sample:
    """The sample as it is trained on: of a question its answer."""
    if sample.choices is None or sample.answer is None:
        return sample
    answer = sample.choices[sample.answer]
    scored = (False,) * len(sample.ids) + (True,) * len(answer)
    return replace(
        sample, ids=sample.ids + answer, scored=scored, choices=None, answer=None, needs_answer=False
    )


def _asked(sample: Sample) -> list[Sample]:
    """The sample as it is evaluated: a question once by its answer's tokens and once by its choices."""
    if sample.choices is None:
        return [sample]
    silent = replace(sample, scored=(False,) * len(sample.ids), needs_answer=False)
    return [_taught(sample), silent]


def _split(
    samples: Sequence[Sample], share: float, seed: int, source: str
) -> tuple[tuple[Sample, ...], tuple[Sample, ...]]:
    """Documents drawn from the seed; where there is one document only, its last windows are held out."""
    if not 0 < share < 1:
        raise TextError(f"--held-out {share:g} is no share of the documents; give a number between 0 and 1, such as 0.1.")
    documents = list(dict.fromkeys(sample.document for sample in samples))
    if len(documents) == 1:
        count = max(1, round(share * len(samples)))
        if count >= len(samples):
            raise TextError(f"{source} is a single row, so none can be held out; give more rows, or --evals.")
        return tuple(samples[:-count]), tuple(samples[-count:])
    count = min(max(1, round(share * len(documents))), MOST_HELD_OUT, len(documents) - 1)
    order = torch.randperm(len(documents), generator=torch.Generator().manual_seed(seed)).tolist()
    chosen = {documents[place] for place in order[:count]}
    train = tuple(sample for sample in samples if sample.document not in chosen)
    return train, tuple(sample for sample in samples if sample.document in chosen)


def _capped(samples: Sequence[Sample], tokens: int | None) -> list[Sample]:
    kept: list[Sample] = []
    left = tokens
    for sample in samples:
        if left is not None and kept and len(sample.ids) > left:
            break
        kept.append(sample)
        left = None if left is None else left - len(sample.ids)
    return kept


def _hash(samples: Sequence[Sample], settings: dict[str, object]) -> str:
    rows = [row for sample in samples for row in (sample.ids, *(sample.choices or ()))]
    return hash_tokens(rows, [sample.scored for sample in samples], settings)


def rows_of(samples: Sequence[Sample]) -> list[dict[str, list[int]]]:
    """The samples as transformers' Trainer takes them: what does not count is labelled -100."""
    return [
        {
            "input_ids": list(sample.ids),
            "labels": [token if counts else IGNORED for token, counts in zip(sample.ids, sample.scored, strict=True)],
        }
        for sample in samples
    ]


def collate(rows: Sequence[dict[str, list[int]]]) -> dict[str, Tensor]:
    """A batch, padded behind: causal attention never looks there, and no padding counts."""
    longest = max(len(row["input_ids"]) for row in rows)
    ids = torch.zeros(len(rows), longest, dtype=torch.long)
    labels = torch.full((len(rows), longest), IGNORED, dtype=torch.long)
    for at, row in enumerate(rows):
        ids[at, : len(row["input_ids"])] = torch.tensor(row["input_ids"])
        labels[at, : len(row["labels"])] = torch.tensor(row["labels"])
    return {"input_ids": ids, "labels": labels}
