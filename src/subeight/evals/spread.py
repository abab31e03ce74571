"""A pass over the text by many workers: each takes some batches through all blocks.

A batch is computed alone, in one process as in many, so the states are the same to the last bit for the same number of
threads in each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from subeight.evals.passes import Computing, Pass, run_pass
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.records.progress import progress
from subeight.sweep import Crew
from subeight.text import Batch

Packed = tuple[torch.dtype, tuple[int, ...], Any]
"""A tensor as bytes, for the way between processes: numpy has no bfloat16."""


@dataclass(frozen=True)
class PassTask:
    """One batch through the model at a path that every worker sees."""

    model: str
    batch: Batch


@dataclass(frozen=True)
class PassJob:
    """What every worker of an evaluation is given."""

    computing: Computing
    threads: int
    trust_remote_code: bool = False

    def prepare(self) -> dict[str, Model]:
        """The models opened so far, by path; none yet."""
        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        return {}

    def answer(self, state: dict[str, Model], task: PassTask) -> Packed:
        """The final states in front of the batch's scored tokens."""
        if task.model not in state:
            state[task.model] = Model(task.model, trust_remote_code=self.trust_remote_code)
        made = run_pass(state[task.model], [task.batch], self.computing, "")
        return packed(made.hidden[0])


def spread_pass(crew: Crew[PassTask], model: Model, listed: Sequence[Batch], computing: Computing, what: str) -> Pass:
    """What `run_pass` gives, by a crew that was hired for a PassJob."""
    path = str((model.source.gguf or model.directory).resolve())
    hidden = computing.shelf(4)
    with progress(len(listed), what, "batches", quiet=computing.quiet) as advance:

        def done(number: int, answer: Packed) -> None:
            hidden.put(number, unpacked(answer).to(computing.device))
            advance()

        crew.run([PassTask(path, batch) for batch in listed], done)
    return Pass(hidden, Shell(model, computing.dtype, computing.device).head())


def packed(value: Tensor) -> Packed:
    """The tensor's bytes."""
    return value.dtype, tuple(value.shape), value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def unpacked(found: Packed) -> Tensor:
    """The tensor that `packed` took apart, in memory of its own."""
    dtype, shape, data = found
    value = torch.empty(shape, dtype=dtype)
    if value.numel():  # numpy gives an empty array no stride that could be viewed
        value.flatten().view(torch.uint8).copy_(torch.from_numpy(data.copy()))
    return value
