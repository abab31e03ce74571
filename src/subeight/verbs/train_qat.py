"""`train qat`: a quantized model trained through its rounding, beside the post-training result at the same bits."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from accelerate import PartialState

from subeight.engine.transcode import stored_plan, transcode
from subeight.errors import ModelError, RecordError
from subeight.evals.loss import recovered
from subeight.evals.passes import context_length
from subeight.evals.scoring import Question, ask, measure
from subeight.export import exporter_for
from subeight.models.model import Model
from subeight.recipes import Plan
from subeight.records import Coordinates
from subeight.text import Calibration, CalibrationSpec, calibrate, calibrate_all
from subeight.verbs.evaluate import own_record
from subeight.verbs.forecast import product_rate
from subeight.verbs.learning import KEPT, Asked, Learning, warnings_of
from subeight.verbs.options import Options
from subeight.verbs.parity import verified
from subeight.verbs.planning import target_of
from subeight.verbs.quantize import coordinates_of, quantize
from subeight.verbs.session import Result, Session, finish, finished, where

KIND = "train-qat"


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
    is read `asked.epochs` times, with `asked.blockwise` before that to tune codes block by block. `tell` is told,
    before it starts, what it will take and can gain. The result is a checkpoint of the same formats and bytes, in the
    run directory. The same command goes on where a killed one stopped.

    Raises:
        InputError: no or too little data, a start of another model, nothing to train.
    """
    options, asked = options or Options(), asked or Asked()
    session = Session(KIND, options)
    baseline = session.model(model)
    text = _text(baseline, data, asked, options.seed)
    evaluation = session.evaluation(baseline)
    begun = None if start is None else _require_of(session.model(start), baseline)
    if options.dry_run:
        return _dry(session, baseline, text, asked)
    identity: dict[str, Any] = {"baseline": baseline.coordinate, "recipe": recipe, "start": begun and begun.coordinate}
    identity |= {"data": text.hash, "evaluation": evaluation.hash}
    identity["asked"] = [asked.only, asked.epochs, asked.batch, asked.rate, asked.codes, asked.blockwise]
    learning = Learning(session, baseline, text, asked, options, tell)
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
        point = coordinates_of(session, baseline, plan, text, evaluation.hash)
        subject = {"model": baseline.label, "recipe": recipe, "data": data, "paths": {"model": where(model)}}
        warnings = warnings_of(numbers["training"])
        record = session.record(point, numbers, subject=subject, settings=asdict(asked), warnings=warnings)
        result = finish(run, record, (_sentence(numbers),))
    shutil.rmtree(run.directory / KEPT, ignore_errors=True)
    return result


def _trained(learning: Learning, begun: Model, plan: Plan, directory: Path) -> dict[str, Any]:
    """Trains, and writes the checkpoint into `directory`; what a record says of both."""
    learned = learning.learn(begun, directory)
    changed, values, quiet = learned.codes, learned.values, learning.options.quiet
    transcode(begun, plan, exporter_for(target_of(plan)), directory, changed=changed, values=values, quiet=quiet)
    return {
        "bits_per_weight": plan.bits_per_weight,
        "bytes": plan.bytes,
        "checkpoint": str(directory),
        "linears": sorted(changed),
        "training": learned.told,
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


def _dry(session: Session, baseline: Model, text: Calibration, asked: Asked) -> Result:
    """What it will take: the baseline once and the student forward and back, twice where blocks are tuned; the start
    left out."""
    weights = sum(linear.count for linear in baseline.linears if linear.block is not None or linear.kind == "head")
    passes = 8 if asked.blockwise else 4
    numbers = {
        "predicted": {
            "seconds": 2.0 * weights * passes * asked.epochs * text.ids.numel() / product_rate(session),
            "memory_bytes": 20 * weights,
            "disk_bytes": 2 * 12 * weights,
        }
    }
    coordinates = Coordinates(calibration=text.hash, stack=session.stack.hash)
    lines = (f"About {numbers['predicted']['seconds'] / 60:.0f} minutes for {text.ids.numel():,} tokens.",)
    return Result(session.record(coordinates, numbers, subject={"model": baseline.label}), lines=lines)


def _sentence(numbers: dict[str, Any]) -> str:
    low, high = numbers["gain_ci"]
    told = f"{len(numbers['linears'])} linears trained in {numbers['training']['seconds'] / 60:.0f} minutes: KL"
    share = f"{numbers['gain']:.0%} [{low:.0%}, {high:.0%}] of the loss is gone"
    return f"{told} {numbers['kl_start']:.4f} before, {numbers['kl']:.4f} after; {share}, at the same bits."
