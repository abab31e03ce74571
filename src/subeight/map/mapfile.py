"""A map's record as nouns: places, cells, wholes and samples. What allocates and explains reads only this.

No torch: an allocation takes seconds, on a machine that never saw the model.
"""

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from subeight.errors import RecordError
from subeight.records import Coordinates, Record

DAMAGE, RESCUE = "damage", "rescue"
_AGAIN = "run the same map command again, it continues"


@dataclass(frozen=True)
class MapPlace:
    """Linears that get one format together, as the record describes them."""

    name: str
    linears: tuple[str, ...]
    block: int | None
    kind: str
    fusion: str | None
    weights: int
    kept_bits: float
    bits: Mapping[str, float]
    runs_in: Mapping[str, tuple[str, ...]]

    @property
    def inside(self) -> bool:
        """Whether it lies in a block: embeddings and head do not."""
        return self.block is not None

    def width(self, format: str | None) -> float:
        """Stored bits per weight; None is kept."""
        return self.kept_bits if format is None else self.bits[format]

    def bytes(self, format: str | None) -> float:
        """Stored bytes; None is kept."""
        return self.width(format) * self.weights / 8


@dataclass(frozen=True)
class Cell:
    """One place in one format and one view: what is lost, its paired interval, and per category.

    Of a sampled map: as often as there are blocks that the place stands for.
    """

    loss: float
    low: float
    high: float
    categories: Mapping[str, float]

    @property
    def relative(self) -> float:
        """The standard error of the logarithm of the loss."""
        return math.log(self.high / self.low) / (2 * 1.96) if 0 < self.low < self.high else 0.0


@dataclass(frozen=True)
class WholeLoss:
    """Every place of the blocks in one format: what is lost, and on each sample."""

    loss: float
    low: float
    high: float
    samples: tuple[float, ...]


@dataclass(frozen=True)
class Mixture:
    """A model with a format of its own in every place (None: kept), measured."""

    formats: Mapping[str, str | None]
    whole: WholeLoss


@dataclass(frozen=True)
class MapSample:
    """One sample of the evaluation text."""

    document: str
    category: str
    tokens: float


@dataclass(frozen=True)
class MapFile:
    """A finished map. `cells` is looked up by (place, format, view)."""

    formats: tuple[str, ...]  # the widest first
    by: str
    metric: str
    methods: tuple[Any, ...]
    places: tuple[MapPlace, ...]
    cells: Mapping[tuple[str, str, str], Cell]
    whole: Mapping[str, WholeLoss]
    mixtures: tuple[Mixture, ...]
    samples: tuple[MapSample, ...]
    difficulty: Mapping[str, tuple[float | None, ...]]
    kept_weights: int = 0  # of the linears of the blocks that are no places
    kept_bytes: float = 0.0
    path: Path = Path()
    hash: str = ""
    coordinates: Coordinates = field(default_factory=Coordinates)
    subject: Mapping[str, Any] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)

    def cell(self, place: str, format: str, view: str = DAMAGE) -> Cell | None:
        """What was measured there; None where nothing was."""
        return self.cells.get((place, format, view))

    @property
    def weights(self) -> int:
        """How many weights the blocks hold."""
        return self.kept_weights + sum(place.weights for place in self.places if place.inside)


def read_map(path: Path | str) -> MapFile:
    """The map in a run directory, or in its record.json.

    Raises:
        RecordError: there is no map, it was cut off in the middle, or it is damaged.
    """
    path = Path(path)
    file = path / "record.json" if path.is_dir() else path
    if path.is_dir() and not file.is_file():
        raise RecordError(_unfinished(path))
    record = Record.read(file)
    if record.kind != "map":
        raise RecordError(f"{file} is a record of `{record.kind}`, not of a map; give one that `subeight map` wrote.")
    try:
        found = replace(
            map_of(record.numbers),
            path=path,
            hash=hashlib.sha256(file.read_bytes()).hexdigest()[:16],
            coordinates=record.coordinates,
            subject=record.subject,
            settings=record.settings,
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"it has no {error}" if isinstance(error, KeyError) else str(error)
        raise RecordError(f"{file} is a damaged map ({what}); {_AGAIN}.") from error
    if not any(place.inside for place in found.places) or not found.formats:
        raise RecordError(f"{file} is a map without a place or a format; make it again with `subeight map`.")
    return found


def _unfinished(directory: Path) -> str:
    try:
        verb = json.loads((directory / "run.json").read_bytes())["verb"]
    except (OSError, ValueError, KeyError, TypeError):
        verb = None
    if verb == "map":
        return f"{directory} holds a map that was cut off in the middle; {_AGAIN}."
    what = f"a run of `{verb}`" if verb else "no run"
    return f"{directory} holds {what}, not a map; give a directory or record.json that `subeight map` wrote."


def map_of(numbers: Mapping[str, Any]) -> MapFile:
    """The nouns of a map's numbers, before there is a record of them or from one."""
    times = {row["name"]: int(row.get("stands_for", 1)) for row in numbers["places"]}
    return MapFile(
        formats=tuple(str(name) for name in numbers["formats"]),
        by=str(numbers["by"]),
        metric=str(numbers["metric"]),
        methods=tuple(numbers["methods"]),
        places=tuple(_place(row) for row in numbers["places"]),
        cells={(row["place"], row["format"], row["view"]): _cell(row, times[row["place"]]) for row in numbers["cells"]},
        whole={str(name): _whole(row) for name, row in numbers["whole"].items()},
        mixtures=tuple(Mixture(dict(row["formats"]), _whole(row)) for row in numbers.get("mixtures", ())),
        samples=tuple(
            MapSample(str(row["document"]), str(row["category"]), float(row["tokens"])) for row in numbers["samples"]
        ),
        difficulty={str(name): tuple(row) for name, row in numbers["difficulty"].items()},
        kept_weights=int(numbers.get("kept", {}).get("weights", 0)),
        kept_bytes=float(numbers.get("kept", {}).get("bytes", 0.0)),
    )


def _place(row: Mapping[str, Any]) -> MapPlace:
    return MapPlace(
        name=str(row["name"]),
        linears=tuple(str(name) for name in row["linears"]),
        block=row["block"],
        kind=str(row["kind"]),
        fusion=row.get("fusion"),
        weights=int(row["weights"]),
        kept_bits=float(row["kept_bits"]),
        bits={str(name): float(bits) for name, bits in row["bits"].items()},
        runs_in={str(name): tuple(engines) for name, engines in row["runs_in"].items()},
    )


def _ends(row: Mapping[str, Any]) -> tuple[float, float]:
    low, high = row["kl_ci"] or (row["kl"], row["kl"])
    return float(low), float(high)


def _cell(row: Mapping[str, Any], times: int) -> Cell:
    """What was measured in one block, for each of the blocks that it stands for; a rescue is of the whole anyway."""
    times = times if row["view"] == DAMAGE else 1
    categories = {str(name): times * float(mean) for name, mean in (row.get("categories") or {}).items()}
    low, high = _ends(row)
    return Cell(times * float(row["kl"]), times * low, times * high, categories)


def _whole(row: Mapping[str, Any]) -> WholeLoss:
    return WholeLoss(float(row["kl"]), *_ends(row), tuple(float(loss) for loss in row["samples"]))
