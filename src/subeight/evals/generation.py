"""Do both models write the same text? Agreement of greedy generations, prompt by prompt.

Greedy decoding follows one path, so a single changed token changes all that comes after it; the place of the
first difference says more than the texts behind it do.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from subeight.errors import InputError
from subeight.evals.stats import mean_interval, share_interval


def first_difference(reference: Sequence[int], candidate: Sequence[int]) -> int | None:
    """The position of the first token that differs, or where one of the texts ended first; None if they are
    equal.
    """
    for place, (a, b) in enumerate(zip(reference, candidate, strict=False)):
        if a != b:
            return place
    return None if len(reference) == len(candidate) else min(len(reference), len(candidate))


def generation_agreement(
    reference: Sequence[Sequence[int]], candidate: Sequence[Sequence[int]], *, seed: int = 0, resamples: int = 2000
) -> dict[str, Any]:
    """`agreement` (share of prompts with equal texts, Wilson interval), the mean position of the first
    difference among the others, and `prefix_agreement`, the mean share of the longer text that comes before
    it, resampled by prompt.
    """
    if len(reference) != len(candidate) or not reference:
        raise InputError(
            f"{len(reference)} and {len(candidate)} generations were given; both models must answer the same prompts, "
            "at least one"
        )
    places = [first_difference(a, b) for a, b in zip(reference, candidate, strict=True)]
    agreement = share_interval(sum(place is None for place in places), len(places))
    differing = [place for place in places if place is not None]
    shares = [
        1.0 if place is None else place / max(1, len(text), len(other))
        for place, text, other in zip(places, reference, candidate, strict=True)
    ]
    prefix = mean_interval(shares, np.arange(len(shares)), seed=seed, resamples=resamples).within(0.0, 1.0)
    return {
        "agreement": agreement.value,
        "agreement_ci": agreement.ci,
        "prompts": len(places),
        "first_difference": float(np.mean(differing)) if differing else None,
        "prefix_agreement": prefix.value,
        "prefix_agreement_ci": prefix.ci,
    }
