"""A candidate against its baseline on one evaluation set: outcomes per token, and the numbers of a record."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from subeight.errors import InputError
from subeight.evals.checks import PREFIX, Check, require_passing
from subeight.evals.choices import Choice, choice_numbers, gather_choices, pick
from subeight.evals.generation import generation_agreement
from subeight.evals.loss import Loss, prompt_loss, token_loss
from subeight.evals.numbers import Places, numbers, sample_rows
from subeight.evals.passes import (
    Computing,
    Pass,
    Sequences,
    cache_key,
    context_length,
    places_of,
    reference_pass,
    run_pass,
)
from subeight.evals.spread import PassTask, spread_pass
from subeight.evals.tokens import TokenOutcomes, Workspace, token_outcomes
from subeight.models.model import Model
from subeight.models.streamed import Streamed, writer_of
from subeight.models.whole import Whole
from subeight.records.files import atomic_write
from subeight.records.progress import progress
from subeight.sweep import Crew
from subeight.text import EvaluationSet, Sample, with_answer

ANSWER_TOKENS = 64


@dataclass(frozen=True)
class Question:
    """What is asked of every candidate: the sequences, the baseline's pass over them, and its generations."""

    baseline: Model
    evaluation: EvaluationSet
    sequences: Sequences
    reference: Pass
    computing: Computing
    generations: list[list[int]] | None
    prompts: list[list[int]]
    check: Check | None = None  # the user's own, where the metric is one


@dataclass(frozen=True)
class Scored:
    """A candidate's numbers, and its outcomes token by token with their places."""

    numbers: dict[str, Any]
    rows: list[dict[str, Any]]
    outcomes: TokenOutcomes | None
    places: Places | None


def ask(
    baseline: Model,
    evaluation: EvaluationSet,
    computing: Computing,
    cache: Path,
    *,
    generate: int = 0,
    crew: Crew[PassTask] | None = None,
) -> Question:
    """Runs the baseline once; its states and its greedy answers are kept in `cache`.

    `generate` is the number of prompts whose greedy answers will be compared. A `crew` that was hired for a PassJob
    runs the text through the blocks; without one this process does.
    """
    sequences = _answered(baseline, Sequences.of(evaluation), computing, cache)
    reference = reference_pass(baseline, sequences, evaluation.hash, computing, cache, _runner(crew))
    prompts = _prompts(sequences.samples[: sequences.scored], generate)
    generations = _kept_answers(baseline, prompts, computing, cache) if prompts else None
    return Question(baseline, evaluation, sequences, reference, computing, generations, prompts)


def with_check(question: Question, metric: str) -> Question:
    """The question with the command of the metric `check:COMMAND`, which the baseline's own answers have met.

    Raises:
        InputError: the command cannot be run, or the baseline's own answers all fail it.
    """
    baseline, computing = question.baseline, question.computing
    samples = question.sequences.samples[: question.sequences.scored]
    stop = frozenset(stop_tokens(baseline))
    check = Check(metric.removeprefix(PREFIX), samples, baseline.tokenizer(), stop)
    passed = require_passing(check, check.answers(_writer(baseline, computing)))
    return replace(question, check=replace(check, passed=passed))


def measure(question: Question, model: Model, metric: str = "kl") -> Loss:
    """What a model lost on each prompt, streamed once; by `check`, from its greedy answers."""
    computing = question.computing
    if question.check is not None:
        return question.check.loss(_writer(model, computing))
    made = run_pass(model, question.sequences.batches(), computing, f"Measuring {model.label}")
    return loss_of(question, made, metric)


def _runner(crew: Crew[PassTask] | None) -> Callable[..., Pass]:
    return run_pass if crew is None else partial(spread_pass, crew)


def score(question: Question, candidate: Model, *, seed: int = 0, crew: Crew[PassTask] | None = None) -> Scored:
    """The candidate's pass, by a `crew` where one is given, compared token by token with the baseline's.

    Raises:
        InputError: the two models have different vocabularies.
    """
    require_same_vocabulary(question.baseline, candidate)
    sequences, computing = question.sequences, question.computing
    made = _runner(crew)(candidate, sequences.batches(), computing, f"Evaluating {candidate.label}")
    outcomes = _outcomes(question, made)
    scored, options = _split(outcomes, sequences)
    choices = _choices(options, sequences)
    generation = _generation(question, candidate)
    if scored is None:
        return Scored({"choices": choices, "generation": generation, "warnings": []}, [], None, None)
    places = Places.of_samples(sequences.samples[: sequences.scored])
    found = numbers(scored, places, seed=seed, choices=choices, generation=generation)
    return Scored(found, sample_rows(scored, places), scored, places)


def loss_of(question: Question, made: Pass, metric: str = "kl") -> Loss:
    """What a pass of a model over the question's sequences lost on each prompt: `kl`, `nll` or `choices`.

    Raises:
        InputError: the question has nothing that the metric can score.
    """
    sequences = question.sequences
    scored, options = _split(_outcomes(question, made), sequences)
    if metric == "choices":
        if not options:
            raise InputError(
                "The metric is choices, but no prompt has `choices` and an `answer`; give some, or use kl."
            )
        asked = _asked(options, sequences)
        picked = pick(asked)
        wrong = (picked.reference == picked.answer) & (picked.candidate != picked.answer)
        return prompt_loss(wrong.tolist(), [choice.category for choice in asked])
    if scored is None:
        raise InputError(f"The metric is {metric}, but no prompt has a token to score; use choices, or give text.")
    return token_loss(scored, Places.of_samples(sequences.samples[: sequences.scored]), metric)


