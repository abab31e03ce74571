"""Distil: scales, norms and biases of the whole model, tuned until its logits are the baseline's.

Hinton et al. 2015, https://arxiv.org/abs/1503.02531; end to end on a quantized model with fixed codes as in the second
phase of EfficientQAT (Chen et al. 2024, https://arxiv.org/abs/2407.11062). Adam on KL(baseline || quantized) over the
calibration text, in units of each parameter's own size, the rate falling to zero along a cosine. Some sequences are
held out: what is returned is what lost least on them, the start included, so it is never worse there than before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from subeight.methods.base import option
from subeight.methods.polishing import ModelTask, Polish

BETAS = (0.9, 0.95)
TINY = 1e-12
SMALLEST = 0.1  # of a parameter's root mean square: what a number near zero is measured by


@dataclass(frozen=True)
class Distil(Polish):
    """Distil the continuous parameters toward the baseline's logits."""

    name: ClassVar[str] = "distil"
    epochs: int = option(4, "how often the calibration text is gone through", low=1, high=1000)
    rate: float = option(0.003, "size of the first steps, relative to the parameters", low=0.0, high=0.1)
    batch: int = option(4, "sequences of one step", low=1, high=4096)
    held: float = option(0.0625, "share of the sequences by which the best step is chosen", low=0.0, high=0.5)

    @override
    def passes(self, sequences: int, batch: int) -> float:
        return 1 + 3 * self.epochs + self.held * (self.epochs + 1)

    @override
    def polish(self, task: ModelTask, generator: torch.Generator, notes: dict[str, Any]) -> dict[str, Tensor]:
        """The parameters of the best step; notes: `steps`, `loss_before` and `loss_after` on held-out sequences."""
        order = torch.randperm(task.sequences, generator=generator).tolist()
        count = max(1, math.ceil(task.sequences * self.held))
        held, train = order[:count], order[count:] or order
        state = _State.of(task)
        if not state.step:
            state.offer(task.loss(state.parameters(), held))
        batches = _batches(train, self.batch, self.epochs, generator)
        task.advance(state.step / len(batches))
        for step in range(state.step, len(batches)):
            _, gradients = task.gradients(state.parameters(), batches[step])
            state.move(gradients, self._rate(step, len(batches)))
            if (step + 1) % max(1, len(train) // self.batch) == 0 or step + 1 == len(batches):
                state.offer(task.loss(state.parameters(), held))
                task.keep(state.to_dict())
            task.advance(1 / len(batches))
        notes |= {"steps": len(batches), "loss_before": state.first, "loss_after": state.least}
        return state.best_parameters()

    def _rate(self, step: int, count: int) -> float:
        return self.rate * 0.5 * (1 + math.cos(math.pi * step / count))


def _batches(rows: list[int], size: int, epochs: int, generator: torch.Generator) -> list[list[int]]:
    """The rows of every step: each epoch in an order of its own, what is left over dropped but for the smallest."""
    found = []
    for _ in range(epochs):
        mixed = [rows[at] for at in torch.randperm(len(rows), generator=generator).tolist()]
        whole = max(size, len(rows) // size * size)
        found += [mixed[start : start + size] for start in range(0, min(whole, len(rows)), size)]
    return found


class _State:
    """Every parameter as its start times a growing factor, Adam's two moments, and the best factors so far."""

    def __init__(self, start: Mapping[str, Tensor]) -> None:
        self.start = start
        self.units = {name: _unit(value) for name, value in start.items()}
        self.moved, self.mean, self.square, self.best = (
            {name: torch.zeros_like(value) for name, value in start.items()} for _ in range(4)
        )
        self.step = 0
        self.first = self.least = math.inf

    @classmethod
    def of(cls, task: ModelTask) -> _State:
        """Where the task stands: at its start, or where a killed polish was."""
        state, kept = cls(task.parameters), task.kept()
        if kept is None:
            return state
        for kind in ("moved", "mean", "square", "best"):
            setattr(state, kind, {name: kept[f"{kind}/{name}"] for name in task.parameters})
        state.step = int(kept["step"])
        state.first, state.least = kept["losses"].tolist()
        return state

    def to_dict(self) -> dict[str, Tensor]:
        found = {"step": torch.tensor(self.step), "losses": torch.tensor([self.first, self.least], dtype=torch.float64)}
        for kind in ("moved", "mean", "square", "best"):
            found |= {f"{kind}/{name}": value for name, value in getattr(self, kind).items()}
        return found

    def parameters(self) -> dict[str, Tensor]:
        return self._with(self.moved)

    def best_parameters(self) -> dict[str, Tensor]:
        return self._with(self.best)

    def _with(self, moved: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return {name: start + self.units[name] * moved[name] for name, start in self.start.items()}

    def offer(self, loss: float) -> None:
        """Takes today's parameters as the best where they lose less."""
        if math.isinf(self.first):
            self.first = loss
        if loss < self.least:
            self.least = loss
            self.best = {name: value.clone() for name, value in self.moved.items()}

    def move(self, gradients: Mapping[str, Tensor], rate: float) -> None:
        """One step of Adam in units of the parameters."""
        self.step += 1
        first, second = BETAS
        for name, gradient in gradients.items():
            slope = gradient * self.units[name]
            self.mean[name].mul_(first).add_(slope, alpha=1 - first)
            self.square[name].mul_(second).addcmul_(slope, slope, value=1 - second)
            mean = self.mean[name] / (1 - first**self.step)
            spread = (self.square[name] / (1 - second**self.step)).sqrt_().add_(TINY)
            self.moved[name].addcdiv_(mean, spread, value=-rate)


def _unit(value: Tensor) -> Tensor:
    """What a step is relative to: a number's own size, or a part of its parameter's where it is smaller."""
    size = value.square().mean().sqrt()
    return value.abs().clamp_min(float(SMALLEST * size)).clamp_min(TINY)
