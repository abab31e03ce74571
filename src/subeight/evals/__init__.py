"""What a candidate lost against its baseline, and how sure that is: loss, divergence, agreement, choices, tasks."""

from subeight.evals.choices import Choice, choice_numbers, flip_numbers, gather_choices
from subeight.evals.generation import generation_agreement
from subeight.evals.numbers import Places, numbers, sample_rows
from subeight.evals.stats import (
    Interval,
    holm,
    mcnemar,
    mean_interval,
    paired_difference,
    paired_ratio,
    perplexity_interval,
    quantile_interval,
    share_interval,
)
from subeight.evals.tasks import run_tasks
from subeight.evals.tokens import TokenOutcomes, Workspace, token_outcomes

__all__ = [
    "Choice",
    "Interval",
    "Places",
    "TokenOutcomes",
    "Workspace",
    "choice_numbers",
    "flip_numbers",
    "gather_choices",
    "generation_agreement",
    "holm",
    "mcnemar",
    "mean_interval",
    "numbers",
    "paired_difference",
    "paired_ratio",
    "perplexity_interval",
    "quantile_interval",
    "run_tasks",
    "sample_rows",
    "share_interval",
    "token_outcomes",
]
