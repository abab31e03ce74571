"""What a trained model, and each way of merging it, does on the held-out part: loss, right answers, right choices, and
how far it is from the trained model with its adapter kept apart.

An answer is right where every scored token is the likeliest one after those before it, which is when greedy decoding
writes exactly that answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from subeight.evals.choices import gather_choices, pick
from subeight.evals.passes import Computing, Pass, Sequences, places_of, run_pass
from subeight.evals.stats import Interval, mean_interval, paired_ratio, share_interval
from subeight.evals.tokens import TokenOutcomes, Workspace, token_outcomes
from subeight.models.model import Model
from subeight.models.shell import Head, Shell
from subeight.text import Batch
from subeight.train.qlora_data import Lessons, held_out_sequences

_ROWS = 64


@dataclass(frozen=True)
class Question:
    """The held-out sequences in their batches, and whether their answers can be right as a whole."""

    sequences: Sequences
    listed: list[Batch]
    has_answers: bool

    @classmethod
    def of(cls, lessons: Lessons) -> Question:
        sequences = held_out_sequences(lessons)
        return cls(sequences, sequences.batches(), lessons.has_answers)


@dataclass(frozen=True)
class Seen:
    """What one model does on the held-out part, token by token and answer by answer, in the order of the samples."""

    loss: npt.NDArray[np.float64]  # nats, by scored token
    kl: npt.NDArray[np.float64]
    documents: npt.NDArray[Any]  # of each token
    right: npt.NDArray[np.float64]  # by sample: the whole answer
    samples: npt.NDArray[Any]  # the document of each sample
    picked: npt.NDArray[np.float64]  # by question: the right choice

    def numbers(self, *, has_answers: bool, seed: int) -> dict[str, Any]:
        """Means with intervals, as a record has them."""
        found: dict[str, Any] = {}
        loss, kl = (mean_interval(values, self.documents, seed=seed).within(0.0) for values in (self.loss, self.kl))
        found |= {"loss": loss.value, "loss_ci": loss.ci, "kl": kl.value, "kl_ci": kl.ci}
        for name, values in (("exact", self.right if has_answers else np.zeros(0)), ("accuracy", self.picked)):
            share = share_interval(int(sum(values)), len(values)) if len(values) else None
            found |= {name: share and share.value, f"{name}_ci": share and share.ci, f"{name}_n": len(values)}
        return found


def module_pass(module: nn.Module, model: Model, question: Question, computing: Computing) -> Pass:
    """The states of a module that is in memory, as `run_pass` has those of a model on disk; the head is `model`'s."""
    trunk = module.get_submodule(model.skeleton.trunk_name)
    module.eval()
    found = []
    with torch.no_grad():
        for batch in question.listed:
            states = trunk(input_ids=batch.ids.to(computing.device), use_cache=False).last_hidden_state
            rows, columns = places_of(batch)
            found.append(states[rows.to(states.device), columns.to(states.device) - 1])
    return Pass(found, _head(model, computing))


def _head(model: Model, computing: Computing) -> Head:
    return Shell(model, computing.dtype, computing.device).head()


def streamed_pass(model: Model, question: Question, computing: Computing, what: str) -> Pass:
    """The states of a model on disk, block by block."""
    return run_pass(model, question.listed, computing, what)


def seen(reference: Pass, made: Pass, question: Question) -> Seen:
    """What the model behind `made` does, and its distance from the one behind `reference`."""
    outcomes, right = _by_sequence(reference, made, question)
    sequences = question.sequences
    plain, scored = sequences.samples, sequences.scored
    joined = TokenOutcomes.joined([outcomes[number] for number in range(scored)])
    documents = [plain[number].document for number in range(scored) for _ in range(len(outcomes[number]))]
    whole = [float(right[number].all()) for number in range(scored)]
    return Seen(
        loss=joined.nll_candidate.cpu().numpy(),
        kl=joined.kl.cpu().numpy(),
        documents=np.array(documents),
        right=np.array(whole),
        samples=np.array([plain[number].document for number in range(scored)]),
        picked=_picked(outcomes, sequences),
    )


def _by_sequence(reference: Pass, made: Pass, question: Question) -> tuple[dict[int, TokenOutcomes], dict[int, Tensor]]:
    space = Workspace(reference.head.vocabulary)
    outcomes: dict[int, TokenOutcomes] = {}
    right: dict[int, Tensor] = {}
    for number, batch in enumerate(question.listed):
        rows, columns = places_of(batch)
        targets = batch.ids[rows, columns]
        states = reference.hidden[number], made.hidden[number]
        part = token_outcomes(*states, reference.head, made.head, targets, workspace=space)
        first = _likeliest(made.head, states[1]).cpu() == targets
        for row, sequence in enumerate(batch.index):
            mine = rows == row
            outcomes[sequence] = TokenOutcomes(
                *(values.cpu()[mine] for values in (part.nll_reference, part.nll_candidate, part.kl, part.agree))
            )
            right[sequence] = first[mine]
    return outcomes, right


def _likeliest(head: Head, states: Tensor) -> Tensor:
    with torch.no_grad():
        return torch.cat([head(states[at : at + _ROWS]).argmax(-1) for at in range(0, len(states), _ROWS)])


def _picked(outcomes: dict[int, TokenOutcomes], sequences: Sequences) -> npt.NDArray[np.float64]:
    if not sequences.answers:
        return np.zeros(0)
    options = [outcomes[number] for number in range(sequences.scored, len(sequences.samples))]
    question = [q for q, part in zip(sequences.question, options, strict=True) for _ in range(len(part))]
    option = [o for o, part in zip(sequences.option, options, strict=True) for _ in range(len(part))]
    choices = gather_choices(TokenOutcomes.joined(options), question, option, sequences.answers, sequences.categories)
    found = pick(choices)
    return (found.candidate == found.answer).astype(np.float64)


def kept_gain(start: Seen, apart: Seen, other: Seen, metric: str, seed: int) -> Interval | None:
    """The share of what was learned that `other` still has, by `loss`, `exact` or `accuracy`, paired by document.

    1 is all of it, 0 none; None where nothing was gained.
    """
    before, after, now = (_values(each, metric) for each in (start, apart, other))
    gained, left = after - before, now - before
    if metric == "loss":
        gained, left = -gained, -left
    if gained.sum() <= 0:
        return None
    clusters: Sequence[Any] | npt.NDArray[Any]
    clusters = {"loss": apart.documents, "exact": apart.samples}.get(metric, np.arange(len(gained)))
    return paired_ratio(left, gained, clusters, seed=seed)


def gain(start: Seen, apart: Seen, metric: str, seed: int) -> Interval:
    """What was learned: the mean by which the trained model is better than the untrained base."""
    difference = _values(apart, metric) - _values(start, metric)
    clusters = {"loss": apart.documents, "exact": apart.samples}.get(metric, np.arange(len(difference)))
    return mean_interval(-difference if metric == "loss" else difference, clusters, seed=seed)


def _values(seen: Seen, metric: str) -> npt.NDArray[np.float64]:
    return {"loss": seen.loss, "exact": seen.right, "accuracy": seen.picked}[metric]
