"""The same prompts as another tokenizer cuts them, and the loss of a candidate that is asked in its own tokens.

A model with another tokenizer, chat template or beginning of texts is asked another question. Its loss as its users
meet it is taken where both sides predict the same token of the same prompt: the baseline after the baseline's ids, the
candidate after its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from difflib import SequenceMatcher
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.evals.loss import Loss, prompt_loss, token_loss
from subeight.evals.numbers import Places
from subeight.evals.passes import BATCH_TOKENS, Pass, Sequences, places_of, run_pass
from subeight.evals.scoring import Question, measure
from subeight.evals.tokens import TokenOutcomes, Workspace, token_outcomes
from subeight.models.model import Model
from subeight.text import Batch, EvaluationSet, Sample, batches, evaluate_set, with_answer
from subeight.text.tokens import Tokenizer, encode, prefix_of

_WHOLE = 1 << 30  # a window that holds any text


class Dressed:
    """A tokenizer with another chat template, or another beginning of texts."""

    def __init__(
        self, tokenizer: Tokenizer, *, template: Tokenizer | None = None, begin: Tokenizer | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._prefix = prefix_of(begin or tokenizer)
        self._marks = {} if begin is None else {"bos_token": getattr(begin, "bos_token", None)}
        source = template or tokenizer
        self.chat_template: Any = source.get_chat_template() if source.chat_template else None
        self.eos_token_id = tokenizer.eos_token_id
        self.is_fast = tokenizer.is_fast
        self.all_special_ids = tokenizer.all_special_ids

    def __call__(self, text: str, **options: Any) -> Any:
        if options.get("add_special_tokens", True):
            return {"input_ids": [*self._prefix, *encode(text, self._tokenizer)]}
        return self._tokenizer(text, **options)

    def decode(self, token_ids: Any, **options: Any) -> Any:
        return self._tokenizer.decode(token_ids, **options)

    def get_chat_template(self) -> Any:
        return self.chat_template

    def apply_chat_template(self, conversation: Any, **options: Any) -> Any:
        return self._tokenizer.apply_chat_template(conversation, **{**self._marks, **options})


def own_tokenizer(candidate: Model) -> Tokenizer | None:
    """The candidate's tokenizer; None where it brings none of its own (a GGUF's is transformers' reconstruction)."""
    if candidate.source.gguf is not None:
        return None
    try:
        return candidate.tokenizer()
    except ModelError:
        return None


def cut_alike(question: Question, sources: Sequence[str], tokenizer: Tokenizer) -> EvaluationSet:
    """The question's samples as another tokenizer cuts them: the same documents, the same parts of long texts.

    A sample that the baseline's own tokenizer does not give again in this way stays as it is.
    """
    ours, theirs = _Cutter.of(sources, question.baseline.tokenizer()), _Cutter.of(sources, tokenizer)
    found = []
    for sample in question.evaluation.samples:
        full = ours.whole.get(sample.document)
        again, own = ours.like(sample, full, ours.prefix), theirs.like(sample, full, ours.prefix)
        same = again is not None and (again.ids, again.choices) == (sample.ids, sample.choices)
        found.append(own if own is not None and same else sample)
    return EvaluationSet(tuple(found), question.evaluation.hash)


