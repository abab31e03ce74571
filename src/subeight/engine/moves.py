"""Moves: rewriting a block so that it computes the same function with easier numbers, before anything is rounded."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from subeight.engine.rounding import methods_of, needs
from subeight.errors import SubeightError
from subeight.methods.base import Move
from subeight.models.block import Block
from subeight.models.folds import Fold, apply
from subeight.models.stats import Stats
from subeight.models.structure import InputGroup
from subeight.models.tap import chunks
from subeight.recipes.plan import Plan

Tap = Callable[[Sequence[InputGroup], frozenset[str]], dict[str, Stats]]


def moving(plan: Plan, block: Block) -> dict[str, list[Move]]:
    """The moves of each InputGroup of a block, by the group's name."""
    found: dict[str, list[Move]] = {}
    for view in block.structure.linears():
        site = plan.site(view.info.name)
        moves = [method for method in methods_of(site) if isinstance(method, Move)] if site.weights else []
        if moves:
            found[view.info.group] = moves
    return found


def move_block(
    block: Block, folds: Sequence[Fold], plan: Plan, tap: Tap, limit: int, exact: Block | None = None
) -> dict[str, Tensor]:
    """Applies the plan's moves to the block; returns, by group, what its input channels are divided by now.

    Every scale is found on the block as it was, in chunks of groups whose Hessians stay under `limit` bytes, and
    then all are applied: the chunks do not change the result. `exact`, the baseline's own, goes along.
    """
    wanted = moving(plan, block)
    folds = [fold for fold in folds if not fold.groups.isdisjoint(wanted)]
    groups = [g for g in block.structure.groups if g.name in wanted and any(g.name in fold.groups for fold in folds)]
    read = needs(plan, groups, moves=True, rounds=False)
    gathered: dict[int, Stats] = {}
    scales: dict[int, Tensor] = {}
    for part in chunks(groups, limit, read):
        stats = tap(part, read)
        for at, fold in enumerate(folds):
            mine = [group.name for group in groups if group.name in fold.groups]
            for name in (name for name in mine if name in stats):
                gathered[at] = joined(gathered[at], stats[name]) if at in gathered else stats[name]
            if mine[-1] in stats:
                scales[at] = _diagonal(block, fold, wanted[mine[0]], plan, gathered.pop(at))
    columns: dict[str, Tensor] = {}
    for at, fold in enumerate(folds):
        for moved in (block, exact):
            if moved is not None:
                apply(moved, fold, scales[at])
        divided = scales[at][torch.tensor(fold.channels, device=scales[at].device)]
        columns |= dict.fromkeys(fold.groups, divided)
    return columns


def joined(one: Stats, other: Stats) -> Stats:
    """The statistics of the tokens of both: what a norm wrote, where each expert has read a part of it."""
    count, weight = one.count + other.count, one.weight + other.weight
    of_tokens, of_weight = one.count / max(count, 1), one.weight / (weight or 1)

    def mean(a: Tensor | None, b: Tensor | None, share: float) -> Tensor | None:
        return None if a is None or b is None else (a * share).add_(b, alpha=1 - share)

    absmax = None
    if one.absmax is not None and other.absmax is not None:
        absmax = torch.maximum(one.absmax, other.absmax)
    hessian, drift = mean(one.hessian, other.hessian, of_weight), mean(one.drift, other.drift, of_weight)
    return Stats(count, hessian, absmax, mean(one.absmean, other.absmean, of_tokens), drift, weight)


def _diagonal(block: Block, fold: Fold, moves: Sequence[Move], plan: Plan, stats: Stats) -> Tensor:
    """What all moves together divide the producer's channels by; each one sees what those before it have done."""
    sites = [plan.site(view.info.name) for view in fold.readers]
    formats = [site.weights for site in sites]
    inputs = next((site.inputs for site in sites if site.inputs is not None), None)
    weights = [block.original(view) for view in fold.readers]
    channels = torch.tensor(fold.channels, device=block.device)
    whole = torch.ones(fold.count, device=block.device)
    for move in moves:
        s = move.diagonal(weights, formats, stats, channels, fold.count, inputs)
        if not bool(torch.isfinite(s).all()) or not bool((s > 0).all()):
            raise SubeightError(f"{move.name} gave scales that are not positive for {fold.readers[0].info.group}.")
        whole = whole * s
        if move is not moves[-1]:
            weights = [weight * s[channels] for weight in weights]
            stats = stats.rescaled(s[channels])
    return whole
