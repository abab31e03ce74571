"""What was asked of an allocation, and what follows from it: units, the choice, what is expected, the recipe."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from subeight.errors import InputError
from subeight.map.allocation import Allocation, worth
from subeight.map.budget import Budget
from subeight.map.choices import Unit, Wish
from subeight.map.explain import Explainer
from subeight.map.front import front, measured, rivals
from subeight.map.interactions import Pair, doubts_of
from subeight.map.mapfile import MapFile
from subeight.map.prediction import Expected, Formats, Prediction
from subeight.map.spend import Latency, decidable, spent
from subeight.recipes import Plan, Recipe


@dataclass(frozen=True)
class Decision:
    """A budget spent on one map; everything is worked out when it is wanted. One in milliseconds needs `latency`.

    Raises:
        InputError: pins, forbiddings and engine leave a place no format.
        SubeightError: the budget is infeasible; the nearest that can be met is named.
    """

    found: MapFile
    budget: Budget
    engine: str = "any"
    pins: tuple[Wish, ...] = ()
    forbids: tuple[Wish, ...] = ()
    seed: int = 0
    latency: Latency | None = None

    @cached_property
    def prediction(self) -> Prediction:
        return Prediction(self.found, self.seed)

    @cached_property
    def units(self) -> list[Unit]:
        return decidable(self.found, self.budget, self.engine, self.pins, self.forbids, self.latency)

    @cached_property
    def made(self) -> Allocation:
        return spent(self.found, self.units, self.budget, self.prediction, self.latency)

    @cached_property
    def formats(self) -> Formats:
        """The format of every place; None is kept."""
        return self.made.formats()

    @cached_property
    def expected(self) -> Expected:
        return self.prediction.expected(self.formats)

    def without(self, wish: Wish) -> "Decision":
        """The same without one pin or forbidding."""
        pins, forbids = (tuple(w for w in wishes if w is not wish) for wishes in (self.pins, self.forbids))
        return replace(self, pins=pins, forbids=forbids)

    def changes(self, other: "Decision") -> list[dict[str, str | None]]:
        """The places that get another format there."""
        pairs = ((name, format, other.formats[name]) for name, format in self.formats.items())
        return [{"place": name, "from": a, "to": b} for name, a, b in pairs if a != b]

    @property
    def _bits(self) -> float:
        """Bits per weight of the blocks."""
        return self.made.inside(self.prediction.kept)[1]

    def numbers(self, plan: Plan, pairs: Sequence[Pair] = ()) -> dict[str, Any]:
        """What a record says of it; `pairs` are interactions that were measured."""
        price = worth(self.units, self.made.cost)
        choices, doubts = (
            Explainer(self.found, self.made, price, timed=self.latency is not None).choices(),
            doubts_of(pairs),
        )
        for choice in choices:
            choice["doubts"] += doubts.get(choice["place"], [])
        expected, budget = self.expected, self.budget
        return {
            "map": {"directory": str(self.found.path), "hash": self.found.hash},
            "budget": {"text": budget.text, "kind": budget.kind, "value": budget.value},
            "engine": self.engine,
            "pins": [wish.text for wish in self.pins],
            "forbids": [wish.text for wish in self.forbids],
            "metric": self.found.metric,
            "choices": choices,
            "worth": price,
            "latency": self._latency(),
            "bits_per_weight": plan.bits_per_weight,
            "bytes": plan.bytes,
            "bytes_stored": sum(site.bytes for site in plan.sites if site.linear.kind != "tied"),
            "predicted": {**expected.to_dict(), "additivity": expected.loss / expected.sum if expected.sum else None},
            "front": [point.to_dict() for point in front(self.units, self.prediction)],
            "measured": [point.to_dict() for point in measured(self.found, self.prediction)],
            "rivals": [point.to_dict() for point in rivals(self.found, self.prediction, self._bits)],
            "price_of_pins": self._prices(),
        }

    def _latency(self) -> dict[str, Any] | None:
        """Seconds of one token: as it is expected, as it is in full precision, and of all but the linears."""
        if self.latency is None:
            return None
        kept = sum(self.latency.of(place, None) for place in self.found.places)
        rest = self.latency.rest
        said = {"context": self.latency.context, "rest_seconds": rest, "seconds_baseline": rest + kept}
        return {"seconds": rest + self.made.cost, **said}

    def _prices(self) -> list[dict[str, Any]]:
        """What each pin and each forbidding costs: the allocation with all of them, minus the one without it."""
        rows = []
        for kind, wishes in (("pin", self.pins), ("forbid", self.forbids)):
            for wish in wishes:
                other = self.without(wish)
                price = self.expected.loss - self.prediction.expected(other.formats).loss
                saved = round(self.made.inside()[0] - other.made.inside()[0])
                rows.append({kind: wish.text, "price": price, "bytes": saved})
        return rows

    @cached_property
    def recipe(self) -> Recipe:
        """The allocation as a recipe: the commonest format, and a rule for every linear that gets another.

        Statistics are taken of the baseline, as the map took them: what is predicted is what was measured.
        """
        inside = Counter(self.formats[place.name] for place in self.found.places if place.inside for _ in place.linears)
        quantized = [(format, count) for format, count in inside.most_common() if format is not None]
        if not quantized:
            raise InputError(f"The budget of {self.budget.text} keeps every place as it is; give a smaller one.")
        common = quantized[0][0]
        content: dict[str, Any] = {
            "name": "mixed-" + self.budget.text.replace(" ", "-").lower(),
            "weights": common,
            "methods": list(self.found.methods),
            "rules": self._rules(common),
            "tap": "exact",
        }
        if calibration := self.found.settings.get("calibration"):
            content["calibration"] = dict(calibration)
        return Recipe.from_dict(content, "The recipe of this allocation")

    def _rules(self, common: str) -> Sequence[dict[str, Any]]:
        rules: list[dict[str, Any]] = []
        for place in self.found.places:
            format = self.formats[place.name]
            if format == (common if place.inside else None):  # outside of the blocks nothing is quantized by default
                continue
            change: dict[str, Any] = {"keep": True} if format is None else {"weights": format}
            rules += [{"match": _exactly(name), **change} for name in place.linears]
        return rules


def _exactly(name: str) -> str:
    """A glob that matches this name and no other."""
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