@dataclass
class _Cutter:
    """Whole documents as one tokenizer cuts them, and how far the windows of each have come."""

    whole: dict[str, Sample]
    prefix: list[int]
    reached: dict[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, sources: Sequence[str], tokenizer: Tokenizer) -> "_Cutter":
        made = evaluate_set(sources, tokenizer, _WHOLE)
        return cls({sample.document: sample for sample in made.samples}, prefix_of(tokenizer))

    def like(self, sample: Sample, full: Sample | None, begin: list[int]) -> Sample | None:
        """The part of its document that `sample` is; `full` and `begin` are whole document and prefix of that one."""
        own = self.whole.get(sample.document)
        if own is None or full is None:
            return None
        if _is_text(own, len(self.prefix)):
            return self._window(own, sample.ids[len(begin) :])
        if sample.ids == full.ids:
            return own
        if full.ids[: len(sample.ids)] == sample.ids:  # the end was cut off
            kept = _reach(sample.ids, own.ids)
            return replace(own, ids=own.ids[:kept], scored=own.scored[:kept])
        head = len(self.prefix) if own.ids[: len(self.prefix)] == tuple(self.prefix) else 0
        before = len(begin) if sample.ids[: len(begin)] == tuple(begin) else 0
        tail = max(len(own.ids) - (len(sample.ids) - before), head)  # the beginning was cut off
        scored = own.scored[:head] + own.scored[tail:]
        return replace(own, ids=own.ids[:head] + own.ids[tail:], scored=(False, *scored[1:]))

    def _window(self, own: Sample, body: tuple[int, ...]) -> Sample:
        start = self.reached.get(own.document, len(self.prefix))
        stop = start + _reach(body, own.ids[start:])
        self.reached[own.document] = stop
        ids = (*self.prefix, *own.ids[start:stop])
        return replace(own, ids=ids, scored=tuple(at >= max(1, len(self.prefix)) for at in range(len(ids))))


def _is_text(sample: Sample, prefix: int) -> bool:
    """Whether all of it is scored: a text, which is cut in windows."""
    return sample.choices is None and not sample.needs_answer and all(sample.scored[max(1, prefix) :])


def _reach(ours: Sequence[int], theirs: Sequence[int]) -> int:
    """How many of `theirs` say what `ours` does."""
    if tuple(theirs[: len(ours)]) == tuple(ours):
        return len(ours)
    near = theirs[: 2 * len(ours) + 16]
    blocks = [block for block in SequenceMatcher(None, ours, near, autojunk=False).get_matching_blocks() if block.size]
    if not blocks:
        return min(len(ours), len(near))
    # What follows the last common token is as long as it is in ours.
    last = blocks[-1]
    return min(len(near), last.b + len(ours) - last.a)


def differing(question: Question, own: EvaluationSet) -> list[int]:
    """The samples whose ids are not the question's."""
    pairs = zip(question.evaluation.samples, own.samples, strict=True)
    return [at for at, (a, b) in enumerate(pairs) if (a.ids, a.choices) != (b.ids, b.choices)]


def as_used(
    question: Question,
    sources: Sequence[str],
    candidate: Model,
    metric: str = "kl",
    tokenizer: Tokenizer | None = None,
) -> Loss:
    """The candidate's loss as its users meet it: asked with its own tokenizer (or the one given).

    Where the ids are the baseline's, it is the ordinary loss. Otherwise the mean over the tokens that are the same in
    both cuttings of a prompt stands for all of them; a prompt without any has the mean of the others.

    Raises:
        ModelError: the two tokenizers have not one token of the prompts in common.
    """
    tokenizer = tokenizer or own_tokenizer(candidate)
    own = None if tokenizer is None else cut_alike(question, sources, tokenizer)
    if own is None or question.check is not None or not differing(question, own):
        return measure(question, candidate, metric)
    theirs = _answered(question, own)
    what = f"Measuring {candidate.label} on its own tokens"
    if metric == "choices":
        made = run_pass(candidate, theirs.batches(), question.computing, what)
        wrong = _right(question.reference, question.sequences) & ~_right(made, theirs)
        return prompt_loss(wrong.tolist(), list(question.sequences.categories))
    return _on_common(question, theirs, candidate, metric, what)


def _answered(question: Question, own: EvaluationSet) -> Sequences:
    """The candidate's sequences, with the baseline's answers where the question has them."""
    before, after, theirs = Sequences.of(question.evaluation), question.sequences, Sequences.of(own)
    samples = list(theirs.samples)
    for at in range(min(theirs.scored, after.scored)):
        if samples[at].needs_answer:
            answer = after.samples[at].ids[len(before.samples[at].ids) :]
            samples[at] = with_answer(samples[at], answer)
    return replace(theirs, samples=tuple(samples))


