"""Where in a list each kind of method may stand, for the kinds that are still to come too."""

from dataclasses import dataclass
from typing import ClassVar

import pytest

from subeight.errors import RecipeError
from subeight.methods import base
from subeight.methods.base import Method, Move, Round
from subeight.recipes import order
from subeight.recipes.recipe import MethodUse


@dataclass(frozen=True)
class Rotate(Move):
    name: ClassVar[str] = "rotate"
    position: ClassVar[str] = "rotation"


@dataclass(frozen=True)
class Scale(Move):
    name: ClassVar[str] = "scale"
    strength: tuple[float, ...] = (1.0,)


@dataclass(frozen=True)
class Nearest(Round):
    name: ClassVar[str] = "nearest"


@dataclass(frozen=True)
class Outliers(Method):
    name: ClassVar[str] = "outliers"
    move: ClassVar[str] = "apart"


@dataclass(frozen=True)
class LowRank(Method):
    name: ClassVar[str] = "lowrank"
    move: ClassVar[str] = "apart"
    position: ClassVar[str] = "after"


@dataclass(frozen=True)
class Distil(Method):
    name: ClassVar[str] = "distil"
    move: ClassVar[str] = "polish"
    scope: ClassVar[str] = "model"


@dataclass(frozen=True)
class Bias(Method):
    name: ClassVar[str] = "bias"
    move: ClassVar[str] = "polish"


@pytest.fixture(autouse=True)
def methods(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {made.name: made for made in (Rotate, Scale, Nearest, Outliers, LowRank, Distil, Bias)}
    monkeypatch.setattr(base, "_found", lambda: known)


def names(*given: str) -> tuple[str, ...]:
    return tuple(name for name, _ in order.used([MethodUse(name=name) for name in given], "The recipe"))


def test_every_kind_in_its_place() -> None:
    full = ("rotate", "scale", "outliers", "nearest", "lowrank", "bias", "distil")
    assert names(*full) == full
    assert [order.stage(base.find_methods()[name]) for name in full] == [*order.STAGES, "polish"]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ("scale rotate nearest", "rotate stands after scale.*would fold a scaling back and cancel it"),
        ("outliers scale nearest", "scale stands after outliers.*before they are rounded"),
        ("nearest outliers", "outliers stands after nearest.*left out of the scales"),
        ("lowrank nearest", "nearest stands after lowrank.*write nearest before lowrank"),
        ("nearest distil lowrank", "lowrank stands after distil.*on the residual"),
        ("nearest distil bias", "distil sees the whole model, so it is named last, not before bias"),
        ("rotate scale", "no method that rounds; exactly one of nearest is needed"),
    ],
)
def test_elsewhere_it_is_refused_with_the_reason(given: str, says: str) -> None:
    with pytest.raises(RecipeError, match=f"The recipe: .*{says}"):
        names(*given.split())


def test_moves_and_the_rounding_method_are_told_apart() -> None:
    uses = order.used([MethodUse(name=name) for name in ("rotate", "scale", "nearest", "lowrank")], "The recipe")
    assert order.moves(uses) == (("rotate", {}), ("scale", {}))
    assert order.round_method(uses) == "nearest"


def test_options_that_are_the_defaults_are_left_out() -> None:
    def options(value: list[float]) -> dict[str, object]:
        uses = [MethodUse(name="scale", options={"strength": value}), MethodUse(name="nearest")]
        return order.used(uses, "The recipe")[0][1]

    assert options([1.0]) == {}
    assert options([1.0, 2.0]) == {"strength": [1.0, 2.0]}
