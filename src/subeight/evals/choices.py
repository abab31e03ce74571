"""Multiple choice: which option each model finds most likely, and how often the two disagree.

Equal accuracy hides flips, answers that went from right to wrong and from wrong to right in like numbers, so
both are counted (https://arxiv.org/abs/2407.09141); McNemar's exact test says whether the balance of the
flips is chance.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from subeight.errors import InputError
from subeight.evals.stats import mcnemar, share_interval
from subeight.evals.tokens import TokenOutcomes


@dataclass(frozen=True)
class Choice:
    """One question: per option the log-probabilities of its tokens under both models, and the right option."""

    reference: tuple[npt.NDArray[np.float64], ...]
    candidate: tuple[npt.NDArray[np.float64], ...]
    answer: int
    category: str = "choices"

    def __post_init__(self) -> None:
        lengths = [len(option) for option in self.reference]
        if len(lengths) < 2 or min(lengths) == 0 or lengths != [len(option) for option in self.candidate]:
            raise InputError(
                f"a question with options of {lengths} tokens was given; it needs two options or more, of one token or "
                "more each, scored by both models"
            )
        if not 0 <= self.answer < len(lengths):
            raise InputError(f"answer {self.answer} of {len(lengths)} options was given; count from 0")


@dataclass(frozen=True)
class Picks:
    """The option that each model picked per question, beside the right one."""

    reference: npt.NDArray[np.int64]
    candidate: npt.NDArray[np.int64]
    answer: npt.NDArray[np.int64]


def gather_choices(
    outcomes: TokenOutcomes,
    question: Sequence[int],
    option: Sequence[int],
    answers: Sequence[int],
    categories: Sequence[str] | None = None,
) -> list[Choice]:
    """Questions from outcomes per token: token i belongs to option `option[i]` of question `question[i]`.

    Questions are counted from 0; `answers` and `categories` have one entry per question.
    """
    if not len(outcomes) == len(question) == len(option):
        raise InputError(
            f"{len(outcomes)} outcomes, {len(question)} question numbers and {len(option)} option numbers were given; "
            "give one of each per token"
        )
    reference = -outcomes.nll_reference.cpu().numpy()
    candidate = -outcomes.nll_candidate.cpu().numpy()
    questions, options = np.asarray(question), np.asarray(option)
    result = []
    for number, answer in enumerate(answers):
        mine = questions == number
        count = int(options[mine].max(initial=-1)) + 1
        spans = [np.flatnonzero(mine & (options == k)) for k in range(count)]
        result.append(
            Choice(
                tuple(reference[span] for span in spans),
                tuple(candidate[span] for span in spans),
                answer,
                "choices" if categories is None else categories[number],
            )
        )
    return result


def pick(questions: Sequence[Choice], *, normalised: bool = False) -> Picks:
    """The likeliest option by total log-probability, or by its mean per token; the first of equals."""

    def best(options: tuple[npt.NDArray[np.float64], ...]) -> int:
        return int(np.argmax([o.mean() if normalised else o.sum() for o in options]))

    return Picks(
        np.array([best(q.reference) for q in questions], dtype=np.int64),
        np.array([best(q.candidate) for q in questions], dtype=np.int64),
        np.array([q.answer for q in questions], dtype=np.int64),
    )


def choice_numbers(questions: Sequence[Choice]) -> dict[str, Any]:
    """Accuracy of both models, flips and McNemar's p, all questions and per category.

    `accuracy` sums log-probabilities, `accuracy_norm` divides by the option's tokens; flips and p belong to
    the former.
    """
    if not questions:
        raise InputError("no questions were given; multiple choice needs prompts with choices and an answer")
    result = _measures(questions)
    names = sorted({q.category for q in questions})
    result["categories"] = {name: _measures([q for q in questions if q.category == name]) for name in names}
    return result


def _measures(questions: Sequence[Choice]) -> dict[str, Any]:
    by_sum, by_mean = pick(questions), pick(questions, normalised=True)
    return {
        **flip_numbers(by_sum.reference == by_sum.answer, by_sum.candidate == by_sum.answer),
        "changed": float((by_sum.reference != by_sum.candidate).mean()),
        "accuracy_norm": float((by_mean.candidate == by_mean.answer).mean()),
        "accuracy_norm_baseline": float((by_mean.reference == by_mean.answer).mean()),
    }


def flip_numbers(reference_right: npt.ArrayLike, candidate_right: npt.ArrayLike) -> dict[str, Any]:
    """From who was right on which question: accuracies with Wilson intervals, share of flips, McNemar's p."""
    before, after = np.asarray(reference_right, dtype=bool), np.asarray(candidate_right, dtype=bool)
    if before.shape != after.shape or before.size == 0:
        raise InputError(
            f"{before.size} and {after.size} answers were given; give those of both models to the same questions"
        )
    count = int(before.size)
    lost, won = int((before & ~after).sum()), int((~before & after).sum())
    accuracy = share_interval(int(after.sum()), count)
    baseline = share_interval(int(before.sum()), count)
    flips = share_interval(lost + won, count)
    return {
        "accuracy": accuracy.value,
        "accuracy_ci": accuracy.ci,
        "accuracy_baseline": baseline.value,
        "accuracy_baseline_ci": baseline.ci,
        "flips": flips.value,
        "flips_ci": flips.ci,
        "right_to_wrong": lost,
        "wrong_to_right": won,
        "mcnemar_p": mcnemar(lost, won),
        "n": count,
    }
