"""Calibration topped up: the fewest further sequences that bring starved experts to a minimum of tokens.

Which experts a sequence feeds is measured, not guessed, so the choice is a covering problem; it is solved greedily
(Wolsey 1982, https://doi.org/10.1007/BF02579435: within a logarithm of the fewest; no polynomial method does better).
"""

from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor

WORTH = 0.01  # of the minimum: what a sequence must bring experts that stay short anyhow


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
    what it lacks; among equals the first. Experts that the whole pool cannot bring there come last, and for them only
    sequences are taken that bring a hundredth of `least`. At most `most` sequences are taken.
    """
    missing = (least - have).clamp_min(0)
    reachable = have + pool.sum(0) >= least
    limit = len(pool) if most is None else most
    chosen: list[int] = []
    for wanted, worth in ((reachable, 1.0), (~reachable, max(1.0, WORTH * least))):
        while len(chosen) < limit:
            gain = torch.minimum(pool, missing * wanted).sum(1)
            gain[chosen] = 0
            best = int((gain == gain.max()).nonzero()[0])
            if gain[best] < worth:
                break
            chosen.append(best)
            missing = (missing - pool[best]).clamp_min(0)
    short = {int(at): least - int(missing[at]) for at in missing.nonzero().flatten()}
    return TopUp(chosen, short)
