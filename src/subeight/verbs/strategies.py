"""Which outlier strategy won a comparison, size by size, and what the x-ray of the model says to it."""

from collections.abc import Mapping, Sequence
from typing import Any

from subeight.evals.contest import SAME_SIZE, best_row
from subeight.inspect import x_ray
from subeight.inspect.strategies import Strategy, spoken_for, strategy_of
from subeight.models.model import Model
from subeight.recipes import Plan
from subeight.verbs.inspect import shown_text
from subeight.verbs.session import Session


def strategies_of(
    session: Session,
    model: Model,
    plans: Mapping[str, Plan],
    rows: Sequence[dict[str, Any]],
    pairs: Sequence[dict[str, Any]],
) -> list[dict[str, Any]]:
    """For every size at which strategies differ: which one won (None where none is set apart), and why.

    The model is x-rayed once, and not at all where every recipe of a size does the same about outliers.
    """
    strategies = {name: strategy_of(plan) for name, plan in plans.items()}
    contested = [same for same in _sizes(plans, rows) if len({strategies[row["recipe"]].decisive for row in same}) > 1]
    if not contested:
        return []
    ids, computing = shown_text(session, model).ids, session.computing
    seen = x_ray(model, ids, dtype=computing.dtype, device=computing.device, quiet=computing.quiet)
    return [_verdict(same, strategies, pairs, seen) for same in contested]


def _verdict(
    rows: Sequence[dict[str, Any]],
    strategies: Mapping[str, Strategy],
    pairs: Sequence[dict[str, Any]],
    seen: Mapping[str, Any],
) -> dict[str, Any]:
    names = [row["recipe"] for row in rows]
    best, why = best_row(rows, pairs)
    words = f"At {rows[0]['bits_per_weight']:.2f} bits "
    if best is None:
        words += f"no outlier strategy is set apart: {why}"
    else:
        winner = strategies[best]
        words += f"{best} wins; its outliers are {winner.words}. {spoken_for(winner, seen['linears'], seen['inputs'])}"
    return {
        "bits_per_weight": rows[0]["bits_per_weight"],
        "strategies": {name: strategies[name].words for name in names},
        "best": best,
        "why": words,
    }


def _sizes(plans: Mapping[str, Plan], rows: Sequence[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Measured rows in classes of about the same bits per weight and the same inputs, smallest first."""
    found: list[list[dict[str, Any]]] = []
    measured = (row for row in rows if row.get("kl") is not None)
    for row in sorted(measured, key=lambda row: (row["bits_per_weight"], row["recipe"])):
        inputs = {site.inputs for site in plans[row["recipe"]].quantized}
        for same in found:
            close = row["bits_per_weight"] - same[0]["bits_per_weight"] < SAME_SIZE
            if close and {site.inputs for site in plans[same[0]["recipe"]].quantized} == inputs:
                same.append(row)
                break
        else:
            found.append([row])
    return found
