"""A run directory: what one command wrote, records as JSON and per-sample outcomes beside them as Parquet.

    runs/quantize-smollm2-1f2e3d4c/
        run.json          which verb made it, and the identity of what it was asked to do
        record.json       the main record; further ones are record-NAME.json
        samples.parquet   one row per sample; further ones are samples-NAME.parquet

A directory is taken when it is missing, empty, or the same run begun before (so that the same command
resumes); anything else is refused.
"""

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq

from subeight.errors import OutputError, RecordError
from subeight.records.coordinates import fingerprint
from subeight.records.files import atomic_path, atomic_write, is_partial, remove_partials
from subeight.records.record import Record

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


def default_directory(verb: str, model: str, identity: Any, root: Path | str = "runs") -> Path:
    """`runs/<verb>-<model>-<hash>`: the same question asked again gives the same name.

    `model` is a path, a hub id or an alias, of which the last part is kept; `identity` is any JSON value that
    tells the run from others (coordinates, settings), of which the hash is taken.
    """
    last = re.split(r"[/\\]", model.rstrip("/\\"))[-1].removesuffix(".gguf")
    slug = re.sub(r"[^A-Za-z0-9._-]+", "-", last).strip("-._")[:48].rstrip("-._") or "model"
    return Path(root) / f"{verb}-{slug}-{fingerprint(identity)[:8]}"


@dataclass(frozen=True)
class Run:
    """One run directory; `create` makes or resumes it, `open` reads it."""

    directory: Path
    verb: str
    identity: str | None = None

    @classmethod
    def create(cls, directory: Path | str, verb: str, identity: Any = None) -> Self:
        """Make the directory, or resume the same run in it; refuse one that holds something else.

        `identity` is any JSON value that tells this run from others of the verb; a directory that was
        begun with another one is refused.
        """
        directory = Path(directory)
        run = cls(directory, verb, None if identity is None else fingerprint(identity))
        if directory.exists() and not directory.is_dir():
            raise OutputError(f"{directory} is a file; give --out a directory that is new or empty.")
        if (directory / "run.json").is_file():
            _require_same(_read_marker(directory), run)
            remove_partials(directory)
            return run
        if directory.exists() and (found := _foreign(directory)):
            raise OutputError(
                f"{directory} holds something else ({found}); give --out a directory that is new or empty."
            )
        marker = {"schema": 1, "verb": verb, "identity": run.identity}
        atomic_write(directory / "run.json", json.dumps(marker) + "\n")
        remove_partials(directory)
        return run

    @classmethod
    def open(cls, directory: Path | str) -> Self:
        """A run that some command made before."""
        directory = Path(directory)
        if not (directory / "run.json").is_file():
            raise RecordError(f"{directory} is not a run directory (it has no run.json); give one that a verb wrote.")
        marker = _read_marker(directory)
        return cls(directory, marker["verb"], marker["identity"])

    def write_record(self, record: Record, name: str | None = None) -> Path:
        """Write the main record, or a further one under a name."""
        return atomic_write(self._file("record", name, ".json"), record.to_json())

    def write_samples(
        self, rows: Iterable[Mapping[str, Any]] | Mapping[str, Sequence[Any]], name: str | None = None
    ) -> Path:
        """Write per-sample outcomes as Parquet: rows as mappings, or whole columns by name."""
        columns = rows if isinstance(rows, Mapping) else _columns(list(rows))
        path = self._file("samples", name, ".parquet")
        with atomic_path(path) as partial:
            pq.write_table(pa.table(dict(columns)), partial, compression="zstd")
        return path

    def read(self, name: str | None = None) -> Record:
        """The main record, or the one written under a name."""
        return Record.read(self._file("record", name, ".json"))

    def read_samples(self, name: str | None = None) -> list[dict[str, Any]]:
        """The rows that `write_samples` wrote."""
        path = self._file("samples", name, ".parquet")
        if not path.is_file():
            raise RecordError(f"{path} does not exist; this run kept no samples of that name.")
        return pq.read_table(path).to_pylist()

    def records(self) -> list[Record]:
        """All records of the run: the main one first, then the further ones by name."""
        main = [self.directory / "record.json"] if (self.directory / "record.json").is_file() else []
        return [Record.read(path) for path in [*main, *sorted(self.directory.glob("record-*.json"))]]

    def _file(self, stem: str, name: str | None, suffix: str) -> Path:
        if name is not None and not _NAME.fullmatch(name):
            raise RecordError(f"{name!r} cannot name a file of a run; use letters, digits, '.', '_' and '-'.")
        return self.directory / (f"{stem}{suffix}" if name is None else f"{stem}-{name}{suffix}")


def _columns(rows: list[Mapping[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _foreign(directory: Path) -> str | None:
    """The first thing in a directory that an interrupted start did not leave there."""
    return next((path.name for path in sorted(directory.iterdir()) if not is_partial(path)), None)


def _read_marker(directory: Path) -> dict[str, Any]:
    try:
        marker = json.loads((directory / "run.json").read_bytes())
        return {"verb": str(marker["verb"]), "identity": marker["identity"]}
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{directory}/run.json is damaged; give --out a directory that is new or empty.") from error


def _require_same(marker: dict[str, Any], run: Run) -> None:
    if marker["verb"] != run.verb:
        raise OutputError(
            f"{run.directory} holds a run of `{marker['verb']}`, not of `{run.verb}`; give another --out."
        )
    if marker["identity"] != run.identity:
        raise OutputError(
            f"{run.directory} holds a run of `{run.verb}` with another model, recipe or settings; "
            "give another --out, or repeat the command that began it."
        )
