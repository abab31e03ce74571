"""`train qlora`: adapters trained on a quantized base that stays packed, and every way of merging them, measured."""

import gc
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import PartialState

from subeight.errors import InputError
from subeight.evals.passes import Pass
from subeight.models.model import Model
from subeight.records import Coordinates, Record, Run, atomic_write, peak_rss_bytes
from subeight.records.memory import free_bytes
from subeight.train.adapters import (
    CONFIG,
    LoraShape,
    adapter_count,
    add_adapters,
    chosen_targets,
    load_into,
    read_adapter,
    require_fits,
    require_peft,
    save_adapter,
    shape_of,
)
from subeight.train.manifest import Manifest, manifest
from subeight.train.qlora import Course, train
from subeight.train.qlora_base import load_base
from subeight.train.qlora_data import Lessons, lessons
from subeight.train.qlora_fit import require_memory
from subeight.train.qlora_measure import Question, module_pass
from subeight.verbs.options import Options
from subeight.verbs.session import Result, Session, calibration_settings, finish, where
from subeight.verbs.train_case import Case, case_of
from subeight.verbs.train_merges import Merged, measure_merges, require_merge, require_possible

Tell = Callable[[Manifest], None]


@dataclass(frozen=True)
class Material:
    """What is held out of the data (a source of its own, or a share of its documents), and tokens a row at most."""

    held_out: str | None = None
    share: float = 0.1
    length: int = 512


@dataclass(frozen=True)
class _Work:
    """What one call does, besides on which model."""

    learned: Lessons
    shape: LoraShape
    names: tuple[str, ...]  # of the modules that get adapters
    course: Course
    given: Path | None
    merge: str
    tell: Tell | None
    source: str


def train_qlora(
    model: str,
    data: str,
    recipe: str | None = None,
    *,
    baseline: str | None = None,
    adapter: Path | None = None,
    material: Material | None = None,
    shape: LoraShape | None = None,
    course: Course | None = None,
    merge: str = "best",
    tell: Tell | None = None,
    options: Options | None = None,
) -> Result:
    """Trains LoRA adapters on a base that `recipe` (default `nf4`) quantizes, or that is quantized already.

    The run directory gets `base/` (codes), `adapter/` (as PEFT stores it), `manifest.json`, and `merged/` where merging
    is best or asked for by `merge` (`best`, `16-bit`, `dequantized`, `requantized`, `none`). `baseline` is the 16-bit
    form of a quantized `model`; `adapter` is one to begin with. `tell` is given the manifest before training. Killed at
    any point, the same call goes on.

    Raises:
        InputError: anything that the user can mend (model, recipe, text, adapter, targets, batch, directory).
    """
    options = options or Options()
    session = Session("train_qlora", options)
    require_peft()
    require_merge(merge)
    state = PartialState(cpu=session.device.type == "cpu")
    _place(session, state)
    case, material = case_of(session, model, recipe, baseline), material or Material()
    require_possible(case, merge)
    shape = shape_of(adapter) if adapter is not None else shape or LoraShape()
    learned = _lessons(case, data, material)
    names = tuple(chosen_targets(case.opened, shape.targets))
    if adapter is not None:
        require_fits(adapter, case.opened, case.origin)
    work = _Work(learned, shape, names, course or Course(), adapter, merge, tell, where(model))
    foreseen = _require_memory(case, work)
    if options.dry_run:
        return _dry(case, learned, foreseen)
    coordinates = case.coordinates(learned.held_out_hash)
    with state.main_process_first():
        begun = _begin(session, case, coordinates, work)
    if isinstance(begun, Result):
        return begun
    with session.run(case.opened, _identity(case, coordinates, work)) as run:
        numbers = _learn_and_merge(case, begun, work, run, main=state.is_main_process)
        if numbers is None:
            return Result(session.record(coordinates, {}))
        numbers["foreseen_bytes"] = foreseen
        record = _record(case, coordinates, numbers, work, material, where(data))
        result = finish(run, record, tuple(numbers["findings"]))
    shutil.rmtree(run.directory / "checkpoints", ignore_errors=True)
    return result


def _lessons(case: Case, data: str, material: Material) -> Lessons:
    options = case.session.options
    return lessons(
        case.opened,
        data,
        held_out=material.held_out,
        share=material.share,
        length=material.length,
        seed=options.seed,
        tokens=options.eval_tokens,
    )


def _record(
    case: Case, coordinates: Coordinates, numbers: dict[str, Any], work: _Work, material: Material, data: str
) -> Record:
    learned = work.learned
    return case.session.record(
        coordinates,
        numbers,
        subject={
            "model": case.opened.label,
            "recipe": None if case.plan is None else case.plan.recipe,
            "paths": {"model": work.source, "data": data, "held_out": material.held_out},
        },
        settings={
            **calibration_settings(case.calibration),
            "adapter": asdict(work.shape),
            "course": asdict(work.course),
            "length": material.length,
            "sequences": {"train": len(learned.train), "held_out": len(learned.held_out)},
        },
        warnings=[*learned.warnings, *numbers.pop("warnings")],
    )


def _place(session: Session, state: PartialState) -> None:
    """The device of this process, where there are several; a single one has the first."""
    if session.device.type != "cuda":
        return
    if state.num_processes == 1 and session.device.index not in (None, 0):
        raise InputError(
            f"--device {session.device} was given, and training runs on the first device that it sees; set "
            f"CUDA_VISIBLE_DEVICES={session.device.index} and give --device cuda."
        )
    session.device = state.device


