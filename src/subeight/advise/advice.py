"""Which scheme to take, what it gains, why, and when it would not be worth it: words from measured numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from subeight.advise.schemes import SCHEMES

GOALS = ("latency", "throughput", "memory")
BASE = "bf16"
LOSSY = tuple(scheme.name for scheme in SCHEMES if scheme.weights is not None and scheme.weights.code_bits < 4)
WORTH = 1.05  # times bf16's speed, below which a gain is called none
Row = Mapping[str, Any]


def advice(rows: Sequence[Row], goal: str, batch: Sequence[int], context: int) -> list[str]:
    """Sentences, the recommendation first. `rows` are one for each scheme, as the verb's record has them."""
    known = {row["name"]: row for row in rows}
    best = min(rows, key=lambda row: cost(row, goal, batch, context))
    return [
        _taken(best, known[BASE], goal, batch, context),
        *_wider(rows, best, known[BASE], goal, batch, context),
        *_useless(rows, known[BASE], batch),
        *_bounds(known[BASE], batch),
    ]


def cost(row: Row, goal: str, batch: Sequence[int], context: int) -> float:
    """What is to be small: seconds of a token alone, seconds per token of the largest batch with its prompt, or bytes.

    An answer is counted as long as a quarter of its prompt.
    """
    measured, most = row["measured"], max(batch)
    if goal == "memory":
        return float(row["weight_bytes"] + row["cache_bytes"][str(most)])
    if goal == "latency":
        return float(measured["decode_seconds"][str(min(batch))])
    answer = max(context // 4, 1)
    return float(measured["prefill_seconds"] / answer + measured["decode_seconds"][str(most)] / most)


def _taken(best: Row, base: Row, goal: str, batch: Sequence[int], context: int) -> str:
    gain = cost(base, goal, batch, context) / cost(best, goal, batch, context)
    what = {
        "latency": f"a token at batch {min(batch)}",
        "throughput": f"a token of {max(batch)} sequences, prompts of {context} tokens included,",
        "memory": f"weights and cache of {max(batch)} sequences of {context} tokens",
    }[goal]
    if best["name"] == BASE or gain < WORTH:
        return f"Stay with bf16: no scheme makes {what} more than {WORTH - 1:.0%} cheaper on this machine."
    runs = best["measured"]["kernels"]["few rows" if goal == "latency" else "prompt"]
    unit = "fewer bytes" if goal == "memory" else "faster"
    return f"Take {best['name']}: {what} is {gain:.2f} x {unit} than bf16 (by {runs})."


def _wider(rows: Sequence[Row], best: Row, base: Row, goal: str, batch: Sequence[int], context: int) -> list[str]:
    """What speed alone does not say of few bits, and the best of those that lose little."""
    if best["name"] not in LOSSY:
        return []
    careful = min((row for row in rows if row["name"] not in LOSSY), key=lambda row: cost(row, goal, batch, context))
    gain = cost(base, goal, batch, context) / cost(careful, goal, batch, context)
    return [
        f"That is speed and bytes alone: below 4 bits a model loses much (`compare` measures it); of the others "
        f"{careful['name']} gains most, {gain:.2f} x."
    ]


def _useless(rows: Sequence[Row], base: Row, batch: Sequence[int]) -> list[str]:
    """Schemes that gain nothing in a step, by step."""
    steps = {f"decode at batch {size}": ("decode_seconds", str(size)) for size in batch}
    found = [
        ("prefill", [row["name"] for row in rows if _gain(row, base, "prefill_seconds") < WORTH and row is not base])
    ]
    for words, (name, size) in steps.items():
        found.append((words, [row["name"] for row in rows if _gain(row, base, name, size) < WORTH and row is not base]))
    return [f"Not worth it for {words}: {'; '.join(names)}." for words, names in found if names]


def _gain(row: Row, base: Row, name: str, size: str | None = None) -> float:
    mine, theirs = row["measured"][name], base["measured"][name]
    return float(theirs / mine) if size is None else float(theirs[size] / mine[size])


def _bounds(base: Row, batch: Sequence[int]) -> list[str]:
    """What bounds bf16 by the roofline."""
    words = {"memory": "reading weights and cache", "products": "multiplying", "calls": "calling kernels"}
    parts = [f"prefill by {words[base['foretold']['prefill']['bound']]}"]
    steps = base["foretold"]["decode"]
    parts += [f"decode at batch {size} by {words[steps[str(size)]['bound']]}" for size in batch]
    return [f"By the roofline bf16 is bound in {', '.join(parts)}: fewer bits help reading, integers help multiplying."]
