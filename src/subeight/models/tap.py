"""Statistics of what the linears of a block read, gathered while the block runs over the calibration batches."""

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor

from subeight.models.block import Block
from subeight.models.calls import Call
from subeight.models.precision import exact_products
from subeight.models.stats import Stats
from subeight.models.structure import InputGroup
from subeight.models.watch import StopForward, Watcher


class _Gatherer:
    """Sums over the inputs of one group, in float32, in the order in which they come."""

    def __init__(self, width: int, needs: Collection[str], device: torch.device) -> None:
        self.count = 0
        self.hessian = torch.zeros(width, width, device=device) if "hessian" in needs else None
        self.absmax = torch.zeros(width, device=device) if "absmax" in needs else None
        self.abssum = torch.zeros(width, device=device) if "absmean" in needs else None

    def add(self, value: Tensor) -> None:
        x = value.reshape(-1, value.shape[-1])
        self.count += x.shape[0]
        if not x.shape[0]:
            return
        wide = x.float()
        if self.hessian is not None:
            with exact_products(x.dtype):
                self.hessian.addmm_(wide.T, wide)
        if self.absmax is not None:
            torch.maximum(self.absmax, x.abs().amax(0).float(), out=self.absmax)
        if self.abssum is not None:
            self.abssum += wide.abs().sum(0)

    def stats(self) -> Stats:
        count = max(self.count, 1)
        return Stats(
            count=self.count,
            hessian=None if self.hessian is None else self.hessian.mul_(2 / count),
            absmax=self.absmax,
            absmean=None if self.abssum is None else self.abssum / count,
        )


def gather(
    block: Block, groups: Sequence[InputGroup], batches: Iterable[tuple[Tensor, Call]], needs: Collection[str]
) -> dict[str, Stats]:
    """Runs the block over `batches` (hidden state [batch, length, width], its call) and taps `groups`.

    The forward stops where nothing more is wanted; experts cannot tell who comes last and run to the end.
    """
    gatherers = {group.name: _Gatherer(group.width, needs, block.device) for group in groups}
    by_weight = {block.weight(view).data_ptr(): group for group in groups for view in group.linears}
    endless = any(group.is_expert for group in groups)
    waiting: set[str] = set()

    def seen(weight: Tensor, value: Tensor, _transposed: bool) -> None:
        group = by_weight.get(weight.data_ptr())
        if group is None or group.name not in waiting:
            return
        gatherers[group.name].add(value)
        waiting.discard(group.name)
        if not waiting and not endless:
            raise StopForward

    for hidden, call in batches:
        waiting.update(gatherers)
        try:
            with Watcher(seen):
                block(hidden, call)
        except StopForward:
            pass
    return {name: gatherer.stats() for name, gatherer in gatherers.items()}


def chunks(groups: Sequence[InputGroup], limit: int, needs: Collection[str]) -> list[list[InputGroup]]:
    """Splits groups that could be tapped together: their Hessians stay under `limit` bytes (at least one each)."""
    if "hessian" not in needs:
        return [list(groups)]
    found: list[list[InputGroup]] = [[]]
    used = 0
    for group in groups:
        size = 4 * group.width**2
        if found[-1] and used + size > limit:
            found.append([])
            used = 0
        found[-1].append(group)
        used += size
    return found
