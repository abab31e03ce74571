"""Training text to sequences with their scored tokens, and the part that is held out to see what was learned.

Rows are those of `docs/text.md`. What is scored there is what is trained on: a completion, the assistant's turns, all
of a text; of a question with choices, the right one. Completions and choices are closed by the end-of-text token, so
that a model learns to stop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from subeight.errors import TextError
from subeight.evals.passes import Sequences, context_length
from subeight.models.model import Model
from subeight.text import EvaluationSet, Sample, evaluate_set, hash_tokens

IGNORED = -100  # the label of a token that does not count, as torch has it


@dataclass(frozen=True)
class Lessons:
    """Sequences to train on, and those that are held out; `hash` is of both."""

    train: tuple[Sample, ...]
    held_out: tuple[Sample, ...]
    hash: str
    held_out_hash: str
    warnings: tuple[str, ...] = ()

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that is trained on."""
        return max(len(sample.ids) for sample in self.train)

    @property
    def scored(self) -> int:
        """Tokens that the loss counts in one pass over the training part."""
        return sum(sample.count for sample in self.train)

    @property
    def has_answers(self) -> bool:
        """Whether sequences have a scored end after a prompt, so that an answer can be right as a whole."""
        return any(_is_answer(sample) for sample in self.held_out)


def lessons(
    model: Model, data: str, *, held_out: str | None, share: float, length: int, seed: int, tokens: int | None = None
) -> Lessons:
    """Reads `data`, cuts sequences of at most `length` tokens, and holds out `held_out`, or a share of the documents.

    A document, with all its windows, is in one part. `tokens` caps what is held out.

    Raises:
        TextError: there is no text, a row cannot be learned from, or one part would be empty.
    """
    if not 0 < share < 1:
        raise TextError(f"--held-out-share was given {share:g}; give a share between 0 and 1, for instance 0.1.")
    window = min(length, context_length(model))
    tokenizer = model.tokenizer()
    stop = tokenizer.eos_token_id

    def read(source: str) -> list[Sample]:
        found = evaluate_set([source], tokenizer, window=window, longest=window).samples
        return [_learnable(sample, source, stop) for sample in found]

    given = read(data)
    if held_out is None:
        train, kept = _split(given, data, share, seed)
    else:
        train, kept = given, read(held_out)
    warnings = _cut_warnings(train, window) + _overlap_warnings(train, kept)
    kept = _capped(kept, tokens)
    return Lessons(tuple(train), tuple(kept), _hash([*train, *kept]), _hash(kept), tuple(warnings))


def _learnable(sample: Sample, source: str, stop: int | None) -> Sample:
    """The sample as it is trained on; choices keep theirs beside it, for the held-out part."""
    end = () if stop is None else (stop,)
    if sample.choices is not None:
        if sample.answer is None:
            raise TextError(
                f"document {sample.document!r} of {source} has choices but no `answer`, so there is nothing to learn; "
                "give the right one."
            )
        right = sample.choices[sample.answer]
        ids = (*sample.ids, *right, *end)
        scored = (*(False for _ in sample.ids), *(True for _ in (*right, *end)))
        return replace(sample, ids=ids, scored=scored, needs_answer=False)
    if sample.needs_answer:
        raise TextError(
            f"document {sample.document!r} of {source} ends with a user's turn, so there is no answer to learn; add "
            "the assistant's turn, or a `completion`."
        )
    if _is_answer(sample) and sample.ids[-1:] != end and sample.scored[-1]:
        return replace(sample, ids=(*sample.ids, *end), scored=(*sample.scored, *(True for _ in end)))
    return sample


def _is_answer(sample: Sample) -> bool:
    """Whether something unscored stands before what is scored, beyond what begins every text."""
    first = sample.scored.index(True) if any(sample.scored) else 0
    return first > 1


def _split(samples: Sequence[Sample], source: str, share: float, seed: int) -> tuple[list[Sample], list[Sample]]:
    """Documents in the order of their hashes; the first `share` of them is held out."""
    names = list(dict.fromkeys(sample.document for sample in samples))
    if len(names) < 2:
        raise TextError(
            f"{source} holds one document, and one part of the data must be held out to see what was learned; give "
            "more documents, or a second file with --held-out."
        )
    order = sorted(names, key=lambda name: hashlib.sha256(f"{seed}\n{name}".encode()).digest())
    out = set(order[: max(1, min(round(share * len(names)), len(names) - 1))])
    train = [sample for sample in samples if sample.document not in out]
    return train, [sample for sample in samples if sample.document in out]


def _capped(samples: list[Sample], tokens: int | None) -> list[Sample]:
    left = tokens
    kept: list[Sample] = []
    for sample in samples:
        if left is not None and kept and len(sample.ids) > left:
            break
        kept.append(sample)
        left = None if left is None else left - len(sample.ids)
    return kept


def _cut_warnings(samples: Sequence[Sample], window: int) -> list[str]:
    full = sum(len(sample.ids) >= window and _is_answer(sample) for sample in samples)
    if not full:
        return []
    return [f"{full} sequences reach --length {window}; of longer ones only the end is trained on."]


def _overlap_warnings(train: Sequence[Sample], kept: Sequence[Sample]) -> list[str]:
    known = {sample.ids for sample in train}
    same = sum(sample.ids in known for sample in kept)
    if not same:
        return []
    return [f"{same} of {len(kept)} held-out sequences are trained on too, word for word; what is measured flatters."]


def _hash(samples: Sequence[Sample]) -> str:
    rows = [row for sample in samples for row in (sample.ids, *(sample.choices or ()))]
    settings = {"for": "training", "answers": [sample.answer for sample in samples]}
    return hash_tokens(rows, [sample.scored for sample in samples], settings)


def held_out_sequences(held: Lessons) -> Sequences:
    """The held-out part as passes run it: answers token by token, then every choice of every question."""
    plain = tuple(replace(sample, choices=None, answer=None) for sample in held.held_out)
    asked = [_question(sample) for sample in held.held_out if sample.choices is not None]
    if not asked:
        return Sequences(plain, len(plain), (), (), (), ())
    options = Sequences.of(EvaluationSet(tuple(asked), ""))
    return replace(options, samples=(*plain, *options.samples), scored=len(plain))


def _question(sample: Sample) -> Sample:
    """The question alone, its choices beside it."""
    first = sample.scored.index(True)
    return replace(sample, ids=sample.ids[:first], scored=(False,) * first)


class LabelledRows(torch.utils.data.Dataset):
    """Sequences as transformers' Trainer takes them: ids and labels, which are not shifted."""

    def __init__(self, samples: Sequence[Sample]) -> None:
        self._samples = samples

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        sample = self._samples[index]
        labels = [token if counts else IGNORED for token, counts in zip(sample.ids, sample.scored, strict=True)]
        return {"input_ids": list(sample.ids), "labels": labels}


def collate(rows: Sequence[dict[str, list[int]]], pad: int = 0) -> dict[str, Tensor]:
    """Rows padded at the right to the longest: ids, labels and mask [rows, width]."""
    width = max(len(row["input_ids"]) for row in rows)

    def padded(name: str, value: int) -> Tensor:
        return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])

    mask = [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    found = {"input_ids": padded("input_ids", pad), "labels": padded("labels", IGNORED)}
    return {**found, "attention_mask": torch.tensor(mask)}


def scored_columns(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Columns whose next token counts in some row, and the labels [rows, columns] of those next tokens."""
    columns = (labels[:, 1:] != IGNORED).any(0).nonzero()[:, 0]
    return columns, labels[:, 1:][:, columns]
