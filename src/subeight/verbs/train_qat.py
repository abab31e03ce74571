"""`train qat`: a quantized model trained through its rounding, beside the post-training result at the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import parse_flag_from_env

from subeight.engine.transcode import stored_plan, transcode
from subeight.errors import InputError, ModelError, RecordError
from subeight.evals.loss import recovered
from subeight.evals.passes import context_length
from subeight.evals.scoring import Question, ask, measure
from subeight.export import exporter_for
from subeight.models.align import align
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.whole import Whole
from subeight.recipes import Plan
from subeight.records import Coordinates
from subeight.text import Calibration, CalibrationSpec, calibrate, calibrate_all
from subeight.train.learning import Distilled
from subeight.train.qat import Task, Training, forecast, train
from subeight.train.student import Student, student
from subeight.verbs.evaluate import own_record
from subeight.verbs.forecast import product_rate
from subeight.verbs.options import Options
from subeight.verbs.parity import verified
from subeight.verbs.planning import target_of
from subeight.verbs.quantize import quantize
from subeight.verbs.session import Result, Session, finish, finished, where

KIND = "train-qat"
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


def train_qat(
    model: str,
    recipe: str = "best-int2",
    *,
    data: str = "builtin",
    start: str | None = None,
    asked: Asked | None = None,
    tell: Callable[[str], None] | None = None,
    options: Options | None = None,
) -> Result:
    """Trains codes, scales and norms of `model` quantized by `recipe` until its logits are nearer to the model's own.

    It begins with the post-training result: `start`, a checkpoint that `quantize` made of this model, or one made now.
    `asked.only` is `all`, `culprits` (linears of at most 3 bits) or a glob; what is not trained stays as it is. `data`
    is read `asked.epochs` times. `tell` is told, before it starts, what it will take and can gain. The result is a
    checkpoint of the same formats and bytes, in the run directory. The same command goes on where a killed one stopped.

    Raises:
        InputError: no or too little data, a start of another model, nothing to train, a launch with FSDP.
    """
    _require_no_shards()
    options, asked = options or Options(), asked or Asked()
    session = Session(KIND, options)
    baseline = session.model(model)
    text = _text(baseline, data, asked, options.seed)
    evaluation = session.evaluation(baseline)
    begun = None if start is None else _require_of(session.model(start), baseline)
    if options.dry_run:
        return _dry(session, baseline, text, asked)
    identity: dict[str, Any] = {
        "baseline": baseline.coordinate,
        "recipe": recipe,
        "start": begun and begun.coordinate,
        "data": text.hash,
    }
    identity |= {
        "evaluation": evaluation.hash,
        "asked": [asked.only, asked.epochs, asked.batch, asked.rate, asked.codes],
    }
    learning = _Learning(session, baseline, text, asked, options, tell)
    ranks = PartialState(cpu=session.device.type == "cpu")
    if not ranks.is_main_process:
        return learning.follow(ranks, begun)
    with session.run(baseline, identity) as run:
        if before := finished(run, [run.directory]):
            return before
        begun = begun or _quantized(session, model, recipe, run.directory / KEPT / "start")
        ranks.wait_for_everyone()
        plan = stored_plan(begun)
        numbers = _trained(learning, begun, plan, run.directory)
        question = ask(baseline, evaluation, session.computing, session.cache)
        numbers |= _compared(question, begun, session.model(str(run.directory)), options.seed)
        point = Coordinates(
            baseline=baseline.coordinate,
            recipe=plan.fingerprint,
            calibration=text.hash,
            evaluation=evaluation.hash,
            stack=session.stack.hash,
        )
        subject = {"model": baseline.label, "recipe": recipe, "data": data, "paths": {"model": where(model)}}
        warnings = _warnings(numbers["training"])
        record = session.record(point, numbers, subject=subject, settings=asdict(asked), warnings=warnings)
        result = finish(run, record, (_sentence(numbers),))
    shutil.rmtree(run.directory / KEPT, ignore_errors=True)
    return result


@dataclass(frozen=True)
class _Learning:
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
            self.tell(_foretold(predicted, codes=codes))
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


def _trained(learning: _Learning, begun: Model, plan: Plan, directory: Path) -> dict[str, Any]:
    """Trains, and writes the checkpoint into `directory`; what a record says of both."""
    learner, told = learning.learn(begun, directory)
    changed, values, quiet = learner.stored(), learner.values(), learning.options.quiet
    transcode(begun, plan, exporter_for(target_of(plan)), directory, changed=changed, values=values, quiet=quiet)
    return {
        "bits_per_weight": plan.bits_per_weight,
        "bytes": plan.bytes,
        "checkpoint": str(directory),
        "linears": sorted(changed),
        "training": told,
        "parity": verified(directory, learning.session),
    }


def _compared(question: Question, start: Model, trained_model: Model, seed: int) -> dict[str, Any]:
    """The loss of both on the evaluation text, and the share that training took away."""
    first, last = (measure(question, one) for one in (start, trained_model))
    gain = recovered(first, last, seed=seed)
    found: dict[str, Any] = {"gain": gain.value, "gain_ci": gain.ci}
    for name, loss in (("kl_start", first), ("kl", last)):
        found |= {name: loss.value, f"{name}_ci": loss.interval(seed).ci}
    return found


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


def _require_no_shards() -> None:
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        raise InputError(
            "`accelerate launch` was asked for FSDP, but every process here holds the whole model; launch it "
            "without --use_fsdp (each process takes its part of every step)."
        )


def _text(model: Model, data: str, asked: Asked, seed: int) -> Calibration:
    length = min(asked.length, context_length(model))
    if asked.tokens is None:
        return calibrate_all(data, length, seed, model.tokenizer())
    return calibrate(CalibrationSpec(data, max(2, asked.tokens // length), length, seed), model.tokenizer())


def _require_of(start: Model, baseline: Model) -> Model:
    """The start, where its record says that it was made of this model."""
    if start.codes is None:
        raise ModelError(f"{start.label} is not quantized; give a --start that `quantize` made, or leave it out.")
    record = own_record(start.directory)
    if record is not None and record.coordinates.baseline != baseline.coordinate:
        raise RecordError(
            f"{start.label} was made of another model than {baseline.label} (baseline "
            f"{record.coordinates.baseline} and {baseline.coordinate}); give one that was quantized from this."
        )
    return start


def _quantized(session: Session, model: str, recipe: str, directory: Path) -> Model:
    """The post-training result that it begins with; a run that was killed has it already."""
    quantize(model, recipe, options=replace(session.options, out=directory))
    return session.model(str(directory))


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


def _dry(session: Session, baseline: Model, text: Calibration, asked: Asked) -> Result:
    """What it will take: the baseline once and the student forward and back, for every token; the start left out."""
    weights = sum(linear.count for linear in baseline.linears if linear.block is not None or linear.kind == "head")
    numbers = {
        "predicted": {
            "seconds": 4 * 2.0 * weights * asked.epochs * text.ids.numel() / product_rate(session),
            "memory_bytes": 20 * weights,
            "disk_bytes": 2 * 12 * weights,
        }
    }
    coordinates = Coordinates(calibration=text.hash, stack=session.stack.hash)
    lines = (f"About {numbers['predicted']['seconds'] / 60:.0f} minutes for {text.ids.numel():,} tokens.",)
    return Result(session.record(coordinates, numbers, subject={"model": baseline.label}), lines=lines)


def _foretold(predicted: dict[str, float], *, codes: bool) -> str:
    return (
        f"About {predicted['seconds'] / 60:.0f} minutes. So many tokens ({predicted['tokens']:,.0f}) place "
        f"{predicted['decided']:.2%} of the codes within a quarter of a code, half of the codes would take "
        f"{predicted['tokens_for_half']:,.0f}: {'codes, scales and norms' if codes else 'scales and norms alone'} are "
        "trained."
    )


def _warnings(training: dict[str, Any]) -> list[str]:
    """That the text is too short to learn codes from."""
    predicted, codes = training["predicted"], training["codes"]
    if predicted["decided"] >= WORTH:
        return []
    if codes:
        return [f"The text is too short to learn codes from: many turn by chance. {_foretold(predicted, codes=codes)}"]
    return [f"The text is too short to learn codes from (`--codes` does it still). {_foretold(predicted, codes=codes)}"]


def _sentence(numbers: dict[str, Any]) -> str:
    low, high = numbers["gain_ci"]
    told = f"{len(numbers['linears'])} linears trained in {numbers['training']['seconds'] / 60:.0f} minutes: KL"
    share = f"{numbers['gain']:.0%} [{low:.0%}, {high:.0%}] of the loss is gone"
    return f"{told} {numbers['kl_start']:.4f} before, {numbers['kl']:.4f} after; {share}, at the same bits."
