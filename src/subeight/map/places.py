"""The places of a map: what engines fuse into one matrix, or every linear; embeddings and head too."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from subeight.errors import InputError
from subeight.formats import Format
from subeight.models.linear_info import LinearInfo
from subeight.models.model import Model
from subeight.recipes.engines import engines

BY = ("group", "linear", "expert")
_NO_PLACE = ("router", "tied")


@dataclass(frozen=True)
class Place:
    """Linears that get one format together. `at` is their block; -1 for embeddings, the number of blocks for a head."""

    name: str
    linears: tuple[LinearInfo, ...]
    at: int

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(linear.name for linear in self.linears)

    @property
    def weights(self) -> int:
        """How many weights it holds."""
        return sum(linear.count for linear in self.linears)

    def bits(self, format: Format) -> float:
        """Stored bits per weight in this format, scales included."""
        return sum(format.bits(linear.shape) * linear.count for linear in self.linears) / self.weights

    def to_dict(self, formats: Sequence[Format]) -> dict[str, Any]:
        """As it stands in a record."""
        first = self.linears[0]
        runs = {
            str(f): [e for e in engines(first, f, None) if all(e in engines(x, f, None) for x in self.linears)]
            for f in formats
        }
        return {
            "name": self.name,
            "linears": list(self.names),
            "kinds": [linear.name.rsplit(".", 1)[-1] for linear in self.linears],
            "block": first.block,
            "kind": first.kind,
            "fusion": first.fusion,
            "weights": self.weights,
            "shapes": [list(linear.shape) for linear in self.linears],
            "dtype": str(first.dtype).removeprefix("torch."),
            "kept_bits": 8.0 * first.dtype.itemsize,
            "bits": {str(format): round(self.bits(format), 6) for format in formats},
            "runs_in": runs,
        }


def places_of(model: Model, by: str = "group") -> list[Place]:
    """The places of a model, in the order of its blocks; routers and a tied head are no places.

    Raises:
        InputError: `by` is none of group, linear and expert.
    """
    if by not in BY:
        raise InputError(f"--by was given {by!r}; give one of {', '.join(BY)}.")
    found: dict[str, list[LinearInfo]] = {}
    for linear in model.linears:
        if linear.kind not in _NO_PLACE:
            found.setdefault(_name(linear, by), []).append(linear)
    count = len(model.skeleton.blocks)
    places = [Place(name, tuple(linears), _at(linears[0], count)) for name, linears in found.items()]
    return sorted(places, key=lambda place: place.at)


def kept_of(model: Model) -> dict[str, float]:
    """The linears of the blocks that are no places (routers): their weights and bytes count in every budget."""
    kept = [linear for linear in model.linears if linear.block is not None and linear.kind in _NO_PLACE]
    return {
        "weights": sum(linear.count for linear in kept),
        "bytes": sum(linear.count * linear.dtype.itemsize for linear in kept),
    }


def _name(linear: LinearInfo, by: str) -> str:
    if by == "linear":
        return linear.name
    if by == "expert" and linear.expert is not None:
        return linear.expert
    return linear.fusion or linear.name


def _at(linear: LinearInfo, count: int) -> int:
    if linear.block is not None:
        return linear.block
    return -1 if linear.kind == "embedding" else count
