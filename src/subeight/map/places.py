"""The places of a map: what engines fuse into one matrix, or every linear; embeddings and head too."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    """Linears that get one format together. `at` is their block; -1 for embeddings, the number of blocks for a head.

    In a sampled map it stands for its namesakes in the blocks around it too, `like`, which are not measured.
    """

    name: str
    linears: tuple[LinearInfo, ...]
    at: int
    like: tuple[LinearInfo, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """The linears that are measured."""
        return tuple(linear.name for linear in self.linears)

    @property
    def covered(self) -> tuple[LinearInfo, ...]:
        """All linears that get its format."""
        return self.linears + self.like

    @property
    def stands_for(self) -> int:
        """In how many blocks it gives the format."""
        return len({linear.block for linear in self.covered})

    @property
    def weights(self) -> int:
        """How many weights get its format."""
        return sum(linear.count for linear in self.covered)

    def bits(self, format: Format) -> float:
        """Stored bits per weight in this format, scales included."""
        return sum(format.bits(linear.shape) * linear.count for linear in self.covered) / self.weights

    def within(self, block: int) -> "Place | None":
        """What of it lies in one block; None where nothing does."""
        mine = tuple(linear for linear in self.covered if linear.block == block)
        return Place(self.name, mine, block) if mine else None

    def to_dict(self, formats: Sequence[Format]) -> dict[str, Any]:
        """As it stands in a record."""
        first = self.linears[0]
        runs = {
            str(f): [e for e in engines(first, f, None) if all(e in engines(x, f, None) for x in self.linears)]
            for f in formats
        }
        return {
            "name": self.name,
            "linears": [linear.name for linear in self.covered],
            "kinds": [linear.name.rsplit(".", 1)[-1] for linear in self.linears],
            "block": first.block,
            "stands_for": self.stands_for,
            "kind": first.kind,
            "fusion": first.fusion,
            "weights": self.weights,
            "shapes": [list(linear.shape) for linear in self.covered],
            "dtype": str(first.dtype).removeprefix("torch."),
            "kept_bits": 8.0 * first.dtype.itemsize,
            "bits": {str(format): round(self.bits(format), 6) for format in formats},
            "runs_in": runs,
        }


def places_of(model: Model, by: str = "group", every: int = 1) -> list[Place]:
    """The places of a model, in the order of its blocks; routers and a tied head are no places.

    With `every` above 1 only the middle one of every so many blocks has places, which stand for those around them. The
    first and the last block, which resemble no other, stand for themselves.

    Raises:
        InputError: `by` is none of group, linear and expert; `every` is below 1.
    """
    if every < 1:
        raise InputError(
            f"--every was given {every}; give 1 (all blocks) or how many blocks share one that is measured."
        )
    if by not in BY:
        raise InputError(f"--by was given {by!r}; give one of {', '.join(BY)}.")
    found: dict[str, list[LinearInfo]] = {}
    for linear in model.linears:
        if linear.kind not in _NO_PLACE:
            found.setdefault(_name(linear, by), []).append(linear)
    count = len(model.skeleton.blocks)
    places = [Place(name, tuple(linears), _at(linears[0], count)) for name, linears in found.items()]
    ordered = sorted(places, key=lambda place: place.at)
    return ordered if every == 1 else _sampled(model, ordered, every)


def _sampled(model: Model, places: Sequence[Place], every: int) -> list[Place]:
    """The places of the middle blocks; one that has no namesake of the same shape there stays its own."""
    last = len(model.skeleton.blocks) - 1
    middle = {at: at for at in (-1, 0, last, last + 1)}
    for start in range(1, last, every):
        run = range(start, min(start + every, last))
        middle |= dict.fromkeys(run, run[len(run) // 2])
    kept: dict[tuple[int, tuple], Place] = {}
    alone = []
    for place in sorted(places, key=lambda place: (middle[place.at] != place.at, place.at)):
        key = (middle[place.at], _likeness(model, place))
        if middle[place.at] == place.at:
            kept[key] = place
        elif key in kept:
            kept[key] = replace(kept[key], like=kept[key].like + place.linears)
        else:
            alone.append(place)
    return sorted([*kept.values(), *alone], key=lambda place: place.at)


def _likeness(model: Model, place: Place) -> tuple:
    """What namesakes in different blocks have in common: their linears' names within the block, shapes and types."""
    if place.linears[0].block is None:
        return (place.name,)
    prefix = f"{model.skeleton.block_name(place.at)}."
    return tuple((linear.name.removeprefix(prefix), linear.shape, linear.dtype) for linear in place.linears)


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
