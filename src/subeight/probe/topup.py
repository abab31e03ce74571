"""Calibration topped up: the fewest further sequences that bring starved experts to a minimum of tokens.

Which experts a sequence feeds is measured, not guessed, so the choice is a covering problem; it is solved greedily
(Wolsey 1982, https://doi.org/10.1007/BF02579435: within a logarithm of the fewest; no polynomial method does better).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor


@dataclass(frozen=True)
class TopUp:
    """Which sequences of a pool to add, in the order of choice, and which experts stay short with how many tokens."""

    chosen: list[int]
    short: dict[int, int]


def top_up(
    have: Int[Tensor, " experts"], pool: Int[Tensor, "sequences experts"], least: int, most: int | None = None
) -> TopUp:
    """Chooses sequences of the pool until every expert has `least` tokens, or none is left that helps.

    `have` are the tokens that the calibration gives each expert, `pool` those that each further sequence would give.
    Each time the sequence is taken that makes up for most of what is missing, where an expert's tokens count up to
    what it lacks, as a share of `least`; among equals the first. At most `most` sequences are taken.
    """
    missing = (least - have).clamp_min(0)
    free = torch.ones(len(pool), dtype=torch.bool)
    chosen: list[int] = []
    while bool(missing.any()) and len(chosen) < (len(pool) if most is None else most):
        gain = torch.minimum(pool, missing).sum(1).masked_fill(~free, 0)
        best = int((gain == gain.max()).nonzero()[0]) if len(gain) else -1
        if best < 0 or not gain[best]:
            break
        chosen.append(best)
        free[best] = False
        missing = (missing - pool[best]).clamp_min(0)
    short = {int(at): least - int(missing[at]) for at in missing.nonzero().flatten()}
    return TopUp(chosen, short)
