"""What a table of KV cells says, in sentences: what averages hide, and whether weights and cache add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

RETRIEVES = 0.8  # of the prompts, below which the full cache is no measure of retrieval
NEAR = 0.02  # of the perplexity: a change this small would be called none
FULL, NONE = "full", "none"
Cell = Mapping[str, Any]


def findings(cells: Sequence[Cell]) -> list[str]:
    """Sentences, the plainest first."""
    known = {(cell["weights"], cell["policy"], cell["context"]): cell for cell in cells}
    found: list[str] = []
    for cell in cells:
        full = known.get((cell["weights"], NONE, cell["context"]))
        if full is not None and cell["policy"] != NONE:
            found += _hidden(cell, full) + _late(cell)
    return [*_unmeasured(cells), *found, *_together(known)]


def _unmeasured(cells: Sequence[Cell]) -> list[str]:
    contexts = [
        cell["context"]
        for cell in cells
        if (cell["weights"], cell["policy"]) == (FULL, NONE)
        and cell["retrieval"] is not None
        and cell["retrieval"]["share"] < RETRIEVES
    ]
    return [
        f"At {context} tokens the full model with full keys and values finds less than {RETRIEVES:.0%} of the hidden "
        "numbers itself, so retrieval says nothing about policies there."
        for context in contexts
    ]


def _hidden(cell: Cell, full: Cell) -> list[str]:
    """Retrieval that falls while perplexity does not."""
    if cell["retrieval"] is None or full["retrieval"]["share"] < RETRIEVES:
        return []
    before, after = full["retrieval"]["share_ci"], cell["retrieval"]["share_ci"]
    if after[1] >= before[0] or abs(cell["ppl"] / full["ppl"] - 1) > NEAR:
        return []
    return [
        f"{cell['policy']} at {cell['context']} tokens ({cell['weights']} weights): perplexity hardly moves "
        f"({full['ppl']:.2f} to {cell['ppl']:.2f}), but of hidden numbers {cell['retrieval']['share']:.0%} are "
        f"found in place of {full['retrieval']['share']:.0%}."
    ]


def _late(cell: Cell) -> list[str]:
    """Loss that grows with the place in the context."""
    parts = [part["mean"] for part in cell["kl_by_place"] if part["mean"] is not None]
    if len(parts) < 2 or cell["kl"] < 1e-3 or parts[-1] < 2 * max(cell["kl"], parts[0]):
        return []
    return [
        f"{cell['policy']} at {cell['context']} tokens ({cell['weights']} weights): the last part of the context loses "
        f"{parts[-1]:.3f} against {cell['kl']:.3f} on average: longer contexts will lose more."
    ]


def _together(known: Mapping[tuple[str, str, int], Cell]) -> list[str]:
    """Whether low weights and a low cache lose together what they lose apart."""
    found = []
    for (weights, policy, context), cell in known.items():
        apart = [known.get((weights, NONE, context)), known.get((FULL, policy, context))]
        if weights == FULL or policy == NONE or None in apart:
            continue
        total = sum(one["kl"] for one in apart if one is not None)
        low, high = cell["kl_ci"] or (None, None)
        if low is None or low <= total <= high:
            continue
        word = "more" if cell["kl"] > total else "less"
        found.append(
            f"{weights} with {policy} at {context} tokens loses {cell['kl']:.4f}, {word} than both apart ({total:.4f})."
        )
    return found
