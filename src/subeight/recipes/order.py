"""The order and legality of moves: what a list of methods may be, checked before any weight is read.

A place in the list follows from a method's `move`, and where that leaves two places, from its `position`:
rotations come before diagonal moves (they would fold a scaling back and cancel it), values are set apart before
rounding and corrections are fitted after it, and what tunes the whole model comes last.
"""

from collections.abc import Sequence
from dataclasses import MISSING, Field, fields
from itertools import pairwise
from typing import Any

from subeight.errors import RecipeError
from subeight.methods.base import Method, build, find_methods
from subeight.recipes.recipe import MethodUse

STAGES = ("rotation", "diagonal", "apart-before", "round", "apart-after", "polish")
_WHY = {
    "rotation": "a rotation comes before diagonal moves, because it would fold a scaling back and cancel it",
    "diagonal": "a move changes the weights, so it comes before they are rounded",
    "apart-before": "values are set apart before rounding, so that they are left out of the scales",
    "round": "rounding comes after the moves and before what is fitted on its residual",
    "apart-after": "a correction is fitted on the residual, so it comes after rounding",
    "polish": "polishing tunes what rounding left, so it comes last",
}


def stage(method: type[Method]) -> str:
    """Where in a list of methods this one belongs: one of STAGES."""
    position = getattr(method, "position", None)
    if method.move == "move":
        return "rotation" if position == "rotation" else "diagonal"
    if method.move == "apart":
        return "apart-after" if position == "after" else "apart-before"
    return method.move


def used(uses: Sequence[MethodUse], where: str) -> tuple[tuple[str, dict[str, Any]], ...]:
    """The methods as (name, options other than the defaults); RecipeError says what is not legal."""
    found = []
    for use in uses:
        try:
            found.append(build(use.name, use.options))
        except RecipeError as error:
            raise RecipeError(f"{where}: {error}") from error
    _check_order([type(method) for method in found], where)
    return tuple((method.name, _given(method)) for method in found)


def round_method(methods: Sequence[tuple[str, dict[str, Any]]]) -> str:
    """The name of the one method that rounds."""
    known = find_methods()
    return next(name for name, _ in methods if known[name].move == "round")


def moves(methods: Sequence[tuple[str, dict[str, Any]]]) -> tuple[tuple[str, dict[str, Any]], ...]:
    """The methods that act on a whole InputGroup before rounding."""
    known = find_methods()
    return tuple(use for use in methods if known[use[0]].move == "move")


def _given(method: Method) -> dict[str, Any]:
    # Options equal to the defaults are left out, so that writing a default does not change a fingerprint.
    values = {item.name: (getattr(method, item.name), _default(item)) for item in fields(method)}
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, (value, default) in values.items()
        if value != default
    }


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _check_order(methods: Sequence[type[Method]], where: str) -> None:
    names = [method.name for method in methods]
    for name in names:
        if names.count(name) > 1:
            raise RecipeError(f"{where}: {name} stands twice in methods {names}; name each method once.")
    rounds = [method.name for method in methods if method.move == "round"]
    if len(rounds) != 1:
        known = ", ".join(sorted(name for name, method in find_methods().items() if method.move == "round"))
        has = f"{len(rounds)} methods that round ({', '.join(rounds)})" if rounds else "no method that rounds"
        raise RecipeError(f"{where}: methods {names} has {has}; exactly one of {known} is needed.")
    for before, after in pairwise(methods):
        if STAGES.index(stage(before)) > STAGES.index(stage(after)):
            raise RecipeError(
                f"{where}: {after.name} stands after {before.name}, but {_WHY[stage(after)]}; "
                f"write {after.name} before {before.name}."
            )
    for method in methods[:-1]:
        if method.scope == "model" and method.move == "polish":
            raise RecipeError(
                f"{where}: {method.name} sees the whole model, so it is named last, not before {names[-1]}."
            )
