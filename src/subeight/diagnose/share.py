"""A small share of the failing prompts, the worst first: what is run where a whole pass would cost too much.

It holds what the baseline said in front of every scored token, so that any other model's logits there give a loss on
these prompts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from subeight.diagnose.case import Case
from subeight.evals.loss import TOKEN_METRICS, Loss, token_loss
from subeight.evals.numbers import Places
from subeight.evals.passes import Computing, Pass, places_of, run_pass
from subeight.evals.tokens import TokenOutcomes, token_outcomes
from subeight.models.model import Model
from subeight.models.shell import Head
from subeight.text import Batch, Sample, batches

BATCH_TOKENS = 4096
_LEAST = 16  # scored tokens that a long prompt keeps when it is cut


@dataclass(frozen=True)
class Share:
    """Some samples, cut where they are long, and the baseline's states [scored tokens, width] for each."""

    samples: tuple[Sample, ...]
    states: tuple[Tensor, ...]
    head: Head
    metric: str
    prompts: int  # how many there are in all

    @classmethod
    def worst(cls, case: Case, tokens: int) -> "Share":
        """The prompts with the most loss per token until `tokens` are reached, two at least where there are two."""
        sequences = case.question.sequences
        samples = sequences.samples[: sequences.scored]
        states = _by_sequence(case.question.reference, sequences.batches())
        chosen: list[Sample] = []
        kept: list[Tensor] = []
        left = tokens
        for index in _order(samples, case.loss):
            if left <= 0 and len(chosen) > 1:
                break
            sample = _cut(samples[index], max(left if len(chosen) else tokens // 2, _LEAST))
            chosen.append(sample)
            kept.append(states[index][: sample.count])
            left -= len(sample.ids)
        metric = case.settings.metric if case.settings.metric in TOKEN_METRICS else "kl"
        return cls(tuple(chosen), tuple(kept), case.question.reference.head, metric, len(samples))

    @property
    def tokens(self) -> int:
        return sum(len(sample.ids) for sample in self.samples)

    def rows(self) -> tuple[list[Tensor], list[Tensor]]:
        """Token ids of each sample, and the positions in front of its scored tokens."""
        ids = [torch.tensor(sample.ids) for sample in self.samples]
        return ids, [torch.tensor(sample.scored).nonzero().flatten() - 1 for sample in self.samples]

    def logits(self, model: Model, computing: Computing) -> list[Tensor]:
        """What a model says in front of every scored token, [scored tokens, vocabulary] per sample, in float32."""
        listed = batches(self.samples, BATCH_TOKENS)
        made = run_pass(model, listed, replace(computing, dtype=torch.float32), f"Running {model.label} in float32")
        states = _by_sequence(made, listed)
        return [made.head(states[number]).cpu() for number in range(len(self.samples))]

    def loss(self, logits: Sequence[Tensor]) -> Loss:
        """The loss of a model that said these logits."""
        parts = [
            self._outcomes(sample, state, torch.nan_to_num(found))
            for sample, state, found in zip(self.samples, self.states, logits, strict=True)
        ]
        return token_loss(TokenOutcomes.joined(parts), Places.of_samples(self.samples), self.metric)

    def _outcomes(self, sample: Sample, state: Tensor, logits: Tensor) -> TokenOutcomes:
        targets = torch.tensor(sample.ids)[torch.tensor(sample.scored)]
        same: Callable[[Tensor], Tensor] = torch.Tensor.clone
        return token_outcomes(state, logits.to(state.device), self.head, same, targets)


def _by_sequence(made: Pass, listed: Sequence[Batch]) -> dict[int, Tensor]:
    """The states of a pass by sequence number."""
    found: dict[int, Tensor] = {}
    for hidden, batch in zip(made.hidden, listed, strict=True):
        rows, _ = places_of(batch)
        for row, sequence in enumerate(batch.index):
            found[sequence] = hidden[(rows == row).to(hidden.device)]
    return found


def _order(samples: Sequence[Sample], loss: Loss) -> list[int]:
    """Numbers of the samples that have a scored token, the largest loss per token of the whole prompt first."""
    scored = [number for number, sample in enumerate(samples) if sample.count]
    if len(loss.total) != len(scored):  # a loss of answers: not one entry for each of these prompts
        return scored
    lengths = np.array([len(samples[number].ids) for number in scored])
    return [scored[place] for place in np.argsort(-loss.total / lengths, kind="stable")]


def _cut(sample: Sample, most: int) -> Sample:
    """The sample's beginning, where it is longer than `most`: what comes later changes nothing before it."""
    places = [place for place, scored in enumerate(sample.scored) if scored]
    end = max(most, places[min(_LEAST, len(places)) - 1] + 1)
    return replace(sample, ids=sample.ids[:end], scored=sample.scored[:end])
