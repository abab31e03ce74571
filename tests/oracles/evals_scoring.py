"""What an evaluation measures, by plain transformers in float64: one sequence at a time, whole logits, no cache."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel


@dataclass(frozen=True)
class Measured:
    """Per scored token, in the order of the sequences."""

    nll_baseline: Tensor
    nll: Tensor
    kl: Tensor
    agree: Tensor

    @property
    def ppl(self) -> float:
        return float(self.nll.mean().exp())

    @property
    def ppl_baseline(self) -> float:
        return float(self.nll_baseline.mean().exp())


def load(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()


@torch.no_grad()
def log_probabilities(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """[length, vocabulary]: row t speaks of the token after t."""
    return torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)


def measure(baseline: PreTrainedModel, candidate: PreTrainedModel, rows: Iterable[tuple[list[int], range]]) -> Measured:
    """Each row: the ids of a sequence, and the places of its tokens that count."""
    parts: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
    for ids, places in rows:
        first, second = log_probabilities(baseline, ids), log_probabilities(candidate, ids)
        for place in places:
            p, q = first[place - 1], second[place - 1]
            parts.append((-p[ids[place]], -q[ids[place]], (p.exp() * (p - q)).sum(), p.argmax() == q.argmax()))
    return Measured(*(torch.stack(column) for column in zip(*parts, strict=True)))


def picked(model: PreTrainedModel, context: list[int], choices: list[list[int]]) -> int:
    """The choice of the largest total log-probability after the context."""
    totals = []
    for choice in choices:
        rows = log_probabilities(model, context + choice)
        totals.append(sum(float(rows[len(context) + at - 1, token]) for at, token in enumerate(choice)))
    return totals.index(max(totals))


@torch.no_grad()
def greedy(model: PreTrainedModel, prompt: list[int], tokens: int) -> list[int]:
    """transformers' own greedy generation, without the token that ends it."""
    written = model.generate(torch.tensor([prompt]), do_sample=False, max_new_tokens=tokens, pad_token_id=0)
    answer = written[0, len(prompt) :].tolist()
    end = model.config.eos_token_id
    return answer[: answer.index(end)] if end in answer else answer
