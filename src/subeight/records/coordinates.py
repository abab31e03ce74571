"""The five coordinates of a measured number, and the rule that a comparison moves along one of them.

A coordinate is the fingerprint of what was held fixed: the baseline model, the recipe, the calibration text,
the evaluation and the stack of software and hardware. `None` means that the coordinate does not apply (plain
rounding has no calibration) and matches anything; `"unknown"` (a checkpoint of another tool) matches with a
warning.
"""

import difflib
import hashlib
import json
from collections.abc import Iterable
from typing import Any, Protocol

from pydantic import BaseModel, ConfigDict

from subeight.errors import RecordError

NAMES = ("baseline", "recipe", "calibration", "evaluation", "stack")
UNKNOWN = "unknown"


class Coordinates(BaseModel):
    """What fixes one measured number; each value is a fingerprint, `None` (does not apply) or `"unknown"`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    baseline: str | None = None
    recipe: str | None = None
    calibration: str | None = None
    evaluation: str | None = None
    stack: str | None = None


class HasCoordinates(Protocol):
    """Anything that stands at a point of the five coordinates: a Record, a row of a table."""

    @property
    def coordinates(self) -> Coordinates: ...


def fingerprint(value: Any) -> str:
    """16 hex digits that are the same for equal JSON values, whatever the order of their keys."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def differing(a: Coordinates, b: Coordinates) -> list[str]:
    """Names of the coordinates that are known on both sides and not equal."""
    return [name for name in NAMES if _relation(getattr(a, name), getattr(b, name)) == "differs"]


def require_comparable(
    a: Coordinates | HasCoordinates,
    b: Coordinates | HasCoordinates,
    moving: str | None = "recipe",
    across: Iterable[str] = (),
) -> list[str]:
    """Refuse to compare two points that differ in more than `moving` and `across`; return the warnings.

    `moving` is the coordinate that the question is about (None: the points must be the same in everything).
    """
    across = set(across)
    _require_names({moving} - {None} | across)
    left, right = _coordinates(a), _coordinates(b)
    wrong = [name for name in differing(left, right) if name != moving and name not in across]
    if wrong:
        raise RecordError(_refusal(left, right, moving, wrong))
    warnings = []
    for name in NAMES:
        if name == moving:
            continue
        relation = _relation(getattr(left, name), getattr(right, name))
        if relation == "unknown":
            warnings.append(f"The {name} of one side is unknown, so whether it is the same cannot be checked.")
        elif relation == "differs":
            warnings.append(f"The two sides also differ in their {name}, as --across {name} allows.")
    return warnings


def _coordinates(point: Coordinates | HasCoordinates) -> Coordinates:
    return point if isinstance(point, Coordinates) else point.coordinates


def _relation(a: str | None, b: str | None) -> str:
    if a is None or b is None or (a == b and a != UNKNOWN):
        return "same"
    if UNKNOWN in (a, b):
        return "unknown"
    return "differs"


def _refusal(a: Coordinates, b: Coordinates, moving: str | None, wrong: list[str]) -> str:
    what = "; ".join(f"{name} ({getattr(a, name)} and {getattr(b, name)})" for name in wrong)
    only = f"only their {moving} may differ" if moving else "nothing may differ"
    way_out = " ".join(f"--across {name}" for name in wrong)
    return f"These records differ in {what}, but {only}; measure both alike, or say {way_out} if it is meant."


def _require_names(names: Iterable[str | None]) -> None:
    for name in names:
        if name not in NAMES:
            near = difflib.get_close_matches(str(name), NAMES, n=1)
            hint = f" (did you mean {near[0]}?)" if near else ""
            raise RecordError(f"{name!r} is not a coordinate{hint}; the coordinates are {', '.join(NAMES)}.")
