"""What a method is, and how methods are found by name.

A method is one class in one file under `move/`, `round/`, `apart/` or `polish/`; the file is named like the
method. Its options are its dataclass fields: recipes, the command line and docs/methods.md are derived from
them. A package outside Subeight adds a method by an entry point in the group `subeight.methods` that names
its class.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
import typing
from collections.abc import Iterator
from dataclasses import MISSING, Field, dataclass, field, fields
from difflib import get_close_matches
from functools import cache
from importlib import metadata
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from subeight.errors import RecipeError
from subeight.formats import Format, QTensor, Sparse, Thin
from subeight.models.stats import Stats

ENTRY_POINTS = "subeight.methods"
MOVES = ("move", "round", "apart", "polish")


def option(
    default: Any,
    about: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """One option of a method: its default, what it does, and the values that are allowed."""
    return field(default=default, metadata={"about": about, "low": low, "high": high, "choices": choices})


@dataclass(frozen=True)
class Method:
    """One way to lose less at few bits; its fields are its options and are checked when it is made."""

    name: ClassVar[str]
    move: ClassVar[str]  # one of MOVES
    scope: ClassVar[str] = "linear"  # what it sees at once: linear, group, block or model

    @property
    def needs(self) -> frozenset[str]:
        """The fields of Stats that this method reads, which may depend on its options."""
        return frozenset()

    def passes(self, sequences: int, batch: int) -> float:  # noqa: ARG002 - most take none
        """Forward passes of the calibration text that it takes beside its statistics; a backward one counts as two."""
        return 0.0

    def __post_init__(self) -> None:
        kinds = typing.get_type_hints(type(self))
        for item in fields(self):
            value = _checked(self.name, item, kinds[item.name], getattr(self, item.name))
            object.__setattr__(self, item.name, value)


@dataclass(frozen=True)
class Round(Method):
    """Chooses the codes and scales of a weight."""

    move: ClassVar[str] = "round"

    def round(
        self,
        weight: Float[Tensor, "out in"],
        format: Format,
        stats: Stats | None,
        generator: torch.Generator,
        notes: dict[str, Any] | None = None,
    ) -> QTensor:
        """The weight in `format`; what is worth recording (the damping that was used) goes to `notes`."""
        raise NotImplementedError


@dataclass(frozen=True)
class Move(Method):
    """Shifts difficulty between a tensor and the weights that read it; the function stays the same."""

    move: ClassVar[str] = "move"
    scope: ClassVar[str] = "group"

    def diagonal(
        self,
        weights: list[Float[Tensor, "out in"]],
        formats: list[Format | None],
        stats: Stats,
        channels: Int[Tensor, " in"],
        producers: int,
        inputs: Format | None = None,
    ) -> Float[Tensor, " producers"]:
        """Positive `s` per channel of the producer: input channel j is divided by `s[channels[j]]`.

        Column j of every weight is multiplied by the same number. Where a norm produces the input, `channels`
        is `arange`; where values are shared by several heads, several j share a producer's channel. `inputs`
        is the format that the input itself will have, None where it stays as it is.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Select(Method):
    """Takes single values out of a weight before it is rounded, which are kept in 16 bits."""

    move: ClassVar[str] = "apart"
    position: ClassVar[str] = "before"

    def extra_bits(self, shape: tuple[int, int]) -> float:
        """Stored bits that it adds to a matrix [out, in]."""
        raise NotImplementedError

    def select(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats | None) -> Sparse:
        """The values that are set apart; the rest is rounded with zeros in their places."""
        raise NotImplementedError


@dataclass(frozen=True)
class Fit(Method):
    """Makes up for a part of what rounding lost, in 16 bits."""

    move: ClassVar[str] = "apart"
    position: ClassVar[str] = "after"

    def extra_bits(self, shape: tuple[int, int]) -> float:
        """Stored bits that it adds to a matrix [out, in]."""
        raise NotImplementedError

    def fit(self, lost: Float[Tensor, "out in"], stats: Stats | None) -> Thin:
        """A correction that is added; `lost` is the weight less what was stored of it."""
        raise NotImplementedError


def find_methods() -> dict[str, type[Method]]:
    """Every method by name: those in our folders, then those that installed packages declare."""
    return dict(_found())