def _identity(case: Case, coordinates: Coordinates, work: _Work) -> dict[str, Any]:
    return {
        "coordinates": coordinates.model_dump(),
        "model": case.opened.coordinate,
        "data": work.learned.hash,
        "shape": asdict(work.shape),
        "course": asdict(replace(work.course, save=1)),
        "adapter": None if work.given is None else read_adapter(work.given).fingerprint,
        "merge": work.merge,
    }


def _begin(session: Session, case: Case, coordinates: Coordinates, work: _Work) -> Model | Result:
    """The quantized base, made where it is not there yet; or the result, where the same call was finished before."""
    with session.run(case.opened, _identity(case, coordinates, work), case.disk) as run:
        if (run.directory / "record.json").is_file():
            lines = (f"{run.directory} is finished; nothing was done again.",)
            return Result(run.read(), run.directory, run.directory / "report.html", lines)
        return case.base(run.directory / "base")


def _learn_and_merge(case: Case, base: Model, work: _Work, run: Run, *, main: bool) -> dict[str, Any] | None:
    """Everything after the base is there; None in the processes that only helped to train."""
    notes, apart, question = _learn(case, base, work, run, main=main)
    if apart is None:
        return None
    gc.collect()
    found: Merged = measure_merges(case, base, apart, question, run.directory / "adapter", run.directory, work.merge)
    written = [] if found.written is None else [f"Written to {found.directory}: {found.written}."]
    numbers = found.numbers()
    warnings = [*notes.pop("warnings"), *found.verdict.warnings]
    return {**numbers, **notes, "findings": [*numbers["findings"], *written], "warnings": warnings}


def _learn(
    case: Case, base: Model, work: _Work, run: Run, *, main: bool
) -> tuple[dict[str, Any], Pass | None, Question]:
    """Loads the base, trains (or takes over what was trained), and lets the trained model answer the held-out part."""
    session, directory = case.session, run.directory
    loaded = load_base(base, session.dtype, session.device)
    wrapped = add_adapters(loaded, work.names, work.shape, work.source, session.options.seed)
    if work.given is not None:
        load_into(wrapped, work.given)
    reasons = {} if case.plan is None else {s.linear.name: s.reason for s in case.plan.sites if s.weights is None}
    listed = manifest(loaded, base, reasons, wrapped)
    if main:
        atomic_write(directory / "manifest.json", json.dumps(listed.numbers(), indent=1) + "\n")
    if main and work.tell is not None:
        work.tell(listed)
    notes: dict[str, Any] = {"manifest": listed.numbers(), "adapter": "adapter"}
    learned, adapter = directory / "learned.json", directory / "adapter"
    if learned.is_file() and (adapter / CONFIG).is_file():
        load_into(wrapped, adapter)
        notes["training"] = json.loads(learned.read_text(encoding="utf-8"))
    else:
        origin = {"made_of": case.origin["made_of"], "base": base.coordinate}
        notes["training"] = _train(wrapped, origin, work, session, directory)
        if main:
            save_adapter(wrapped, adapter, origin)
            atomic_write(learned, json.dumps(notes["training"]) + "\n")
    question = Question.of(work.learned)
    apart = module_pass(wrapped.get_base_model(), base, question, session.computing) if main else None
    notes["warnings"] = [f"{len(loaded.dense)} quantized linears are dense while training; the manifest says why."] * (
        len(loaded.dense) > 0
    )
    return notes, apart, question


def _train(
    wrapped: Any, origin: Mapping[str, str | None], work: _Work, session: Session, directory: Path
) -> dict[str, Any]:
    if work.course.steps == 0:
        return {"curve": [], "steps": 0, "resumed_at": 0, "seconds": 0.0, "scored_tokens": 0}
    found = train(
        wrapped,
        work.learned.train,
        work.course,
        directory / "checkpoints",
        origin,
        dtype=session.dtype,
        device=session.device,
        seed=session.options.seed,
        quiet=session.options.quiet,
    )
    return {**found.numbers(), "peak_rss_bytes": peak_rss_bytes()}


def _require_memory(case: Case, work: _Work) -> int:
    """What training will take, in bytes; refused, before anything is made, where it is more than can be had."""
    device = case.session.device
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_bytes()
    longest = work.learned.longest
    return require_memory(
        case.opened,
        held=case.held,
        trained=adapter_count(case.opened, work.names, work.shape.rank),
        rows=work.course.batch,
        length=longest,
        columns=min(longest, max(sample.count for sample in work.learned.train)),
        limit=min(case.session.options.max_memory or free, free),
        item=case.session.dtype.itemsize,
    )


def _dry(case: Case, learned: Lessons, foreseen: int) -> Result:
    """What would be done: the plan of the base, memory and disk. Nothing is hashed that would have to be read whole."""
    plan = {} if case.plan is None or not case.makes else {"plan": case.plan.to_dict()}
    numbers = {**plan, "predicted": {"memory_bytes": foreseen, "disk_bytes": case.disk}}
    subject = {"model": case.opened.label, "recipe": case.plan.recipe if case.plan else None}
    coordinates = Coordinates(evaluation=learned.held_out_hash, stack=case.session.stack.hash)
    memory = f"{foreseen / 1e9:.2f} GB beside the program's own"
    lines = (
        f"{len(learned.train)} sequences to train on, {len(learned.held_out)} held out; about {memory}, "
        f"{case.disk / 1e9:.2f} GB on disk for the base.",
    )
    return Result(case.session.record(coordinates, numbers, subject=subject), lines=lines)
