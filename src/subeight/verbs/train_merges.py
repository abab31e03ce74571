"""The ways of merging an adapter of `train qlora`: each made, measured against the trained model, and judged."""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subeight.errors import InputError
from subeight.evals.passes import Pass
from subeight.models.model import Model
from subeight.train.adapters import read_adapter
from subeight.train.merging import AGAIN, APART, DEQUANTIZED, FULL, merged, stored_bytes, write_dense
from subeight.train.qlora_measure import Question, Seen, seen, streamed_pass
from subeight.train.qlora_verdict import Verdict, judge
from subeight.verbs.train_case import Case

UNKNOWN_RECIPE = "the recipe of the base is not known"
MERGES = ("best", FULL, DEQUANTIZED, AGAIN, "none")


def require_merge(name: str) -> None:
    """Raises InputError for a `--merge` that is none."""
    if name not in MERGES:
        raise InputError(f"--merge was given {name!r}; allowed are {', '.join(MERGES)}.")


def require_possible(case: Case, name: str) -> None:
    """Raises InputError for a `--merge` that cannot be made of this base."""
    reason = None
    if name == FULL:
        reason = case.why_not_full(case.opened)
    elif name == AGAIN and case.plan is None:
        reason = UNKNOWN_RECIPE
    if reason is not None:
        raise InputError(f"--merge {name} cannot be made of {case.opened.label}: {reason}; give another, or none.")


@dataclass(frozen=True)
class Merged:
    """What the ways of merging came to, and which of them was written where."""

    verdict: Verdict
    written: str | None
    directory: Path | None

    def numbers(self) -> dict[str, Any]:
        """As a record holds it."""
        written = None if self.written is None else {"mode": self.written, "directory": str(self.directory)}
        return {**self.verdict.numbers(), "merged": written}


def measure_merges(
    case: Case, base: Model, apart: Pass, question: Question, adapter_path: Path, directory: Path, merge: str
) -> Merged:
    """Measures the bases and every way of merging on the held-out part, and writes the one that `merge` names.

    `apart` is what the trained model did, which is what all are compared with. Merges are streamed: weights are added
    to as they are read, and only what is quantized again is written before it is measured.
    """
    adapter, computing = read_adapter(adapter_path), case.session.computing
    skipped: dict[str, str] = {}
    models: dict[str, Model] = {}
    reason = case.why_not_full(base)
    if reason is None and case.full is not None:
        models[FULL] = merged(case.full, adapter, case.dtype)
    else:
        skipped[FULL] = reason or ""
    models[DEQUANTIZED] = merged(base, adapter, case.dtype)
    again = directory / AGAIN
    if case.plan is None:
        skipped[AGAIN] = UNKNOWN_RECIPE
    else:
        source = models.get(FULL) or models[DEQUANTIZED]
        case.quantize(source, again)
        models[AGAIN] = Model(again, trust_remote_code=case.session.options.trust_remote_code)
    bases = {"quantized": base} | ({} if case.full is None else {FULL: case.full})

    def measured(model: Model, what: str) -> Seen:
        return seen(apart, streamed_pass(model, question, computing, f"Measuring {what}"), question)

    untrained = {name: measured(model, f"the {name} base") for name, model in bases.items()}
    ways = {mode: measured(model, f"{mode} merge") for mode, model in models.items()}
    ways[APART] = seen(apart, apart, question)
    sizes = {mode: stored_bytes(model, case.dtype) for mode, model in models.items()}
    sizes |= {"quantized": stored_bytes(base, case.dtype)}
    sizes[APART] = sizes["quantized"] + adapter.nbytes
    sizes_of_bases = {name: stored_bytes(model, case.dtype) for name, model in bases.items()}
    verdict = judge(ways, untrained, sizes, sizes_of_bases, skipped, question, case.session.options.seed)
    return _written(case, verdict, models, directory, merge)


def _written(case: Case, verdict: Verdict, models: dict[str, Model], directory: Path, merge: str) -> Merged:
    """Puts the merge that is asked for into `merged`; nothing where keeping apart is best."""
    mode = verdict.best if merge == "best" else None if merge == "none" else merge
    again, place = directory / AGAIN, directory / "merged"
    if mode == AGAIN:
        shutil.rmtree(again / ".blocks", ignore_errors=True)
        shutil.rmtree(place, ignore_errors=True)
        again.rename(place)
    elif mode in (FULL, DEQUANTIZED):
        write_dense(models[mode], place, quiet=case.session.options.quiet)
    shutil.rmtree(again, ignore_errors=True)
    wrote = mode is not None and mode != APART
    return Merged(verdict, mode if wrote else None, place if wrote else None)
