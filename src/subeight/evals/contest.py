"""Several candidates of one baseline on one text: who is better than whom, and whether that can be said."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from subeight.evals.scoring import Scored
from subeight.evals.stats import holm, mcnemar, paired_difference, paired_p

SAME_SIZE = 0.1  # bits per weight within which two rows compete
LEVEL = 0.05  # of corrected p-values below which a difference is one


def pairs_of(scores: Mapping[str, Scored], *, seed: int = 0) -> list[dict[str, Any]]:
    """Every two candidates, paired token by token, with intervals by document and p-values for as many comparisons.

    `kl_difference` with `p` (a t-test by document) and `p_holm`; `only_a` and `only_b`, the tokens on which just one of
    them has the baseline's first choice, with McNemar's `flips_p` and `flips_p_holm`.
    """
    found = []
    for (a, first), (b, second) in combinations(scores.items(), 2):
        if first.outcomes is None or second.outcomes is None or first.places is None:
            continue
        found.append({"a": a, "b": b, **_compared(first, second, first.places.document, slice(None), seed)})
    for name in ("p", "flips_p"):
        for pair, corrected in zip(found, holm([pair[name] for pair in found]) if found else (), strict=True):
            pair[f"{name}_holm"] = corrected
    return found


def categories_of(scores: Mapping[str, Scored], *, seed: int = 0) -> dict[str, dict[str, Any]]:
    """For each kind of text the KL of every candidate, and which one is the best there where that can be said.

    Pairs are corrected for all comparisons of all kinds together.
    """
    measured = {name: scored for name, scored in scores.items() if scored.outcomes is not None and scored.places}
    places = next((scored.places for scored in measured.values()), None)
    if places is None or len(measured) < 2:
        return {}
    kinds = sorted(set(places.category))
    pairs = []
    for kind in kinds:
        inside = np.flatnonzero(places.category == kind)
        for (a, first), (b, second) in combinations(measured.items(), 2):
            compared = _compared(first, second, places.document[inside], inside, seed)
            pairs.append({"kind": kind, "a": a, "b": b, **compared})
    for pair, corrected in zip(pairs, holm([pair["p"] for pair in pairs]), strict=True):
        pair["p_holm"] = corrected
    found = {}
    for kind in kinds:
        inside = np.flatnonzero(places.category == kind)
        losses = {name: float(_kl(scored)[inside].mean()) for name, scored in measured.items()}
        lowest = min(losses, key=lambda name: losses[name])
        mine = [pair for pair in pairs if pair["kind"] == kind]
        others = [name for name in losses if name != lowest and not _apart(lowest, name, mine)]
        found[kind] = {"kl": losses, "best": None if others else lowest, "not_apart": others}
    return found


def _compared(first: Scored, second: Scored, documents: Any, tokens: Any, seed: int) -> dict[str, Any]:
    one, other = _kl(first)[tokens], _kl(second)[tokens]
    interval = paired_difference(one, other, documents, seed=seed)
    assert first.outcomes is not None
    assert second.outcomes is not None
    kept, also = first.outcomes.agree.cpu().numpy()[tokens], second.outcomes.agree.cpu().numpy()[tokens]
    only_a, only_b = int((kept & ~also).sum()), int((also & ~kept).sum())
    return {
        "kl_difference": interval.value,
        "kl_difference_ci": interval.ci,
        "p": paired_p(one, other, documents),
        "only_a": only_a,
        "only_b": only_b,
        "flips_p": mcnemar(only_a, only_b),
    }


def _kl(scored: Scored) -> Any:
    assert scored.outcomes is not None
    return scored.outcomes.kl.cpu().numpy()


def best_row(rows: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]) -> tuple[str | None, str]:
    """The recipe with the lowest KL, named only where it is set apart from every other row, all comparisons counted."""
    measured = [row for row in rows if row.get("kl") is not None]
    if not measured:
        return None, "Nothing was measured token by token, so no recipe can be called the best."
    first = min(measured, key=lambda row: row["kl"])
    name = first["recipe"]
    close = [other for other in (row["recipe"] for row in measured) if other != name and not _apart(name, other, pairs)]
    if close:
        return None, (
            f"{name} has the lowest KL ({first['kl']:.4f}), but on this text it cannot be told from "
            f"{', '.join(close)}; measure on more text to decide."
        )
    if len(measured) == 1:
        return name, f"{name} is the only recipe that was measured (KL {first['kl']:.4f} nats)."
    same = [row for row in measured if abs(row["bits_per_weight"] - first["bits_per_weight"]) < SAME_SIZE]
    beside = f" of the {len(same)} recipes of its size and" if len(same) > 1 else ""
    return name, (
        f"{name} has the lowest KL ({first['kl']:.4f} nats at {first['bits_per_weight']:.2f} bits per weight),{beside} "
        f"set apart from every other row by a paired interval."
    )


def _apart(a: str, b: str, pairs: Sequence[dict[str, Any]]) -> bool:
    for pair in pairs:
        if {pair["a"], pair["b"]} == {a, b} and pair["kl_difference_ci"] is not None:
            low, high = pair["kl_difference_ci"]
            return (low > 0 or high < 0) and pair.get("p_holm", 0.0) < LEVEL
    return False
