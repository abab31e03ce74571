"""Rounding a block as a whole: its linears' codes are chosen together, by the block's output."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.func import functional_call

from subeight.engine.job import Outcome
from subeight.engine.rounding import generator_of, outcome_of, tuner_of
from subeight.formats import QTensor
from subeight.methods.tune import BlockTask, Tune
from subeight.models.block import Block
from subeight.models.calls import Call
from subeight.models.structure import LinearView
from subeight.recipes.plan import Plan

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
    block: Block, method: Tune, views: Sequence[LinearView], plan: Plan, states: States, seed: int
) -> tuple[dict[str, QTensor], list[Outcome]]:
    """Codes for these linears, and what each lost; the block itself stays as it is."""
    batches, targets = states
    weights = {view.info.name: block.original(view) for view in views}
    formats = {view.info.name: plan.site(view.info.name).weights for view in views}
    task = BlockTask(
        weights=weights,
        formats={name: format for name, format in formats.items() if format is not None},
        targets=targets,
        output=lambda given, number: _output(block, views, given, batches[number]),
    )
    notes: dict[str, Any] = {}
    codes = method.tune(task, generator_of(seed, block.prefix), notes)
    return codes, [outcome_of(name, weights[name], code, None, notes) for name, code in codes.items()]


def _output(
    block: Block, views: Sequence[LinearView], weights: Mapping[str, Tensor], batch: tuple[Tensor, Call]
) -> Tensor:
    """The block's output with these weights in place, differentiable in them."""
    by_parameter: dict[str, list[LinearView]] = defaultdict(list)
    for view in views:
        by_parameter[view.parameter].append(view)
    placed = {}
    for name, mine in by_parameter.items():
        value = block.parameter(name).detach().clone()
        for view in mine:
            view.of(value).copy_(weights[view.info.name])
        placed[name.removeprefix(f"{block.prefix}.")] = value
    hidden, (arguments, options) = batch
    given = (hidden.to(block.device, block.dtype), *arguments)
    return functional_call(block.module, placed, given, options)
