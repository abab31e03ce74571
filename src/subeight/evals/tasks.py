"""Any task of lm-eval on both models, question by question
(https://github.com/EleutherAI/lm-evaluation-harness).

An optional extra, `pip install 'subeight[tasks]'`. lm-eval runs the task on the baseline and on the
candidate; from the answers that it logs, flips are paired per question, which two accuracies alone cannot
tell.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from subeight.errors import InputError
from subeight.evals.choices import flip_numbers
from subeight.evals.stats import holm, paired_difference

Subject = str | Path | tuple[PreTrainedModel, PreTrainedTokenizerBase]
"""A checkpoint directory (or hub id), or a loaded model with its tokenizer."""


def run_tasks(
    candidate: Subject,
    baseline: Subject,
    tasks: Sequence[str],
    *,
    limit: int | None = None,
    task_folder: Path | None = None,
    device: str = "cpu",
    batch_size: int = 8,
    seed: int = 0,
) -> dict[str, Any]:
    """Runs each task on both models, one after the other, and pairs their answers.

    Returns `{task: {metric: numbers}}`. A metric of right and wrong (acc, exact_match) gives accuracies,
    flips and McNemar's p; another one a paired difference. `mcnemar_p_holm` allows for the number of tasks.
    `limit` takes the first questions of each task; `task_folder` holds further task files of your own.
    """
    harness, wrapper, manager_class = _harness()
    manager = manager_class(include_path=str(task_folder)) if task_folder else manager_class()
    unknown = [task for task in tasks if not manager.match_tasks([task])]
    if unknown or not tasks:
        raise InputError(
            f"task {unknown[0]!r} was given, which lm-eval does not know; list them with `lm-eval ls tasks`"
            if unknown
            else "no task was given; name one or more of lm-eval's, as `lm-eval ls tasks` lists them"
        )

    def answers(subject: Subject) -> Mapping[str, Sequence[Mapping[str, Any]]]:
        return harness.simple_evaluate(
            model=_wrapped(wrapper, subject, device, batch_size),
            tasks=list(tasks),
            limit=limit,
            task_manager=manager,
            log_samples=True,
            bootstrap_iters=0,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )["samples"]

    return pair_answers(answers(baseline), answers(candidate), seed=seed)


def pair_answers(
    baseline: Mapping[str, Sequence[Mapping[str, Any]]],
    candidate: Mapping[str, Sequence[Mapping[str, Any]]],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """From lm-eval's logged samples of both models: `{task: {metric: numbers}}`, paired by question."""
    result: dict[str, dict[str, Any]] = {}
    for task in baseline:
        first, second = _by_question(baseline[task]), _by_question(candidate.get(task, []))
        if first.keys() != second.keys():
            raise InputError(
                f"task {task} has {len(first)} answers of the baseline and {len(second)} of the candidate, not to the "
                "same questions; run both with the same limit, tasks and chat template"
            )
        result[task] = _metrics(first, second, seed)
    tested = [numbers for metrics in result.values() for numbers in metrics.values() if "mcnemar_p" in numbers]
    for numbers, adjusted in zip(tested, holm([n["mcnemar_p"] for n in tested]), strict=True):
        numbers["mcnemar_p_holm"] = adjusted
    return result


Question = tuple[str, int, str, str]


def _by_question(samples: Sequence[Mapping[str, Any]]) -> dict[Question, Mapping[str, Any]]:
    """By filter, number and text of the question, so that a changed prompt is never taken for the same one."""
    return {(str(s["filter"]), int(s["doc_id"]), str(s["doc_hash"]), str(s["prompt_hash"])): s for s in samples}


def _metrics(
    baseline: Mapping[Question, Mapping[str, Any]], candidate: Mapping[Question, Mapping[str, Any]], seed: int
) -> dict[str, Any]:
    """Every metric that is one number per question; those of a whole corpus cannot be paired."""
    result: dict[str, Any] = {}
    filters = sorted({question[0] for question in baseline})
    for chosen in filters:
        questions = sorted(question for question in baseline if question[0] == chosen)
        for metric in baseline[questions[0]]["metrics"]:
            before: list[Any] = [baseline[q].get(metric) for q in questions]
            after: list[Any] = [candidate[q].get(metric) for q in questions]
            if not all(isinstance(value, int | float) for value in (*before, *after)):
                continue
            name = metric if len(filters) == 1 else f"{metric},{chosen}"
            if all(value in (0, 1) for value in (*before, *after)):
                result[name] = flip_numbers(before, after)
            else:
                result[name] = _difference(before, after, seed)
    return result


def _difference(before: Sequence[Any], after: Sequence[Any], seed: int) -> dict[str, Any]:
    difference = paired_difference(after, before, range(len(before)), seed=seed)
    return {
        "value": sum(after) / len(after),
        "value_baseline": sum(before) / len(before),
        "difference": difference.value,
        "difference_ci": difference.ci,
        "n": len(before),
    }


def _harness() -> tuple[Any, Any, Any]:
    """lm-eval, its wrapper of transformers models and its list of tasks; imported here because it is an
    extra.
    """
    try:
        import lm_eval
        from lm_eval.models.huggingface import HFLM
        from lm_eval.tasks import TaskManager
    except ImportError as error:
        raise InputError(
            f"tasks need lm-eval, which cannot be imported ({error}); run: pip install 'subeight[tasks]'"
        ) from error
    return lm_eval, HFLM, TaskManager


def _wrapped(wrapper: Any, subject: Subject, device: str, batch_size: int) -> Any:
    if isinstance(subject, tuple):
        model, tokenizer = subject
        return wrapper(pretrained=model, tokenizer=tokenizer, batch_size=batch_size)
    return wrapper(pretrained=str(subject), device=device, batch_size=batch_size, trust_remote_code=False)