def common(ours: Sample, theirs: Sample) -> list[tuple[int, int]]:
    """Places of scored tokens that both cuttings of a prompt share: (in ours, in theirs)."""
    a, b = ours.ids, theirs.ids
    shorter = min(len(a), len(b))
    tail = next((n for n in range(shorter) if a[-1 - n] != b[-1 - n]), shorter)
    a_left, b_left = a[: len(a) - tail], b[: len(b) - tail]
    pairs = [(len(a_left) + n, len(b_left) + n) for n in range(tail)]
    for block in SequenceMatcher(None, a_left, b_left, autojunk=False).get_matching_blocks():
        pairs += [(block.a + n, block.b + n) for n in range(block.size)]
    return sorted((i, j) for i, j in pairs if ours.scored[i] and j > 0)


def _on_common(question: Question, theirs: Sequences, candidate: Model, metric: str, what: str) -> Loss:
    ours = question.sequences
    pairs = [common(ours.samples[at], theirs.samples[at]) for at in range(ours.scored)]
    asked = [_scoring(theirs.samples[at], [j for _, j in listed]) for at, listed in enumerate(pairs)]
    numbers = [at for at, sample in enumerate(asked) if sample.count]
    listed = batches([asked[at] for at in numbers], BATCH_TOKENS)
    made = run_pass(candidate, listed, question.computing, what)
    states = _by_sample(made, listed)
    reference = _by_sample(question.reference, ours.batches())
    space = Workspace(question.reference.head.vocabulary)
    parts = {}
    for number, at in enumerate(numbers):
        places = np.flatnonzero(ours.samples[at].scored)
        rows = torch.from_numpy(np.searchsorted(places, [i for i, _ in pairs[at]])).to(reference[at].device)
        targets = torch.tensor([ours.samples[at].ids[i] for i, _ in pairs[at]])
        heads = question.reference.head, made.head
        parts[at] = token_outcomes(reference[at][rows], states[number], *heads, targets, workspace=space)
    return _scaled(question, parts, metric)


def _scoring(sample: Sample, places: Sequence[int]) -> Sample:
    wanted = set(places)
    return replace(sample, scored=tuple(at in wanted for at in range(len(sample.ids))))


def _by_sample(made: Pass, listed: Sequence[Batch]) -> dict[int, Tensor]:
    """States in front of the scored tokens [n, width], by the sample's number."""
    found: dict[int, Tensor] = {}
    for state, batch in zip(made.hidden, listed, strict=True):
        rows, _ = places_of(batch)
        here = rows.to(state.device)
        found |= {number: state[torch.eq(here, row)] for row, number in enumerate(batch.index)}
    return found


def _scaled(question: Question, parts: dict[int, TokenOutcomes], metric: str) -> Loss:
    """Per prompt the mean over its common tokens, times as many tokens as the question scores there."""
    samples = question.sequences.samples[: question.sequences.scored]
    if not parts:
        raise ModelError(
            "The candidate's tokenizer gives not one token of the prompts that the baseline's gives too; give the "
            "full-precision model that the candidate was made from."
        )
    numbers = sorted(parts)
    places = Places.of(np.repeat(numbers, [len(parts[at]) for at in numbers]))
    shared = token_loss(TokenOutcomes.joined([parts[at] for at in numbers]), places, metric)
    means = dict(zip(numbers, shared.total / shared.count, strict=True))
    scored = [at for at, sample in enumerate(samples) if sample.count]
    count = np.array([samples[at].count for at in scored], dtype=np.float64)
    mean = np.array([means.get(at, shared.value) for at in scored])
    return Loss(mean * count, count, np.array([samples[at].category for at in scored], dtype=np.str_))


def _right(made: Pass, sequences: Sequences) -> npt.NDArray[np.bool_]:
    """Whether a model finds the right option of each question the likeliest."""
    states = _by_sample(made, sequences.batches())
    totals: dict[int, list[float]] = {}
    for number, asked in enumerate(sequences.question):
        sample = sequences.samples[sequences.scored + number]
        state = states[sequences.scored + number]
        targets = torch.tensor([token for token, scored in zip(sample.ids, sample.scored, strict=True) if scored])
        outcome = token_outcomes(state, state, made.head, made.head, targets)
        totals.setdefault(asked, []).append(float(outcome.nll_candidate.sum()))
    picked = [int(np.argmin(totals[asked])) for asked in range(len(sequences.answers))]
    return np.array(picked) == np.array(sequences.answers)
