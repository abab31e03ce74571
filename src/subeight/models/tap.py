"""Statistics of what the linears of a block read, gathered while the block runs over the calibration batches."""

from collections.abc import Collection, Iterable, Sequence
from contextlib import nullcontext
from itertools import repeat

import torch
from torch import Tensor

from subeight.models.block import Block
from subeight.models.calls import Call
from subeight.models.precision import exact_products
from subeight.models.routing import shown_to_all
from subeight.models.stats import Stats, token_counts
from subeight.models.structure import InputGroup
from subeight.models.watch import StopForward, Watcher


class Gatherer:
    """Sums over the inputs of one group, in float32, in the order in which they come."""

    def __init__(self, width: int, needs: Collection[str], device: torch.device) -> None:
        self.count = 0
        self.weight = 0.0
        self.hessian = torch.zeros(width, width, device=device) if "hessian" in needs else None
        self.absmax = torch.zeros(width, device=device) if "absmax" in needs else None
        self.abssum = torch.zeros(width, device=device) if "absmean" in needs else None
        self.drift = torch.zeros(width, width, device=device) if "drift" in needs else None

    def add(self, value: Tensor, exact: Tensor | None = None) -> None:
        """One input of the group, and what the baseline reads in its place."""
        x = value.reshape(-1, value.shape[-1])
        self.count += x.shape[0]
        if not x.shape[0]:
            return
        if self.absmax is not None:
            torch.maximum(self.absmax, x.abs().amax(0).float(), out=self.absmax)
        if self.abssum is not None:
            self.abssum += x.float().abs().sum(0)
        if self.hessian is not None or self.drift is not None:
            self._add_products(x, exact)

    def _add_products(self, x: Tensor, exact: Tensor | None) -> None:
        """What sums squares of tokens, each counted with its length."""
        wide, counts = x.float(), token_counts(x)
        self.weight += float(counts.sum(dtype=torch.float64))
        if self.hessian is not None:
            with exact_products(x.dtype):
                self.hessian.addmm_(wide.T, counts * wide)
        if self.drift is not None and exact is not None:
            with exact_products(torch.float32):
                self.drift.addmm_((exact.reshape(x.shape).float() - wide).T, counts * wide)

    def stats(self) -> Stats:
        weight = self.weight or 1
        return Stats(
            count=self.count,
            hessian=None if self.hessian is None else self.hessian.mul_(2 / weight),
            absmax=self.absmax,
            absmean=None if self.abssum is None else self.abssum / max(self.count, 1),
            drift=None if self.drift is None else self.drift.mul_(2 / weight),
            weight=self.weight,
        )


Batches = Iterable[tuple[Tensor, Call]]  # hidden states [batch, length, width], and the block's other arguments


def gather(
    block: Block,
    groups: Sequence[InputGroup],
    batches: Batches,
    needs: Collection[str],
    exact: tuple[Block, Batches] | None = None,
    *,
    forced: bool = False,
) -> dict[str, Stats]:
    """Runs the block over `batches` and taps `groups`.

    `exact`, the baseline's block and its own states of the same text, is what `drift` compares with; without it there
    is none. An expert has none either: its tokens are others there. The forward stops where nothing more is wanted;
    experts cannot tell who comes last and run to the end. With `forced` every expert is shown all tokens.
    """
    beside = exact is not None and "drift" in needs
    wanted = {group.name: set(needs) - (set() if beside and not group.is_expert else {"drift"}) for group in groups}
    gatherers = {group.name: Gatherer(group.width, wanted[group.name], block.device) for group in groups}
    shared = [group for group in groups if not group.is_expert]
    others = exact[1] if exact is not None and beside else repeat(None)
    for (hidden, call), other in zip(batches, others, strict=beside):
        baseline = _read(exact[0], shared, *other) if exact is not None and other is not None else {}
        for name, value in _read(block, groups, hidden, call, forced).items():
            gatherers[name].add(value, baseline.get(name))
    return {name: gatherer.stats() for name, gatherer in gatherers.items()}


def _read(
    block: Block, groups: Sequence[InputGroup], hidden: Tensor, call: Call, forced: bool = False
) -> dict[str, Tensor]:
    """What each group reads of one batch, by name."""
    by_weight = {block.weight(view).data_ptr(): group for group in groups for view in group.linears}
    endless = any(group.is_expert for group in groups)
    found: dict[str, Tensor] = {}

    def seen(weight: Tensor, value: Tensor, _transposed: bool) -> None:
        group = by_weight.get(weight.data_ptr())
        if group is None or group.name in found:
            return
        found[group.name] = value
        if len(found) == len(groups) and not endless:
            raise StopForward

    try:
        with shown_to_all(block) if forced and endless else nullcontext(), Watcher(seen):
            block(hidden, call)
    except StopForward:
        pass
    return found


def chunks(groups: Sequence[InputGroup], limit: int, needs: Collection[str]) -> list[list[InputGroup]]:
    """Splits groups that could be tapped together: their Hessians stay under `limit` bytes (at least one each)."""
    if "hessian" not in needs:
        return [list(groups)]
    found: list[list[InputGroup]] = [[]]
    used = 0
    for group in groups:
        size = 4 * group.width**2 * (1 + ("drift" in needs))
        if found[-1] and used + size > limit:
            found.append([])
            used = 0
        found[-1].append(group)
        used += size
    return found
