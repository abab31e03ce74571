"""Which way of merging is best by its bytes, and which erases what was learned: by name, from what was measured."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from subeight.train.merging import AGAIN, APART, MODES, WORDS
from subeight.train.qlora_measure import Question, Seen, gain, kept_gain

KEPT, ERASED = 0.9, 0.5  # shares of the gain: from the first on it is kept, below the second erased


@dataclass(frozen=True)
class Verdict:
    """A row for each way with its numbers and verdict, the best by bytes, and sentences."""

    rows: list[dict[str, Any]]
    untrained: list[dict[str, Any]]
    metric: str
    learned: dict[str, Any]
    best: str | None
    warnings: list[str]
    sentences: list[str]

    def numbers(self) -> dict[str, Any]:
        """As a record holds it."""
        return {
            "merges": self.rows,
            "untrained": self.untrained,
            "metric": self.metric,
            "gain": self.learned,
            "best": self.best,
            "findings": self.sentences,
        }


def judge(
    measured: Mapping[str, Seen],
    untrained: Mapping[str, Seen],
    sizes: Mapping[str, int],
    base_sizes: Mapping[str, int],
    skipped: Mapping[str, str],
    question: Question,
    seed: int,
) -> Verdict:
    """`measured` by mode, `untrained` by base (`quantized`, `16-bit`), the bytes of both, why a mode was not."""
    start, apart = untrained["quantized"], measured[APART]
    metric = "accuracy" if len(apart.picked) else "exact" if question.has_answers else "loss"
    learned = gain(start, apart, metric, seed)
    is_learned = learned.value > 0 and (learned.ci is None or learned.low > 0)
    if not is_learned and metric != "loss":  # answers may not be right yet though they come nearer
        by_loss = gain(start, apart, "loss", seed)
        if by_loss.value > 0 and (by_loss.ci is None or by_loss.low > 0):
            metric, learned, is_learned = "loss", by_loss, True
    rows = [
        _row(mode, measured[mode], start, apart, metric, sizes[mode], question, seed, is_learned)
        if mode in measured
        else {"mode": mode, "skipped": skipped[mode]}
        for mode in MODES
    ]
    base_rows = [
        {"base": name, "bytes": base_sizes[name], **each.numbers(has_answers=question.has_answers, seed=seed)}
        for name, each in untrained.items()
    ]
    best = _best(rows)
    warnings = _warnings(rows, is_learned)
    numbers = {"value": learned.value, "ci": learned.ci, "learned": is_learned}
    return Verdict(rows, base_rows, metric, numbers, best, warnings, _sentences(rows, best, metric, is_learned))


def _row(
    mode: str,
    found: Seen,
    start: Seen,
    apart: Seen,
    metric: str,
    size: int,
    question: Question,
    seed: int,
    learned: bool,
) -> dict[str, Any]:
    kept = kept_gain(start, apart, found, metric, seed) if learned else None
    by_loss = kept_gain(start, apart, found, "loss", seed)
    verdict = "nothing was learned" if kept is None else _word(kept.value)
    return {
        "mode": mode,
        "bytes": size,
        **found.numbers(has_answers=question.has_answers, seed=seed),
        "kept": kept and kept.value,
        "kept_ci": kept and kept.ci,
        "kept_loss": by_loss and by_loss.value,
        "verdict": verdict,
    }


def _word(kept: float) -> str:
    return "kept" if kept >= KEPT else "erased" if kept < ERASED else "weakened"


def _best(rows: list[dict[str, Any]]) -> str | None:
    """The fewest bytes that keep what was learned; of equal bytes the nearest to the trained model."""
    kept = [row for row in rows if row.get("verdict") == "kept"]
    return min(kept, key=lambda row: (row["bytes"], row["kl"]))["mode"] if kept else None


def _warnings(rows: list[dict[str, Any]], learned: bool) -> list[str]:
    if not learned:
        return ["Nothing was learned that the held-out part shows, so merges cannot be told apart by it."]
    found = []
    for row in rows:
        if row.get("verdict") == "erased":
            found.append(
                f"The adapter {WORDS[row['mode']]} loses what was learned: {row['kept']:.0%} of the gain is left "
                f"(by the loss {row['kept_loss'] or 0:.0%}). Do not ship it."
            )
        elif row.get("verdict") == "weakened":
            found.append(f"The adapter {WORDS[row['mode']]} keeps {row['kept']:.0%} of the gain.")
    return found


def _sentences(rows: list[dict[str, Any]], best: str | None, metric: str, learned: bool) -> list[str]:
    found = [_one(row, metric) for row in rows if "skipped" not in row]
    if best is not None and learned:
        at = next(row for row in rows if row["mode"] == best)
        words = f"Best by bytes: {WORDS[best]}, {_size(at['bytes'])}, which keeps {at['kept']:.0%} of the gain"
        dense = next((row for row in rows if row["mode"] == AGAIN and row.get("verdict") == "erased"), None)
        found.append(words + ("." if dense is None else "; quantized again it is erased."))
    return found


def _one(row: dict[str, Any], metric: str) -> str:
    shown = f"{row[metric]:.3f}" if metric == "loss" else f"{row[metric]:.1%}"
    kept = "" if row["kept"] is None else f", {row['kept']:.0%} of the gain"
    return f"{WORDS[row['mode']]}: {metric} {shown}{kept}, KL {row['kl']:.4f}, {_size(row['bytes'])}"


def _size(count: int) -> str:
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if count >= scale:
            return f"{count / scale:.3g} {unit}"
    return f"{count / 1e3:.3g} kB"
