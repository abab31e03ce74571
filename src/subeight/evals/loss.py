"""What a model lost on each prompt, in one metric, so that two models can be compared prompt by prompt.

A loss is a sum and a count for each prompt: nats over scored tokens (`kl`, `nll`), or a yes or no (`choices`, `check`).
Resampling is by prompt, and shares of a loss that an experiment recovered are ratios of sums over the same prompts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from subeight.errors import InputError
from subeight.evals.numbers import Places
from subeight.evals.stats import Interval, mean_interval, paired_ratio
from subeight.evals.tokens import TokenOutcomes

Floats = npt.NDArray[np.float64]
TOKEN_METRICS = ("kl", "nll")
METRICS = (*TOKEN_METRICS, "choices")


@dataclass(frozen=True)
class Loss:
    """Per prompt: what was lost in all, over how many tokens (or 1), and the prompt's category."""

    total: Floats
    count: Floats
    category: npt.NDArray[np.str_]

    @classmethod
    def of(cls, total: npt.ArrayLike, count: npt.ArrayLike, category: Sequence[str]) -> Loss:
        """The loss of prompts, as anything that numpy reads."""
        sums, counts = np.asarray(total, dtype=np.float64), np.asarray(count, dtype=np.float64)
        return cls(sums, counts, np.asarray(category, dtype=np.str_))

    @property
    def value(self) -> float:
        """The mean over all tokens (or prompts)."""
        return float(self.total.sum() / self.count.sum())

    def interval(self, seed: int = 0) -> Interval:
        """The mean with its 95 % interval, resampled by prompt; not below 0 where no prompt's loss is."""
        found = _ratio(self.total, self.count, seed)
        return found if self.total.min() < 0 else found.within(0.0)

    def only(self, mask: npt.NDArray[np.bool_]) -> Loss:
        """The loss on some of the prompts."""
        return Loss(self.total[mask], self.count[mask], self.category[mask])

    def categories(self) -> dict[str, Loss]:
        """The loss of each category, the worst first."""
        parts = {str(name): self.only(self.category == name) for name in np.unique(self.category)}
        return dict(sorted(parts.items(), key=lambda item: -item[1].value))

    def minus(self, other: Loss) -> Loss:
        """The difference prompt by prompt."""
        return Loss(self.total - other.total, self.count, self.category)


def recovered(before: Loss, after: Loss, whole: Loss | None = None, seed: int = 0) -> Interval:
    """The share of `whole` (default: `before`) by which `after` is smaller than `before`, paired by prompt."""
    base = before if whole is None else whole
    if base.total.sum() == 0:
        return Interval(0.0, 0.0, 0.0, len(base.total), "none")
    return _ratio(before.total - after.total, base.total, seed)


def token_loss(outcomes: TokenOutcomes, places: Places, metric: str = "kl") -> Loss:
    """The loss of each sample from its scored tokens: KL(baseline || candidate), or how much its NLL rose."""
    if metric not in TOKEN_METRICS:
        raise InputError(f"The metric {metric!r} is not one of tokens; choose one of {', '.join(TOKEN_METRICS)}.")
    values = outcomes.kl if metric == "kl" else outcomes.nll_candidate - outcomes.nll_reference
    samples, first, index = np.unique(places.sample, return_index=True, return_inverse=True)
    total = np.bincount(index, weights=values.cpu().numpy().astype(np.float64), minlength=len(samples))
    count = np.bincount(index, minlength=len(samples)).astype(np.float64)
    return Loss(np.asarray(total, dtype=np.float64), count, places.category[first])


def prompt_loss(wrong: Sequence[bool], category: Sequence[str]) -> Loss:
    """The loss of answers that are wrong or fail a check: the share of prompts."""
    return Loss.of(wrong, np.ones(len(wrong)), category)


def _ratio(numerator: Floats, denominator: Floats, seed: int) -> Interval:
    prompts = np.arange(len(numerator))
    if float(denominator.sum()) == float(len(denominator)) and bool((denominator == 1).all()):
        return mean_interval(numerator, prompts, seed=seed)
    return paired_ratio(numerator, denominator, prompts, seed=seed)
