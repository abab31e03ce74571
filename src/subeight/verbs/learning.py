"""How `train qat` learns, alike in every process: what is trained, what it takes, what the text can teach."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from subeight.engine.transcode import stored_plan
from subeight.errors import InputError
from subeight.models.align import align
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.whole import Whole
from subeight.recipes import Plan
from subeight.records import Coordinates
from subeight.text import Calibration
from subeight.train.learning import Distilled
from subeight.train.qat import Task, Training, forecast, train
from subeight.train.student import Student, student
from subeight.verbs.options import Options
from subeight.verbs.session import Result, Session

ALL, CULPRITS = "all", "culprits"
FEW = 3  # bits of a code, up to which a linear is a culprit
KEPT = ".blocks"  # of a run: what it needs to go on
WORTH = 0.01  # of the codes, under which a text is too short to learn them from


@dataclass(frozen=True)
class Asked:
    """How it is trained: tokens of text (None: all) in windows of `length`, `batch` of them a step.

    `codes`: learn them too (None: where the text can tell a hundredth of them), not scales and norms alone.
    """

    only: str = ALL
    tokens: int | None = None
    epochs: int = 1
    length: int = 512
    batch: int = 4
    rate: float = 0.004
    checkpointing: bool = False
    codes: bool | None = None


@dataclass(frozen=True)
class Learning:
    """What every process of a training does alike: one, or those of `accelerate launch`."""

    session: Session
    baseline: Model
    text: Calibration
    asked: Asked
    options: Options
    tell: Callable[[str], None] | None = None

    def learn(self, begun: Model, directory: Path) -> tuple[Student, dict[str, Any]]:
        """The student as it was best, and what is told of its training."""
        names = trained(stored_plan(begun), self.asked.only)
        learner, task = _task(self.session, self.baseline, begun, names, self.text)
        training = _training(self.asked, self.options, len(self.text.ids) // PartialState().num_processes)
        predicted = forecast(task, training)
        codes = predicted["decided"] >= WORTH if self.asked.codes is None else self.asked.codes
        if not codes:
            learner.keep_codes()
        if self.tell is not None and PartialState().is_main_process:
            self.tell(foretold(predicted, codes=codes))
        told: dict[str, Any] = {"predicted": predicted, "codes": codes}
        return learner, told | train(task, training, directory / KEPT / "training")

    def follow(self, ranks: PartialState, begun: Model | None) -> Result:
        """A process beside the first, which quantizes, writes and measures: it learns and leaves."""
        if self.options.out is None:
            raise InputError("Several processes train into one directory; give it with --out.")
        if not (self.options.out / "record.json").is_file():
            ranks.wait_for_everyone()
            self.learn(begun or self.session.model(str(self.options.out / KEPT / "start")), self.options.out)
        return Result(self.session.record(Coordinates(), {}))


def trained(plan: Plan, only: str) -> set[str]:
    """The linears of the blocks that `only` means.

    Raises:
        InputError: it means none.
    """
    inside = [site for site in plan.quantized if site.linear.block is not None and site.weights is not None]
    if only == CULPRITS:
        found = {site.linear.name for site in inside if site.weights is not None and site.weights.code_bits <= FEW}
    else:
        found = {site.linear.name for site in inside if only == ALL or fnmatchcase(site.linear.name, only)}
    if not found:
        raise InputError(
            f"--only was given {only!r}, which means no quantized linear of this plan; give {ALL}, {CULPRITS} (at most "
            f"{FEW} bits) or a glob on their names."
        )
    return found


def _task(session: Session, baseline: Model, begun: Model, names: set[str], text: Calibration) -> tuple[Student, Task]:
    dtype, device = session.dtype, session.device
    gauge = align(baseline, begun)
    learner = student(begun, baseline, gauge, names, dtype, device)
    teacher = Whole(baseline, dtype, device).module.get_submodule(baseline.skeleton.trunk_name)
    heads = Shell(baseline, dtype, device).head(), Shell(begun, dtype, device).head()

    @torch.no_grad()
    def targets(ids: torch.Tensor) -> torch.Tensor:
        return teacher(input_ids=ids, use_cache=False).last_hidden_state

    distilled = Distilled(learner.module, begun.skeleton.trunk_name, heads)
    return learner, Task(learner, distilled, targets, text.ids.to(device))


def _training(asked: Asked, options: Options, sequences: int) -> Training:
    steps = max(1, asked.epochs * sequences // asked.batch)
    processes = PartialState().num_processes
    return Training(steps, asked.batch, asked.rate, options.seed, asked.checkpointing, options.quiet, processes)


def foretold(predicted: dict[str, float], *, codes: bool) -> str:
    """What a training will take, and what the text can teach it."""
    return (
        f"About {predicted['seconds'] / 60:.0f} minutes. So many tokens ({predicted['tokens']:,.0f}) place "
        f"{predicted['decided']:.2%} of the codes within a quarter of a code, half of the codes would take "
        f"{predicted['tokens_for_half']:,.0f}: {'codes, scales and norms' if codes else 'scales and norms alone'} are "
        "trained."
    )


def warnings_of(training: dict[str, Any]) -> list[str]:
    """That the text is too short to learn codes from."""
    predicted, codes = training["predicted"], training["codes"]
    if predicted["decided"] >= WORTH:
        return []
    if codes:
        return [f"The text is too short to learn codes from: many turn by chance. {foretold(predicted, codes=codes)}"]
    return [f"The text is too short to learn codes from (`--codes` does it still). {foretold(predicted, codes=codes)}"]