def _outcomes(question: Question, made: Pass) -> dict[int, TokenOutcomes]:
    """Outcomes by sequence number, tokens in their order."""
    space = Workspace(question.reference.head.vocabulary)
    found: dict[int, TokenOutcomes] = {}
    for number, batch in enumerate(question.sequences.batches()):
        rows, columns = places_of(batch)
        if not len(rows):
            continue
        part = token_outcomes(
            question.reference.hidden[number],
            made.hidden[number],
            question.reference.head,
            made.head,
            batch.ids[rows, columns],
            workspace=space,
        )
        for row, sequence in enumerate(batch.index):
            mine = (rows == row).to(part.kl.device)
            found[sequence] = TokenOutcomes(
                part.nll_reference[mine], part.nll_candidate[mine], part.kl[mine], part.agree[mine]
            )
    return found


def _split(
    outcomes: dict[int, TokenOutcomes], sequences: Sequences
) -> tuple[TokenOutcomes | None, list[TokenOutcomes]]:
    ordered = [outcomes[number] for number in range(len(sequences.samples)) if number in outcomes]
    scored = [outcomes[number] for number in range(sequences.scored) if number in outcomes]
    return (TokenOutcomes.joined(scored) if scored else None), ordered[len(scored) :]


def _choices(options: list[TokenOutcomes], sequences: Sequences) -> dict[str, Any] | None:
    return choice_numbers(_asked(options, sequences)) if options else None


def _asked(options: list[TokenOutcomes], sequences: Sequences) -> list[Choice]:
    question = [q for q, part in zip(sequences.question, options, strict=True) for _ in range(len(part))]
    option = [o for o, part in zip(sequences.option, options, strict=True) for _ in range(len(part))]
    return gather_choices(TokenOutcomes.joined(options), question, option, sequences.answers, sequences.categories)


def _generation(question: Question, candidate: Model) -> dict[str, Any] | None:
    if question.generations is None:
        return None
    written = _answers(candidate, question.prompts, question.computing, question.baseline)
    return generation_agreement(question.generations, written)


def _answered(baseline: Model, sequences: Sequences, computing: Computing, cache: Path) -> Sequences:
    """The sequences with the baseline's own greedy answer after every prompt that ends with the user."""
    waiting = [list(sample.ids) for sample in sequences.samples if sample.needs_answer]
    if not waiting:
        return sequences
    answers = iter(_kept_answers(baseline, waiting, computing, cache))
    end = sorted(stop_tokens(baseline))[:1]  # what the baseline said where it said nothing
    samples = [
        with_answer(sample, next(answers) or end) if sample.needs_answer else sample for sample in sequences.samples
    ]
    return replace(sequences, samples=tuple(samples))


def _prompts(samples: Sequence[Sample], count: int) -> list[list[int]]:
    """Beginnings of the first samples of each category in turn: a third of each, at least 8 tokens."""
    return [list(sample.ids[: max(8, len(sample.ids) // 3)]) for sample in samples[:count]]


def _kept_answers(baseline: Model, prompts: list[list[int]], computing: Computing, cache: Path) -> list[list[int]]:
    """The baseline's greedy answers, read from `cache` where the same prompts were answered before."""
    path = cache / f"answers-{cache_key(baseline, computing, [prompts, ANSWER_TOKENS])}.json"
    if path.is_file():
        return json.loads(path.read_text(encoding="utf-8"))
    answers = _answers(baseline, prompts, computing, baseline)
    atomic_write(path, json.dumps(answers))
    return answers


def _answers(model: Model, prompts: list[list[int]], computing: Computing, baseline: Model) -> list[list[int]]:
    """Greedy answers of `model`, which end where the baseline's would, or at the end of what it takes."""
    writer = _writer(model, computing)
    stop, longest = stop_tokens(baseline), context_length(baseline)
    by_room: dict[int, list[int]] = {}  # a streamed model reads its blocks once for all that are answered together
    for number, prompt in enumerate(prompts):
        by_room.setdefault(max(0, min(ANSWER_TOKENS, longest - len(prompt))), []).append(number)
    found: dict[int, list[int]] = {}
    with progress(len(prompts), f"Answering with {model.label}", "prompts", quiet=computing.quiet) as advance:
        for tokens, numbers in by_room.items():
            for part in [numbers] if isinstance(writer, Streamed) else [[number] for number in numbers]:
                found |= zip(part, writer.greedy([prompts[number] for number in part], tokens, stop), strict=True)
                advance(len(part))
    return [found[number] for number in range(len(prompts))]


def _writer(model: Model, computing: Computing) -> Whole | Streamed:
    return writer_of(model, computing.dtype, computing.device, computing.room)


def stop_tokens(model: Model) -> set[int]:
    """The tokens that end an answer."""
    found: set[int] = set()
    for source in (model.generation_config(), model.config.get_text_config(decoder=True)):
        value = getattr(source, "eos_token_id", None)
        found |= set(value) if isinstance(value, list) else set() if value is None else {value}
    return found


def require_same_vocabulary(baseline: Model, candidate: Model) -> None:
    """Raises InputError where the two models do not speak of the same tokens."""
    sizes = [m.config.get_text_config(decoder=True).vocab_size for m in (baseline, candidate)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"{candidate.label} has a vocabulary of {sizes[1]} and {baseline.label} one of {sizes[0]}; give the "
            "full-precision model that the candidate was made from."
        )