def build(name: str, options: dict[str, Any] | None = None) -> Method:
    """The method of that name with these options; RecipeError names the nearest known word."""
    known = find_methods()
    if name not in known:
        raise RecipeError(f"{name!r} is not a method; known are {', '.join(sorted(known))}{_nearest(name, known)}.")
    made, given = known[name], dict(options or {})
    allowed = {item.name: item for item in fields(made)}
    for key in given:
        if key not in allowed:
            takes = f"takes {', '.join(allowed)}" if allowed else "takes no options"
            raise RecipeError(f"{name} has no option {key!r}; it {takes}{_nearest(str(key), allowed)}.")
    missing = [key for key, item in allowed.items() if key not in given and _default(item) is MISSING]
    if missing:
        raise RecipeError(f"{name} needs a value for {', '.join(missing)}; write it under the method's name.")
    return made(**given)


def describe(made: type[Method]) -> str:
    """The options of a method as a Markdown table: name, default, what is allowed, what it does."""
    if not fields(made):
        return "No options."
    kinds = typing.get_type_hints(made)
    rows = ["| option | default | allowed | what it does |", "|---|---|---|---|"]
    for item in fields(made):
        allowed = _allowed(item, kinds[item.name]).replace("|", "\\|")
        rows.append(f"| `{item.name}` | `{_text(_default(item))}` | {allowed} | {item.metadata.get('about', '')} |")
    return "\n".join(rows)


@cache
def _found() -> dict[str, type[Method]]:
    found: dict[str, type[Method]] = {}
    for made, where in (*_own(), *_outside()):
        if made.name in found:
            raise RecipeError(
                f"two methods are called {made.name!r} ({found[made.name].__module__} and {where}); "
                "rename one or uninstall its package."
            )
        found[made.name] = made
    return found


def _own() -> Iterator[tuple[type[Method], str]]:
    room = importlib.import_module(__package__)
    for folder in pkgutil.iter_modules(room.__path__):
        if not folder.ispkg or folder.name not in MOVES:
            continue
        package = importlib.import_module(f"{__package__}.{folder.name}")
        for file in pkgutil.iter_modules(package.__path__):
            module = importlib.import_module(f"{package.__name__}.{file.name}")
            for _, made in inspect.getmembers(module, inspect.isclass):
                if issubclass(made, Method) and made.__module__ == module.__name__:
                    yield made, module.__name__


def _outside() -> Iterator[tuple[type[Method], str]]:
    for entry in metadata.entry_points(group=ENTRY_POINTS):
        made = entry.load()
        if not (inspect.isclass(made) and issubclass(made, Method) and hasattr(made, "name")):
            raise RecipeError(
                f"the entry point {entry.name!r} of {ENTRY_POINTS} names {entry.value}, which must be a class made "
                "from Round, Tune, Move, Select, Fit or Polish with a name; mend or uninstall that package."
            )
        yield made, entry.value


def _checked(method: str, item: Field[Any], kind: Any, value: Any) -> Any:
    given, number = value, isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and number:
        value = float(value)
    elif kind == tuple[float, ...] and isinstance(value, list | tuple):
        good = value and all(isinstance(v, int | float) and not isinstance(v, bool) for v in value)
        value = tuple(float(v) for v in value) if good else None
    plain = {bool: isinstance(value, bool), int: number and isinstance(value, int)}
    fits = plain.get(kind, isinstance(value, typing.get_origin(kind) or kind))
    low, high = item.metadata.get("low"), item.metadata.get("high")
    choices = item.metadata.get("choices")
    if fits and choices is not None:
        fits = value in choices
    if fits and kind in (int, float, tuple[float, ...]):
        each = value if isinstance(value, tuple) else (value,)
        fits = all((low is None or v >= low) and (high is None or v <= high) for v in each)
    if not fits:
        hint = _nearest(str(given), choices or ())
        raise RecipeError(f"{method}: {item.name} was given as {given!r}, but must be {_allowed(item, kind)}{hint}.")
    return value


def _allowed(item: Field[Any], kind: Any) -> str:
    if item.metadata.get("choices"):
        return " | ".join(item.metadata["choices"])
    words = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    text = "a list of numbers" if kind == tuple[float, ...] else words.get(kind, str(kind))
    low, high = item.metadata.get("low"), item.metadata.get("high")
    if low is not None and high is not None:
        return f"{text} from {low:g} to {high:g}"
    return f"{text}, at least {low:g}" if low is not None else text


def _default(item: Field[Any]) -> Any:
    return item.default_factory() if item.default_factory is not MISSING else item.default


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return str(list(value)) if isinstance(value, tuple) else str(value)


def _nearest(word: str, known: typing.Iterable[str]) -> str:
    match = get_close_matches(word, list(known), n=1)
    return f" (did you mean {match[0]!r}?)" if match else ""
