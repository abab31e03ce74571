"""One streamed pass of a model over the evaluation text: the final hidden state in front of every scored token.

Those states are small, and through the head they give the exact logits again, so the baseline's are computed once
and kept on disk under their coordinates.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from subeight.errors import InputError
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.shelf import Kept, Shelf, keep
from subeight.models.shell import Head, Shell
from subeight.records.coordinates import fingerprint
from subeight.records.memory import free_bytes
from subeight.records.progress import progress
from subeight.text import Batch, EvaluationSet, Sample, batches

BATCH_TOKENS = 4096


@dataclass(frozen=True)
class Computing:
    """In which precision, where, how loudly, and in how much memory a pass runs.

    `max_memory` are the bytes that one process may hold of blocks and states together (None: half of what is free);
    states for which that leaves no room lie in `scratch` while they are needed. Neither changes a number.
    """

    dtype: torch.dtype
    device: torch.device
    quiet: bool = False
    max_memory: int | None = None
    scratch: Path | None = None

    @property
    def room(self) -> int:
        """The bytes that blocks and states may take together."""
        return self.max_memory or free_bytes() // 2

    def shelf(self, share: int) -> Shelf:
        """A list of states that takes at most the `share`-th part of the room in memory."""
        return Shelf(self.room // share, self.scratch)


@dataclass(frozen=True)
class Sequences:
    """What is run: the samples that are scored token by token, then one sequence for each option of each question.

    The text of a question counts like any text, and a conversation's answer like any answer; the options follow the
    question alone.
    """

    samples: tuple[Sample, ...]
    scored: int  # the first `scored` samples are token by token, the others are options
    question: tuple[int, ...]
    option: tuple[int, ...]
    answers: tuple[int, ...]
    categories: tuple[str, ...]
    least: float = 0.5  # the length of the shortest in a batch relative to the longest

    @classmethod
    def of(cls, evaluation: EvaluationSet) -> "Sequences":
        """The sequences of an evaluation set, options unfolded."""
        plain = [
            replace(sample, choices=None, answer=None)
            for sample in evaluation.samples
            if sample.choices is None or sample.count or sample.needs_answer
        ]
        asked = [sample for sample in evaluation.samples if sample.choices is not None and sample.answer is not None]
        options: list[Sample] = []
        question: list[int] = []
        option: list[int] = []
        for number, sample in enumerate(asked):
            for at, choice in enumerate(sample.choices or ()):
                scored = (False,) * len(sample.ids) + (True,) * len(choice)
                ids = sample.ids + choice
                options.append(replace(sample, ids=ids, scored=scored, choices=None, answer=None, needs_answer=False))
                question.append(number)
                option.append(at)
        return cls(
            samples=(*plain, *options),
            scored=len(plain),
            question=tuple(question),
            option=tuple(option),
            answers=tuple(sample.answer or 0 for sample in asked),
            categories=tuple(sample.category for sample in asked),
        )

    def batches(self) -> list[Batch]:
        return batches(self.samples, BATCH_TOKENS, least=self.least)


@dataclass(frozen=True)
class Pass:
    """One model's states for all sequences: per batch [scored tokens, width], and its head."""

    hidden: Sequence[Tensor]
    head: Head


def places_of(batch: Batch) -> tuple[Tensor, Tensor]:
    """Rows and columns of the scored tokens of a batch, row by row."""
    rows, columns = torch.nonzero(batch.scored, as_tuple=True)
    return rows, columns


def run_pass(model: Model, listed: Sequence[Batch], computing: Computing, what: str) -> Pass:
    """Streams the model's blocks over the batches; memory holds one block, and the states as far as there is room."""
    shell = Shell(model, computing.dtype, computing.device)
    states, hidden = computing.shelf(4), computing.shelf(4)
    states.extend(shell.embed(batch.ids) for batch in listed)
    count = len(model.skeleton.blocks)
    with progress(count, what, "blocks", quiet=computing.quiet) as advance:
        for index in range(count):
            block = Block(model, index, computing.dtype, computing.device)
            for number, batch in enumerate(listed):
                states[number] = block(states[number], shell.call(tuple(batch.ids.shape), index))
            del block  # before the next one is read
            advance()
    for state, batch in zip(states, listed, strict=True):
        rows, columns = places_of(batch)
        final = shell.finish(state)
        hidden.append(final[rows.to(final.device), columns.to(final.device) - 1])
    return Pass(hidden, shell.head())


def cache_key(model: Model, computing: Computing, what: object) -> str:
    """Names what the baseline made of `what` under these settings."""
    return fingerprint([model.coordinate, str(computing.dtype), str(computing.device), torch.get_num_threads(), what])


def context_length(model: Model) -> int:
    """How many tokens the model takes."""
    return int(getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None) or 1 << 20)


def require_context(model: Model, context: int) -> None:
    """Refuses a `--context` after which the model takes no token.

    Raises:
        InputError: it is as long as the model's, or longer.
    """
    longest = context_length(model)
    if context >= longest:
        raise InputError(f"--context {context} leaves no room in the {longest} tokens that {model.label} knows.")


def reference_pass(
    model: Model,
    sequences: Sequences,
    evaluation: str,
    computing: Computing,
    cache: Path,
    run: Callable[..., Pass] = run_pass,
) -> Pass:
    """The baseline's pass, read from `cache` where the same one was made before; `run` makes it otherwise.

    The key holds the baseline, the evaluation, the tokens themselves, the dtype, the device and the thread count;
    what else of the stack changes numbers is the folder's matter.
    """
    listed = sequences.batches()
    rows = [[sample.ids, sample.scored] for sample in sequences.samples]
    path = cache / f"reference-{cache_key(model, computing, [evaluation, rows, BATCH_TOKENS])}.safetensors"
    if path.is_file():
        return Pass(Kept(path, computing.device), Shell(model, computing.dtype, computing.device).head())
    made = run(model, listed, computing, f"Running the baseline {model.label}")
    keep(path, made.hidden)
    return made
