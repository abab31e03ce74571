"""Moves: rewriting a block so that it computes the same function with easier numbers, before anything is rounded."""

import torch

from subeight.engine.rounding import methods_of
from subeight.errors import SubeightError
from subeight.methods.base import Move
from subeight.models.block import Block
from subeight.models.folds import Fold, apply
from subeight.models.stats import Stats
from subeight.recipes.plan import Plan


def moving(plan: Plan, block: Block) -> dict[str, list[Move]]:
    """The moves of each InputGroup of a block, by the group's name."""
    found: dict[str, list[Move]] = {}
    for view in block.structure.linears():
        site = plan.site(view.info.name)
        moves = [method for method in methods_of(site) if isinstance(method, Move)] if site.weights else []
        if moves:
            found[view.info.group] = moves
    return found


def move_block(block: Block, folds: list[Fold], plan: Plan, stats: dict[str, Stats]) -> dict[str, Stats]:
    """Applies the plan's moves to the block, in data order; returns the statistics as the moved block has them."""
    wanted = moving(plan, block)
    for fold in folds:
        groups = [group for group in block.structure.groups if group.name in fold.groups and group.name in wanted]
        for move in wanted[groups[0].name] if groups else ():
            s = _diagonal(block, fold, move, plan, stats[groups[0].name])
            if not bool(torch.isfinite(s).all()) or not bool((s > 0).all()):
                raise SubeightError(f"{move.name} gave scales that are not positive for {groups[0].name}.")
            apply(block, fold, s)
            columns = s[torch.tensor(fold.channels, device=s.device)]
            for name in fold.groups:
                if name in stats:
                    stats[name] = stats[name].rescaled(columns)
    return stats


def _diagonal(block: Block, fold: Fold, move: Move, plan: Plan, stats: Stats) -> torch.Tensor:
    sites = [plan.site(view.info.name) for view in fold.readers]
    weights = [block.original(view) for view in fold.readers]
    inputs = next((site.inputs for site in sites if site.inputs is not None), None)
    channels = torch.tensor(fold.channels, device=block.device)
    return move.diagonal(weights, [site.weights for site in sites], stats, channels, fold.count, inputs)
