"""Which outlier strategy a recipe follows, and what the x-ray of a model has to say about it.

An outlier is moved (from inputs into weights, by a scale per channel), turned (spread over all channels by a rotation),
set apart (kept in high precision), or left where it is and rounded well.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from subeight.engine.rounding import methods_of
from subeight.recipes import Plan

ORDER = ("turned", "moved", "set apart", "rounded", "polished")
KINDS = {"move": "moved", "apart": "set apart", "round": "rounded", "polish": "polished"}


@dataclass(frozen=True)
class Strategy:
    """What a plan does about outliers: the names of its methods by kind, in the order in which they act."""

    methods: Mapping[str, tuple[str, ...]]

    @property
    def words(self) -> str:
        """As `moved (awq), rounded (gptq)`."""
        return ", ".join(f"{kind} ({', '.join(names)})" for kind, names in self.methods.items())

    @property
    def decisive(self) -> str:
        """What it does about outliers before it rounds; `rounded` where it does nothing else."""
        return next(iter(self.methods))


def strategy_of(plan: Plan) -> Strategy:
    """The strategy of a plan, over all of its linears."""
    found: dict[str, dict[str, None]] = {kind: {} for kind in ORDER}
    for site in plan.quantized:
        if any(format is not None and format.rotated for format in (site.weights, site.inputs)):
            found["turned"]["had"] = None
        for method in methods_of(site):
            found["turned" if method.name == "rotate" else KINDS[method.move]][method.name] = None
    return Strategy({kind: tuple(names) for kind, names in found.items() if names})


def spoken_for(strategy: Strategy, linears: Sequence[Mapping[str, Any]], inputs: Sequence[Mapping[str, Any]]) -> str:
    """One sentence: what the x-ray shows that speaks for the strategy, or that nothing does.

    `linears` and `inputs` are those of an inspect record.
    """
    inside = [linear for linear in linears if linear["block"] is not None and linear["kind"] != "router"]
    tails = {kind: sum(linear["tails"] == kind for linear in inside) for kind in ("light", "heavy", "few")}
    systematic = sum(bool(row["systematic"]) for row in inputs)
    speaks, fact = {
        "rounded": (
            2 * tails["light"] >= len(inside),
            f"{tails['light']} of {len(inside)} linears have light tails, for which rounding well is enough",
        ),
        "moved": (
            systematic > 0,
            f"{systematic} of {len(inputs)} inputs have channels that are extreme on 5 % of the tokens or more, which "
            "a scale takes from them",
        ),
        "turned": (
            tails["heavy"] + tails["few"] + systematic > 0,
            f"{tails['heavy'] + tails['few']} of {len(inside)} linears have heavy tails and {systematic} of "
            f"{len(inputs)} inputs systematic channels, which a rotation spreads over all",
        ),
        "set apart": (
            tails["few"] > 0,
            f"in {tails['few']} of {len(inside)} linears few values cause much of the error",
        ),
    }[strategy.decisive]
    return f"The x-ray {'agrees' if speaks else 'would not have said so'}: {fact}."
