"""Rounding a block as a whole: its linears' codes are chosen together, by the block's output."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from subeight.engine.job import Outcome
from subeight.engine.rounding import generator_of, outcome_of, tuner_of
from subeight.formats import QTensor
from subeight.methods.tune import BlockTask, Tune, Weights
from subeight.models.block import Block
from subeight.models.calls import Call
from subeight.models.structure import LinearView
from subeight.recipes.plan import Plan

TINY = 1e-12
States = tuple[Sequence[tuple[Tensor, Call]], Sequence[Tensor]]  # what the block reads, and the baseline's outputs


def tuned(block: Block, plan: Plan) -> dict[str, tuple[Tune, list[LinearView]]]:
    """The linears of the block that are rounded together, by method and options."""
    found: dict[str, tuple[Tune, list[LinearView]]] = {}
    for view in block.structure.linears():
        site = plan.site(view.info.name)
        method = tuner_of(site) if site.weights is not None else None
        if method is not None:
            found.setdefault(repr(method), (method, []))[1].append(view)
    return found


def tune_block(
    block: Block,
    method: Tune,
    views: Sequence[LinearView],
    weights: Weights,
    start: Mapping[str, QTensor],
    states: States,
    seed: int,
) -> tuple[dict[str, QTensor], list[Outcome]]:
    """Codes for these linears, and what each lost; the block computes with the last ones tried."""
    batches, targets = states
    weights = {view.info.name: weights[view.info.name] for view in views}
    alone = {name: start[name].codes_alone() for name in weights}
    apart = {name: start[name].dequantize() - codes.dequantize() for name, codes in alone.items()}
    whole = _Differentiable(block, views, {name: value for name, value in apart.items() if bool(value.any())})

    def loss(given: Weights, number: int) -> float:
        return float(_distance(whole.output(given, batches[number]), targets[number]))

    def gradients(given: Weights, number: int) -> tuple[float, dict[str, Tensor]]:
        return whole.gradients(given, batches[number], targets[number])

    task = BlockTask({n: weights[n] - apart[n] for n in weights}, alone, len(batches), gradients, loss)
    notes: dict[str, Any] = {}
    tuned_codes = method.tune(task, generator_of(seed, block.prefix), notes)
    codes = {n: replace(code, sparse=start[n].sparse, thin=start[n].thin) for n, code in tuned_codes.items()}
    return codes, [outcome_of(name, weights[name], code, None, notes) for name, code in codes.items()]


class _Differentiable:
    """A block as a function of the weights of some linears, to which what was set apart is added.

    The inputs that its plan rounds are rounded.
    """

    def __init__(self, block: Block, views: Sequence[LinearView], apart: Weights) -> None:
        self._block, self._views, self._apart = block, views, apart
        self._names = list(dict.fromkeys(view.parameter for view in views))

    @torch.no_grad()
    def output(self, weights: Weights, batch: tuple[Tensor, Call]) -> Tensor:
        self._place(weights)
        return self._block(*batch)

    @torch.no_grad()
    def _place(self, weights: Weights) -> None:
        for view in self._views:
            name = view.info.name
            self._block.set_weight(view, weights[name] + self._apart[name] if name in self._apart else weights[name])

    def gradients(
        self, weights: Weights, batch: tuple[Tensor, Call], target: Tensor
    ) -> tuple[float, dict[str, Tensor]]:
        self._place(weights)
        parameters = [self._block.parameter(name).requires_grad_() for name in self._names]
        try:
            loss = _distance(self._block(*batch), target)
            slopes = torch.autograd.grad(loss, parameters, allow_unused=True)
        finally:
            for parameter in parameters:
                parameter.requires_grad_(False)
        found = dict(zip(self._names, slopes, strict=True))
        return float(loss.detach()), {
            view.info.name: _part(view, found[view.parameter], weights[view.info.name]) for view in self._views
        }


def _part(view: LinearView, slope: Tensor | None, weight: Tensor) -> Tensor:
    """The gradient of one linear; nothing where no token reached it."""
    return torch.zeros_like(weight) if slope is None else view.of(slope)


def _distance(output: Tensor, target: Tensor) -> Tensor:
    """Squared distance as a share of the token's own square, averaged over tokens.

    Every block reads its input through a norm, which sees shares; else a few massive tokens are all that counts.
    """
    wanted = target.to(output.device).float()
    squares = wanted.square().mean(-1).clamp_min(TINY)
    return ((output.float() - wanted).square().mean(-1) / squares).mean()
