"""What each cell is expected to lose, before any is measured: one backward pass for all places and all formats.

Near the baseline KL is half a quadratic form, E[(J e)^2] / 2 with the Fisher matrix of the predictions. With targets y
drawn from the baseline itself and random signs s, g = d(sum of s log p(y)) / dW gives E[<g, error>^2] = 2 KL, summed
over the tokens (Fisher with drawn targets: https://arxiv.org/abs/1412.1193; for rounding:
https://arxiv.org/abs/2102.05426). Beside it the older prior: the error of a linear's output on its real inputs,
tr(E H E^T) / tr(W H W^T).
"""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from subeight.evals.passes import places_of
from subeight.map.places import Place
from subeight.models.block import Block
from subeight.models.tap import gather
from subeight.probe.bench import Bench

Errors = Callable[[int], list[dict[str, Tensor]]]
"""For a block its linears' weight errors [out, in], one dictionary for each format."""


@dataclass(frozen=True)
class Prior:
    """Expected nats per token, and the relative output error, by (place, format) number."""

    loss: dict[tuple[int, int], float]
    output: dict[tuple[int, int], float]


def prior_of(bench: Bench, places: Sequence[Place], errors: Errors, generator: torch.Generator) -> Prior:
    """The prior of every place in a block, in every format; places outside the blocks have none.

    Memory: the states of all blocks, one block, its errors in all formats and its gradient.
    """
    squares: dict[tuple[int, int], float] = defaultdict(float)
    output: dict[tuple[int, int], float] = {}
    gradients = [_top_gradient(bench, number, generator) for number in range(len(bench.batches))]
    scored = sum(int(batch.scored.sum()) for batch in bench.batches)
    for index in reversed(range(len(bench.suffixes))):
        block = bench.suffixes[index]
        mine = [(number, place) for number, place in enumerate(places) if place.at == index]
        lost = errors(index)
        output |= _output_errors(bench, block, mine, lost)
        for number, state in enumerate(bench.states(index)):
            bench.cost.token_blocks += 4 * state.shape[0] * state.shape[1]  # forward, backward (two), and the tap
            for row in range(len(state)):
                below, by_linear = _backward(bench, block, state[row : row + 1], gradients[number][row : row + 1])
                gradients[number][row : row + 1] = below
                for at, place in mine:
                    for format, error in enumerate(lost):
                        inner = sum(float((by_linear[n] * error[n]).sum()) for n in place.names if n in by_linear)
                        squares[at, format] += inner**2 / 2
    return Prior({cell: value / scored for cell, value in squares.items()}, output)


def _top_gradient(bench: Bench, number: int, generator: torch.Generator) -> Tensor:
    """d(sum of s log p(y)) / d(output of the last block) [rows, length, width] of one batch."""
    state = bench.states(len(bench.suffixes))[number].detach().clone().requires_grad_(True)
    final = bench.suffixes.shell.finish(state)
    rows, columns = places_of(bench.batches[number])
    hidden = final[rows.to(final.device), columns.to(final.device) - 1]
    collected = torch.zeros_like(hidden)
    for start in range(0, len(hidden), 256):  # logits of few tokens at a time
        part = hidden[start : start + 256].detach().requires_grad_(True)
        logs = torch.log_softmax(bench.suffixes.head(part).float(), -1)
        drawn = torch.multinomial(logs.detach().exp().cpu(), 1, generator=generator).to(logs.device)
        signs = torch.randint(0, 2, (len(part),), generator=generator).to(logs.device) * 2.0 - 1.0
        (collected[start : start + 256],) = torch.autograd.grad((logs.gather(1, drawn)[:, 0] * signs).sum(), part)
    (gradient,) = torch.autograd.grad(hidden, state, collected)
    return gradient


def _backward(bench: Bench, block: Block, state: Tensor, above: Tensor) -> tuple[Tensor, Mapping[str, Tensor]]:
    """From the gradient of a block's output to that of its input, and of its linears' weights [out, in]."""
    views = list(block.structure.linears())
    parameters = {view.parameter: block.parameter(view.parameter) for view in views}
    entering = state.detach().clone().requires_grad_(True)
    for parameter in parameters.values():
        parameter.requires_grad_(True)
    try:
        leaving = block(entering, bench.suffixes.shell.call(tuple(state.shape[:2]), block.index))
        found = torch.autograd.grad(
            leaving, [entering, *parameters.values()], above.to(leaving.dtype), allow_unused=True
        )
    finally:
        for parameter in parameters.values():
            parameter.requires_grad_(False)
    below, *rest = found
    given = dict(zip(parameters, rest, strict=True))
    by_linear = {view.info.name: view.of(g).float() for view in views if (g := given[view.parameter]) is not None}
    return below, by_linear


def _output_errors(
    bench: Bench, block: Block, places: Sequence[tuple[int, Place]], lost: Sequence[Mapping[str, Tensor]]
) -> dict[tuple[int, int], float]:
    batches = [
        (state, bench.suffixes.shell.call(tuple(state.shape[:2]), block.index)) for state in bench.states(block.index)
    ]
    groups = block.structure.groups
    stats = gather(block, groups, batches, {"hessian"})
    hessian = {view.info.name: stats[group.name].hessian for group in groups for view in group.linears}
    weight = {view.info.name: block.weight(view).float() for view in block.structure.linears()}
    whole = {name: _energy(weight[name], hessian[name]) for name in weight}
    return {
        (at, format): sum(_energy(error[n], hessian[n]) for n in place.names)
        / max(sum(whole[n] for n in place.names), 1e-30)
        for at, place in places
        for format, error in enumerate(lost)
    }


def _energy(weight: Tensor, hessian: Tensor | None) -> float:
    return float(((weight @ hessian) * weight).sum()) if hessian is not None else 0.0
