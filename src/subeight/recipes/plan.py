"""A recipe resolved for one model: what will happen at every linear and why, before any weight is read."""

import math
import re
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from subeight.errors import RecipeError
from subeight.formats import Format
from subeight.methods.base import Fit, Select, build
from subeight.models.linear_info import LinearInfo
from subeight.recipes.recipe import fingerprint_of

MethodChoice = tuple[str, dict[str, Any]]


@dataclass(frozen=True)
class Site:
    """One linear and what was decided about it; `weights` None means that it is kept as it is."""

    linear: LinearInfo
    weights: Format | None
    inputs: Format | None
    methods: tuple[MethodChoice, ...]  # in order; options that are the defaults are left out
    reason: str
    runs_in: tuple[str, ...]

    @property
    def bits(self) -> float:
        """Stored bits per weight, scales, zero points and what is set apart counted; a kept linear's of its dtype."""
        if self.weights is None:
            return 8.0 * self.linear.dtype.itemsize
        extra = sum(method.extra_bits(self.linear.shape) for method in self._apart)
        return self.weights.bits(self.linear.shape) + extra / self.linear.count

    @property
    def apart(self) -> bool:
        """Whether anything stands beside its codes."""
        return bool(self._apart)

    @property
    def _apart(self) -> list[Select | Fit]:
        built = (build(name, options) for name, options in self.methods)
        return [method for method in built if isinstance(method, Select | Fit)]

    @property
    def bytes(self) -> int:
        """Stored bytes, rounded up."""
        return math.ceil(round(self.bits * self.linear.count, 6) / 8)

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a record."""
        linear = self.linear
        return {
            "name": linear.name,
            "shape": list(linear.shape),
            "block": linear.block,
            "group": linear.group,
            "fusion": linear.fusion,
            "kind": linear.kind,
            "dtype": str(linear.dtype).removeprefix("torch."),
            **({"whole": True} if linear.whole else {}),
            "weights": str(self.weights) if self.weights is not None else None,
            "inputs": str(self.inputs) if self.inputs is not None else None,
            "methods": [{name: options} if options else name for name, options in self.methods],
            "reason": self.reason,
            "runs_in": list(self.runs_in),
            "bits": round(self.bits, 4),
            "bytes": self.bytes,
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Site":
        """The site that `to_dict` described."""
        methods = [use if isinstance(use, dict) else {use: {}} for use in content["methods"]]
        return cls(
            linear=LinearInfo(
                name=content["name"],
                shape=(content["shape"][0], content["shape"][1]),
                block=content["block"],
                group=content["group"],
                fusion=content["fusion"],
                kind=content["kind"],
                dtype=getattr(torch, content["dtype"]),
                whole=content.get("whole", False),
            ),
            weights=Format.parse(content["weights"]) if content["weights"] else None,
            inputs=Format.parse(content["inputs"]) if content["inputs"] else None,
            methods=tuple(next(iter(use.items())) for use in methods),
            reason=content["reason"],
            runs_in=tuple(content["runs_in"]),
        )


@dataclass(frozen=True)
class Plan:
    """Every linear of a model with what will happen to it: the engine carries it out, the record keeps it."""

    recipe: str
    sites: tuple[Site, ...]
    tap: str = "sequential"
    kv: str | None = None  # the policy of its cache, as text

    @cached_property
    def _by_name(self) -> dict[str, Site]:
        return {site.linear.name: site for site in self.sites}

    def site(self, name: str) -> Site:
        """The site of the linear called `name`."""
        if name not in self._by_name:
            raise RecipeError(f"The plan has no linear called {name!r}.")
        return self._by_name[name]

    @property
    def quantized(self) -> tuple[Site, ...]:
        """The sites whose weights get a format below the baseline's."""
        return tuple(site for site in self.sites if site.weights is not None)

    @property
    def kept(self) -> tuple[Site, ...]:
        """The sites that stay in the baseline's precision."""
        return tuple(site for site in self.sites if site.weights is None)

    @property
    def bits_per_weight(self) -> float:
        """All stored bits of all linears of the blocks, kept ones included, over their weight count."""
        inside = self._inside()
        count = sum(site.linear.count for site in inside)
        return sum(site.bits * site.linear.count for site in inside) / count if count else math.nan

    @property
    def bytes(self) -> int:
        """Stored bytes of all linears of the blocks, kept ones included."""
        return sum(site.bytes for site in self._inside())

    def _inside(self) -> list[Site]:
        return [site for site in self.sites if site.linear.block is not None]

    @cached_property
    def fingerprint(self) -> str:
        """16 hex digits of all that is decided; names of recipes, reasons and engines are left out."""
        keys = ("name", "shape", "weights", "inputs", "methods")
        rows = [{key: row[key] for key in keys} for row in (site.to_dict() for site in self.sites)]
        return fingerprint_of({"sites": rows, "tap": self.tap, "kv": self.kv})

    def table(self) -> list[dict[str, str]]:
        """One row of text per linear, for a person to read."""
        return [
            {
                "linear": site.linear.name,
                "shape": f"{site.linear.shape[0]} x {site.linear.shape[1]}",
                "weights": _weights(site),
                "inputs": str(site.inputs) if site.inputs is not None else "-",
                "methods": " ".join(_use(use) for use in site.methods) or "-",
                "bits": f"{site.bits:.2f}",
                "bytes": f"{site.bytes:,}",
                "reason": site.reason,
                "runs in": " ".join(site.runs_in),
            }
            for site in self.sites
        ]

    def summary(self) -> list[str]:
        """The plan in a few lines: linears alike in name and decision are counted together."""
        counts: Counter[tuple[str, str]] = Counter()
        for site in self.sites:
            inputs = f", inputs {site.inputs}" if site.inputs is not None else ""
            methods = f" by {' + '.join(_use(use) for use in site.methods)}" if site.methods else ""
            counts[re.sub(r"\d+", "*", site.linear.name), f"{_weights(site)}{inputs}{methods}: {site.reason}"] += 1
        lines = [f"{name} ({count}): {what}" for (name, what), count in counts.items()]
        engines = [engine for engine in self.sites[0].runs_in if all(engine in site.runs_in for site in self.sites)]
        total = f"{self.bits_per_weight:.3f} bits per weight, {self.bytes:,} bytes in the linears of the blocks"
        lines += [f"keys and values: {self.kv}"] if self.kv else []
        return [*lines, f"{total}; runs in {', '.join(engines)}; plan {self.fingerprint}"]

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a record; `from_dict` of it is the same plan."""
        return {
            "recipe": self.recipe,
            "tap": self.tap,
            "kv": self.kv,
            "fingerprint": self.fingerprint,
            "bits_per_weight": self.bits_per_weight,
            "bytes": self.bytes,
            "sites": [site.to_dict() for site in self.sites],
        }

    @classmethod
    def from_dict(cls, content: dict[str, Any]) -> "Plan":
        """The plan that a record holds."""
        sites = tuple(Site.from_dict(site) for site in content["sites"])
        return cls(recipe=content["recipe"], sites=sites, tap=content["tap"], kv=content.get("kv"))


def _weights(site: Site) -> str:
    return str(site.weights) if site.weights is not None else str(site.linear.dtype).removeprefix("torch.")


def _use(use: MethodChoice) -> str:
    name, options = use
    return f"{name}({', '.join(f'{key}={value}' for key, value in options.items())})" if options else name
