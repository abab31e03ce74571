"""How `train qat` learns, alike in every process: what is trained, what it takes, what the text can teach."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from subeight.engine.retuning import Versions, retune
from subeight.engine.transcode import stored_plan, transcode
from subeight.errors import InputError
from subeight.export import exporter_for
from subeight.formats import QTensor
from subeight.methods.round.signround import SignRound
from subeight.models.align import align
from subeight.models.gauge import Gauge
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.whole import Whole
from subeight.recipes import Plan
from subeight.records import Coordinates
from subeight.text import Calibration
from subeight.train.learning import Distilled
from subeight.train.qat import Task, Training, forecast, loss_of_held, split, train, turned
from subeight.train.shards import shard, take_over
from subeight.train.student import Student, student
from subeight.verbs.options import Options
from subeight.verbs.planning import target_of
from subeight.verbs.quantize import loop_settings
from subeight.verbs.session import Result, Session

ALL, CULPRITS = "all", "culprits"
FEW = 3  # bits of a code, up to which a linear is a culprit
KEPT = ".blocks"  # of a run: what it needs to go on
TUNED = "tuned"  # in there: the checkpoint after its blocks were tuned
MOST = 1024  # sequences that blocks are tuned on at most: their states are held
WORTH = 0.01  # of the codes, under which a text is too short to learn them from


@dataclass(frozen=True)
class Asked:
    """How it is trained: tokens of text (None: all) in windows of `length`, `batch` of them a step.

    `blockwise`: codes are tuned block by block first. `codes`: learn them end to end too (None: where the text can tell
    a hundredth of them), not scales and norms alone.
    """

    only: str = ALL
    tokens: int | None = None
    epochs: int = 1
    length: int = 512
    batch: int = 4
    rate: float = 0.004
    checkpointing: bool = False
    codes: bool | None = None
    blockwise: bool = False


@dataclass(frozen=True)
class Learned:
    """Codes and scales by linear, vectors by name, and what is told of the training."""

    codes: dict[str, QTensor]
    values: dict[str, torch.Tensor]
    told: dict[str, Any]


@dataclass(frozen=True)
class Learning:
    """What every process of a training does alike: one, or those of `accelerate launch`."""

    session: Session
    baseline: Model
    text: Calibration
    asked: Asked
    options: Options
    tell: Callable[[str], None] | None = None

    @cached_property
    def _sharded(self) -> bool:
        return take_over() and PartialState().num_processes > 1

    def learn(self, begun: Model, directory: Path) -> Learned:
        """The student as it was best, the start included."""
        began = time.monotonic()
        names, ranks = trained(stored_plan(begun), self.asked.only), PartialState()
        gauge = align(self.baseline, begun)
        learner, task = self._task(begun, gauge, names)
        training = _training(self.asked, self.options, len(self.text.ids) // ranks.num_processes)
        predicted = forecast(task, training)
        codes = predicted["decided"] >= WORTH if self.asked.codes is None else self.asked.codes
        told: dict[str, Any] = {"predicted": predicted, "codes": codes}
        if self.asked.blockwise:
            predicted["seconds"] += predicted["seconds_a_step"] * self._tuner().steps
        if self.tell is not None and ranks.is_main_process:
            self.tell(foretold(predicted, codes=codes))
        if self.asked.blockwise:
            told["loss_start"] = loss_of_held(task, training)
            del learner, task
            if ranks.is_main_process:
                self._tune(Versions(begun, self.baseline, gauge), names, directory / KEPT)
            ranks.wait_for_everyone()
            learner, task = self._task(self.session.model(str(directory / KEPT / TUNED)), gauge, names)
        if not codes:
            learner.keep_codes()
        told |= train(task, training, directory / KEPT / "training")
        if "loss_start" in told and not told["loss_after"] < told["loss_start"]:
            learner, _ = self._task(begun, gauge, names)
            told["loss_after"] = told["loss_start"]
        found = learner.stored()
        told |= {"turned": turned(begun, found), "seconds": time.monotonic() - began}
        return Learned(found, learner.values(), told)

    def _tuner(self) -> SignRound:
        """What tunes blocks: as many steps as the text has batches, each epoch."""
        return SignRound(steps=max(1, self.asked.epochs * len(self._read()) // self.asked.batch))

    def _read(self) -> torch.Tensor:
        return split(self.text.ids, self.options.seed)[1][:MOST]

    def _tune(self, versions: Versions, names: set[str], folder: Path) -> None:
        """Writes the checkpoint whose codes are tuned block by block; does nothing where it is there already."""
        if (folder / TUNED / "config.json").is_file():
            return
        settings = replace(loop_settings(self.session), batch=self.asked.batch)
        changed = retune(versions, names, self._tuner(), self._read(), settings, folder / "blocks")
        plan, quiet = stored_plan(versions.start), self.options.quiet
        transcode(versions.start, plan, exporter_for(target_of(plan)), folder / TUNED, changed=changed, quiet=quiet)

    def _task(self, begun: Model, gauge: Gauge, names: set[str]) -> tuple[Student, Task]:
        dtype, device, baseline = self.session.dtype, self.session.device, self.baseline
        home = torch.device("cpu") if self._sharded else device  # no GPU holds all of it then
        learner = student(begun, baseline, gauge, names, dtype, home)
        whole = Whole(baseline, dtype, home).module
        teacher = whole.get_submodule(baseline.skeleton.trunk_name)
        heads = Shell(baseline, dtype, device).head(), Shell(begun, dtype, device).head()

        @torch.no_grad()
        def targets(ids: torch.Tensor) -> torch.Tensor:
            return teacher(input_ids=ids, use_cache=False).last_hidden_state

        distilled = Distilled(learner.module, begun.skeleton.trunk_name, heads)
        if self._sharded:
            shard(teacher, whole.get_submodule(baseline.skeleton.blocks_name).children(), device)
            shard(distilled, learner.module.get_submodule(begun.skeleton.blocks_name).children(), device)
        return learner, Task(learner, distilled, targets, self.text.ids.to(device))

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
