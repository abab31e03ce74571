"""Several candidates of one baseline on one text: who is better than whom, and whether that can be said."""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

from subeight.evals.scoring import Scored
from subeight.evals.stats import paired_difference

SAME_SIZE = 0.1  # bits per weight within which two rows compete


def pairs_of(scores: Mapping[str, Scored], *, seed: int = 0) -> list[dict[str, Any]]:
    """For every two candidates the difference of their KL, paired token by token and resampled by document."""
    found = []
    for (a, first), (b, second) in combinations(scores.items(), 2):
        if first.outcomes is None or second.outcomes is None or first.places is None:
            continue
        interval = paired_difference(
            first.outcomes.kl.cpu().numpy(), second.outcomes.kl.cpu().numpy(), first.places.document, seed=seed
        )
        found.append({"a": a, "b": b, "kl_difference": interval.value, "kl_difference_ci": interval.ci})
    return found


def best_row(rows: Sequence[dict[str, Any]], pairs: Sequence[dict[str, Any]]) -> tuple[str | None, str]:
    """The recipe with the lowest KL, named only where the paired interval sets it apart from every other row."""
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
            return low > 0 or high < 0
    return False
