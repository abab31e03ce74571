"""A Record: one result as JSON, with the five coordinates that fix it, its numbers, and what repeats it.

Records are what verbs write and what the report, the comparison and later verbs read. The fields are strict:
an unknown one is an error, so that a field name never silently changes its meaning.
"""

import json
import math
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from subeight.errors import RecordError
from subeight.records.coordinates import Coordinates

SCHEMA = 1


class Record(BaseModel):
    """One result. `numbers` holds what was measured, under names that never change their meaning.

    Numbers may be given as numpy scalars, tuples and paths; they are kept as plain JSON values. JSON has no
    NaN and no infinity: such a number is kept as null, and `warnings` names its place.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_by_name=True, validate_by_alias=True)

    schema_version: Literal[1] = Field(default=1, alias="schema")
    kind: str = Field(min_length=1, pattern=r"^[a-z][a-z0-9_-]*$")
    coordinates: Coordinates
    numbers: dict[str, Any]
    seconds: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    peak_rss_bytes: int = Field(default=0, ge=0)
    created: str = Field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    command: list[str] = []
    subject: dict[str, Any] = {}
    settings: dict[str, Any] = {}
    stack: dict[str, Any] = {}
    warnings: list[str] = []

    @model_validator(mode="before")
    @classmethod
    def _plain(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        holes: list[str] = []
        plain = {
            key: value if isinstance(value, Coordinates) else _plain_json(value, key, holes)
            for key, value in data.items()
        }
        if holes:
            notes = [f"{place} was not a finite number and is kept as null." for place in holes]
            plain["warnings"] = [*plain.get("warnings", []), *notes]
        return plain

    def to_json(self) -> str:
        """The record as JSON text with a final newline; `from_json` gives an equal record back."""
        values = self.model_dump(mode="json", by_alias=True)
        return json.dumps(values, indent=1, ensure_ascii=False, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, where: str = "This text") -> Self:
        """Read a record; `where` names the text in errors."""
        try:
            values = json.loads(text)
        except ValueError as error:
            raise RecordError(f"{where} is not JSON ({error}); give a record.json or a run directory.") from error
        if not isinstance(values, dict) or "schema" not in values:
            raise RecordError(f"{where} is not a record (it has no `schema`); give a record.json or a run directory.")
        if values["schema"] != SCHEMA:
            raise RecordError(
                f"{where} has schema {values['schema']!r}, and this Subeight reads schema {SCHEMA}; "
                "use the version of Subeight that wrote it, or repeat the run."
            )
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise RecordError(f"{where} is not a valid record: {_first_problem(error)}.") from error

    @classmethod
    def read(cls, path: Path | str) -> Self:
        """Read a record from its JSON file, or the main record of a run directory."""
        path = Path(path)
        file = path / "record.json" if path.is_dir() else path
        try:
            text = file.read_bytes()
        except OSError as error:
            raise RecordError(
                f"{file} cannot be read ({error.strerror}); give a record.json or a run directory."
            ) from error
        return cls.from_json(text, where=str(file))


def _plain_json(value: Any, place: str, holes: list[str]) -> Any:
    """`value` in plain JSON types; appends to `holes` the places of numbers that JSON cannot say."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        holes.append(place)
        return None
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain_json(item, f"{place}.{key}", holes) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain_json(item, f"{place}[{index}]", holes) for index, item in enumerate(value)]
    raise RecordError(f"{place} is a {type(value).__name__}, which JSON cannot hold; give numbers, text and lists.")


def _first_problem(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(str(part) for part in first["loc"]) or "the record"
    return f"{place}: {first['msg'][0].lower()}{first['msg'][1:]}"
