"""Several recipes on one model by many workers: each recipe is one task, and its checkpoint has the bytes of its run
alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from subeight.engine.job import Job, Settings
from subeight.engine.lane import Lane
from subeight.engine.loop import run
from subeight.models.model import Model
from subeight.records.progress import progress
from subeight.sweep import Where, hire


@dataclass(frozen=True)
class Work:
    """One recipe's job and its calibration ids [sequences, length]; None where no method needs any."""

    job: Job
    ids: Tensor | None


@dataclass(frozen=True)
class LoopJob:
    """What every worker is given: the model by a path that all of them see, as they do the directories of the jobs."""

    model: str
    works: tuple[Work, ...]
    settings: Settings
    threads: int
    trust_remote_code: bool = False

    def prepare(self) -> Model:
        """Opens the model."""
        torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        return Model(self.model, trust_remote_code=self.trust_remote_code)

    def answer(self, state: Model, task: int) -> float:
        """Carries out one recipe, or what an interrupted run left of it; returns its seconds."""
        work = self.works[task]
        (lane,) = run(state, [work.job], work.ids, self.settings)
        return lane.seconds


def run_spread(model: Model, works: Sequence[Work], settings: Settings, where: Where) -> list[Lane]:
    """What `run` gives for these jobs, carried out by workers."""
    path = str((model.source.gguf or model.directory).resolve())
    scratch = settings.scratch and settings.scratch.resolve()
    quiet = replace(settings, quiet=True, scratch=scratch)
    sent = tuple(replace(work, job=replace(work.job, directory=work.job.directory.resolve())) for work in works)
    job = LoopJob(path, sent, quiet, torch.get_num_threads(), model.trust_remote_code)
    lanes = [Lane(model, work.job, settings) for work in works]
    what = f"Quantizing {model.label} by {len(works)} recipes"
    with hire(job, where) as crew, progress(len(works), what, "recipes", quiet=settings.quiet) as advance:

        def done(number: int, seconds: float) -> None:
            lanes[number].seconds = seconds
            advance()

        crew.run(range(len(works)), done)
    return lanes
