"""The locked evaluation run again: the same token ids through both models, on the stack of today.

What must be as it was locked (the baseline) is checked first; what may have changed (stack, candidate) is listed.
"""

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from subeight.errors import RecordError
from subeight.evals.passes import Computing, reference_pass
from subeight.evals.scoring import Question, Scored, score
from subeight.lock.lockfile import Lock, Place
from subeight.lock.outcomes import Outcome, read_outcomes, write_outcomes
from subeight.lock.probes import compare_probes, probe_kernels
from subeight.lock.stacks import Change, changes, distributions, source_hash, stack_today
from subeight.lock.verdict import Difference, differences
from subeight.models.model import Model
from subeight.models.precision import compute_dtype
from subeight.models.source import ALIAS
from subeight.records import Record, fingerprint
from subeight.text import EvaluationSet

_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "vocab_size")


@dataclass(frozen=True)
class Remeasured:
    """A lock beside what its evaluation gives today."""

    lock: Lock
    before: Outcome
    today: Outcome
    scored: Scored
    differences: list[Difference]
    changes: list[Change]
    probes: list[dict[str, Any]]
    candidate_changes: list[str]  # parts of the candidate's fingerprint that are not the locked ones

    @property
    def is_same(self) -> bool:
        """Whether every sample gives the locked numbers to the last bit."""
        return all(bool((self.before.total[name] == self.today.total[name]).all()) for name in ("kl", "top1"))

    @property
    def rounding_probes(self) -> list[str]:
        """Kernel probes that round otherwise than in the lock."""
        return [probe["name"] for probe in self.probes if probe["relation"] == "rounding"]


def remeasure(
    path: Path, lock: Lock, baseline: Model, candidate: Model, computing: Computing, cache: Path
) -> Remeasured:
    """Runs the locked evaluation; both models must be those that the lock speaks of.

    Raises:
        RecordError: the baseline is another one, the lock is of another model, or its files are damaged.
    """
    require_baseline(lock, baseline)
    require_candidate(lock, baseline, candidate)
    sequences, before = read_outcomes(path, lock.outcomes)
    packages, source = distributions(), source_hash()
    contents = stack_today(computing).contents()
    # Any package may change the baseline's states, also one that the stack's hash leaves out.
    kept = cache / fingerprint([contents, packages, source])
    evaluation = EvaluationSet(sequences.samples, lock.evaluation.hash)
    reference = reference_pass(baseline, sequences, lock.evaluation.hash, computing, kept)
    question = Question(baseline, evaluation, sequences, reference, computing, None, [])
    scored = score(question, candidate, seed=lock.evaluation.seed)
    today = Outcome.of_rows(scored.rows)
    return Remeasured(
        lock=lock,
        before=before,
        today=today,
        scored=scored,
        differences=differences(before, today, lock.tolerance, seed=lock.evaluation.seed),
        changes=changes(lock.stack, contents, lock.distributions, packages, (lock.source, source)),
        probes=compare_probes(lock.probes, [p.to_dict() for p in probe_kernels(baseline, candidate, computing)]),
        candidate_changes=differing_parts(lock.candidate.fingerprint, fingerprint_of(candidate)),
    )


@contextmanager
def as_locked(lock: Lock, device: torch.device, quiet: bool) -> Iterator[Computing]:
    """The lock's precision and thread count, while it lasts."""
    before = torch.get_num_threads()
    torch.set_num_threads(lock.evaluation.threads)
    try:
        yield Computing(compute_dtype(lock.evaluation.dtype, device), device, quiet)
    finally:
        torch.set_num_threads(before)


def lock_prompts(lock: Lock, folder: Path, question: Question, rows: Sequence[Mapping[str, Any]], threads: int) -> Path:
    """A lock of other prompts with the same two models, for asking them in another environment."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "prompts.lock"
    settings = {"hash": question.evaluation.hash, "threads": threads}
    made = lock.model_copy(
        update={
            "evaluation": lock.evaluation.model_copy(
                update={**settings, "dtype": str(question.computing.dtype).removeprefix("torch.")}
            ),
            "baseline": lock.baseline.model_copy(update={"fingerprint": fingerprint_of(question.baseline)}),
            "outcomes": write_outcomes(folder / "prompts.lock.d", question.sequences, rows),
        }
    )
    return made.write(path)


def fingerprint_of(model: Model) -> dict[str, str]:
    """The model's fingerprint, and the hash of its config file: how a config is parsed depends on transformers."""
    path = model.directory / "config.json"
    found = dict(model.fingerprint)
    if model.source.gguf is None and path.is_file():
        found["config_file"] = hashlib.sha256(path.read_bytes()).hexdigest()[:16]
    return found


def differing_parts(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Which parts of a model are not what they were: weights, config, tokenizer, chat_template."""
    config = "config_file" if "config_file" in before and "config_file" in after else "config"
    parts = {"weights": "weights", "config": config, "tokenizer": "tokenizer", "chat_template": "chat_template"}
    return [part for part, key in parts.items() if before.get(key) != after.get(key)]


def require_baseline(lock: Lock, baseline: Model) -> None:
    """Raises RecordError, naming what differs, where this is not the locked baseline."""
    wrong = differing_parts(lock.baseline.fingerprint, fingerprint_of(baseline))
    if wrong:
        raise RecordError(
            f"{baseline.label} is not the baseline that was locked ({lock.baseline.label}): its {_listed(wrong)} "
            f"differ{'s' if len(wrong) == 1 else ''}; give the locked one with --baseline, or lock a new evaluation."
        )


def require_candidate(lock: Lock, baseline: Model, candidate: Model) -> None:
    """Raises RecordError where the lock is of another model than the candidate's."""
    sides = [model.config.get_text_config(decoder=True) for model in (baseline, candidate)]
    for field in _SHAPE:
        ours, theirs = (getattr(side, field, None) for side in sides)
        if ours != theirs:
            raise RecordError(
                f"This is a lock of another model: its baseline {baseline.label} has {field} {ours}, and "
                f"{candidate.label} has {theirs}; give the lock that was made of {candidate.label}."
            )
    record = checkpoint_record(candidate.directory)
    made_from = None if record is None else record.coordinates.baseline
    if made_from not in {None, "unknown", lock.coordinates.baseline, baseline.coordinate}:
        raise RecordError(
            f"This is a lock of another model: {candidate.label} was made from the baseline {made_from}, and the "
            f"lock's is {lock.coordinates.baseline} ({lock.baseline.label}); give the lock that was made of it."
        )


def checkpoint_record(directory: Path) -> Record | None:
    """The record that Subeight left in a checkpoint that it wrote."""
    path = directory / "record.json"
    try:
        record = Record.read(path) if path.is_file() else None
    except RecordError:
        return None
    return record if record is not None and record.kind in {"quantize", "export"} else None


def place_of(name: str, model: Model, lock: Path) -> Place:
    """A model as a lock names it: a path relative to the lock, or the alias or hub id that was given."""
    path = Path(name).expanduser()
    if name != ALIAS and path.exists():
        name = Path(os.path.relpath(path.resolve(), lock.resolve().parent)).as_posix()
    return Place(name=name, label=model.label, fingerprint=fingerprint_of(model))


def find_place(place: Place, lock: Path) -> str:
    """What to open for a locked model: the path beside the lock where there is one, else the name as it was given."""
    beside = lock.resolve().parent / place.name
    return str(beside.resolve()) if beside.exists() else place.name


def _listed(names: Sequence[str]) -> str:
    shown = [name.replace("_", " ") for name in names]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
