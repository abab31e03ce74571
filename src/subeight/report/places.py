"""Where in a model a place stands: its block and what it does there. What a map and an allocation have in common."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from subeight.report import facts
from subeight.report.facts import text, whole

_KNOWN = {"k+q+v": "q+k+v"}


@dataclass(frozen=True)
class Spot:
    """A place by its block and its role: `model.layers.3.mlp.down_proj` is `down` of block 3.

    In a sampled map it stands for its like in so many blocks.
    """

    name: str
    block: int | None
    role: str
    stands_for: int = 1

    @property
    def label(self) -> str:
        """`29 down`, or only the role outside of the blocks."""
        return self.role if self.block is None else f"{self.block} {self.role}"


def spots_of(items: Iterable[Mapping[str, Any]], key: str) -> dict[str, Spot]:
    """The places that the items name under `key`; their block as the record says it, or else by the name's number."""
    found = {text(item.get(key)): item for item in items if item.get(key)}
    roles = facts.roles(found)
    return {
        name: Spot(name, _block(name, item), _role(roles[name]), whole(item.get("stands_for")) or 1)
        for name, item in found.items()
    }


def grid(spots: Iterable[Spot]) -> tuple[list[str], int]:
    """The roles that the blocks have, in their order, and how many blocks there are."""
    inside = [spot for spot in spots if spot.block is not None]
    blocks = max((spot.block for spot in inside if spot.block is not None), default=-1) + 1
    return list(dict.fromkeys(spot.role for spot in inside)), blocks


def _block(name: str, item: Mapping[str, Any]) -> int | None:
    block = whole(item.get("block"))
    if block is None and item.get("kind") not in ("embedding", "head"):
        number = next((part for part in name.split(".") if re.fullmatch(r"\d{1,5}", part)), None)
        block = None if number is None else int(number)
    return block if block is not None and 0 <= block < 10_000 else None


def _role(role: str) -> str:
    short = "+".join(part.removesuffix("_proj") for part in role.split("+"))
    return _KNOWN.get(short, short)
