"""What a lock holds: one measured result with all that fixes it, as a text file small enough for git.

`subeight.lock` is JSON: the five coordinates, the numbers, tolerances, the stack with every installed package, kernel
probes, and where both models were. Per-sample outcomes and token ids lie beside it, in a file named by its own hash.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from subeight.errors import RecordError
from subeight.records import Coordinates, atomic_write

SCHEMA = 1
LARGEST = 100_000  # bytes: what is fit for git and for reading a difference
_KEPT = ("kl", "kl_p99", "kl_max", "top1", "ppl", "ppl_baseline", "ppl_ratio", "tokens", "samples", "documents")
_SIZES = ("bits_per_weight", "bytes", "ci_method")
_CATEGORIES = 150
_TOLERANCES = ("kl", "top1", "nll")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_by_name=True, validate_by_alias=True)


class Place(_Part):
    """A model as it was locked: the name it was given by, where that led, and its fingerprints."""

    name: str
    label: str
    fingerprint: dict[str, str]


class Evaluation(_Part):
    """How the locked numbers were measured; the token ids themselves lie in the outcomes' file."""

    sources: list[str]
    hash: str
    tokens: int | None
    window: int
    seed: int
    dtype: str
    device: str
    threads: int


class Outcomes(_Part):
    """The file of per-sample outcomes beside the lock, by the hash of its bytes."""

    file: str
    sha256: str


class Lock(_Part):
    """A result that later stacks are verified against."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    kind: Literal["lock"] = "lock"
    made: str
    coordinates: Coordinates
    numbers: dict[str, Any]
    tolerance: dict[str, float]
    evaluation: Evaluation
    baseline: Place
    candidate: Place
    outcomes: Outcomes
    probes: list[dict[str, Any]]
    stack: dict[str, Any]
    distributions: dict[str, str]
    source: str  # hash of Subeight's own code, whose version may stand still while it changes

    def to_json(self) -> str:
        """The lock as text, the same for the same content: one line for each package, number and probe."""
        values = self.model_dump(mode="json", by_alias=True)
        lines = [f" {json.dumps(key)}: {_lines(value)}" for key, value in values.items()]
        return "{\n" + ",\n".join(lines) + "\n}\n"

    def write(self, path: Path) -> Path:
        """Writes the lock; refuses one that is too large for git."""
        text = self.to_json()
        if len(text.encode()) >= LARGEST:
            raise RecordError(
                f"The lock would have {len(text.encode()):,} bytes, and fewer than {LARGEST:,} are allowed; lock an "
                "evaluation with fewer categories."
            )
        return atomic_write(path, text)

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Reads a lock; raises RecordError, in one sentence, where it is missing, damaged or something else."""
        path = Path(path)
        try:
            values = json.loads(path.read_bytes())
        except OSError as error:
            raise RecordError(
                f"The lock {path} cannot be read ({error.strerror}); give a file that `subeight lock` wrote."
            ) from error
        except ValueError as error:
            raise RecordError(f"{path} is not a lock (it is not JSON: {error}); restore it from git.") from error
        if not isinstance(values, dict) or values.get("kind") != "lock":
            raise RecordError(f"{path} is not a lock; give a file that `subeight lock RUN` wrote.")
        if values.get("schema") != SCHEMA:
            raise RecordError(
                f"{path} has schema {values.get('schema')!r}, and this Subeight reads schema {SCHEMA}; lock the run "
                "again, or use the version that wrote it."
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"])
            raise RecordError(f"{path} is damaged at {place} ({first['msg']}); restore it from git.") from error


def is_lock(path: Path) -> bool:
    """Whether a path is a lock rather than a checkpoint: a file of text, not a directory or a GGUF file."""
    return path.is_file() and path.suffix != ".gguf"


def kept_numbers(numbers: Mapping[str, Any]) -> dict[str, Any]:
    """Of an evaluation's numbers what a lock holds: values with intervals, and those of its largest categories."""
    found = _measures(numbers)
    found.update({name: numbers[name] for name in _SIZES if name in numbers})
    parts = dict(numbers.get("categories") or {})
    largest = sorted(parts, key=lambda name: (-parts[name].get("tokens", 0), name))[:_CATEGORIES]
    found["categories"] = {name: _measures(parts[name]) for name in sorted(largest)}
    if choices := numbers.get("choices"):
        found["choices"] = choices
    return found


def default_tolerance(numbers: Mapping[str, Any]) -> dict[str, float]:
    """How much worse a later stack may be: 5 % of the locked KL (at least 0.002 nats), 0.01 of agreement, and 0.01 nats
    of loss, which is 1 % of perplexity.
    """
    return {"kl": max(0.002, round(0.05 * numbers["kl"], 6)), "top1": 0.01, "nll": 0.01}


def parse_tolerance(text: str | None, default: Mapping[str, float]) -> dict[str, float]:
    """`kl=0.01,top1=0.005`, or one number for the KL; what is not said keeps its default."""
    found = dict(default)
    for part in (text or "").split(","):
        if not part.strip():
            continue
        name, _, value = part.rpartition("=")
        name = name.strip() or "kl"
        try:
            number = float(value)
        except ValueError:
            number = -1.0
        if name not in _TOLERANCES or not 0 < number < float("inf"):
            raise RecordError(
                f"--tolerance was given {part.strip()!r}; write a positive number for the KL, or for instance "
                "kl=0.01,top1=0.005."
            )
        found[name] = number
    return found


def _measures(numbers: Mapping[str, Any]) -> dict[str, Any]:
    names = [part for name in _KEPT for part in (name, f"{name}_ci")]
    return {name: numbers[name] for name in names if numbers.get(name) is not None}


def _lines(value: Any) -> str:
    """JSON with one line for each item of the first level."""
    if isinstance(value, dict) and value:
        inside = [f"  {json.dumps(key)}: {_plain(item)}" for key, item in value.items()]
        return "{\n" + ",\n".join(inside) + "\n }"
    if isinstance(value, list) and value:
        return "[\n" + ",\n".join(f"  {_plain(item)}" for item in value) + "\n ]"
    return _plain(value)


def _plain(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False)
