"""Where to look first: how strongly the difference of each linear's weight shows on the prompts themselves.

For a linear that writes to the residual stream: the energy of what its difference adds, relative to the stream's,
token by token. For one further inside: its relative error times the share of the stream that its branch writes. It only
orders the search; nothing is found guilty by it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from subeight.models.block import Block
from subeight.models.structure import InputGroup
from subeight.models.watch import Watcher
from subeight.probe.pairs import Pair
from subeight.probe.swaps import Swaps
from subeight.text import Batch

_TINY = 1e-12


@dataclass(frozen=True)
class Effects:
    """Per linear: the energy of its difference on the prompts, comparable between linears."""

    energy: dict[str, float]

    def __or__(self, other: Effects) -> Effects:
        return Effects({**self.energy, **other.energy})

    def shares(self) -> dict[str, float]:
        """The linears with their share of all, the largest first."""
        total = sum(self.energy.values()) or 1.0
        return {name: value / total for name, value in sorted(self.energy.items(), key=lambda item: -item[1])}


@dataclass
class _Seen:
    """Sums over the tokens for one linear: of its output, of its difference's, and relative to the stream."""

    output: float = 0.0
    error: float = 0.0
    output_share: float = 0.0
    error_share: float = 0.0


def effects_of(
    pair: Pair, states: list[Tensor], calls: Sequence[tuple[tuple, dict]], batches: Sequence[Batch], base: Swaps
) -> tuple[list[Tensor], Effects]:
    """The states behind a block, and the effect of each of its linears on the way; `calls` are its other arguments."""
    seen: dict[str, _Seen] = {}
    outputs = []
    with pair.restored(base) as block:
        other = {view.info.name: pair.baseline.weight(view) for view in block.structure.linears()}
        for state, call, batch in zip(states, calls, batches, strict=True):
            tap = _Tap(block, other)
            with tap:
                outputs.append(block(state, call))
            tap.add_to(seen, outputs[-1], _real(batch))
    groups = block.structure.groups
    return outputs, Effects({name: _energy(name, groups, seen) for name in seen})


def _real(batch: Batch) -> Tensor:
    return (torch.arange(batch.ids.shape[1])[None] < batch.lengths[:, None]).flatten()


class _Tap(Watcher):
    """Measures what a linear's difference does to its output, whenever a product with its weight comes by."""

    def __init__(self, block: Block, other: dict[str, Tensor]) -> None:
        super().__init__(self._look)
        self._views = {block.weight(view).data_ptr(): view for view in block.structure.linears()}
        self._block, self._other = block, other
        self._found: list[tuple[str, Tensor, Tensor]] = []  # a linear, and per row the energy of output and difference

    def _look(self, weight: Tensor, value: Tensor, _transposed: bool) -> None:
        view = self._views.get(weight.data_ptr())
        if view is None:
            return
        rows = value.reshape(-1, value.shape[-1])
        mine = self._block.weight(view)
        with torch._C.DisableTorchFunction():
            difference = (mine.float() - self._other[view.info.name].float()).to(rows.dtype)
            output = (rows @ mine.T).float().square().sum(-1)
            error = (rows @ difference.T).float().square().sum(-1)
        self._found.append((view.info.name, output, error))

    def add_to(self, seen: dict[str, _Seen], after: Tensor, real: Tensor) -> None:
        """Adds what came by to the sums; `after` is the stream behind the block, `real` tells tokens from padding."""
        real = real.to(after.device)
        stream = after.flatten(0, 1).float().square().sum(-1) + _TINY  # [tokens]
        typical = stream.median()
        for name, output, error in self._found:
            every = len(output) == len(real)
            # an expert's tokens cannot be told apart here: the stream's typical size stands for theirs
            size, mine = (stream, real) if every else (typical.expand(len(output)), torch.ones_like(output).bool())
            sums = seen.setdefault(name, _Seen())
            sums.output += float(output[mine].sum())
            sums.error += float(error[mine].sum())
            sums.output_share += float((output / size)[mine].sum())
            sums.error_share += float((error / size)[mine].sum())


def _energy(name: str, groups: tuple[InputGroup, ...], seen: dict[str, _Seen]) -> float:
    mine = seen[name]
    writers = _writers(name, groups)
    if not writers:
        return mine.error_share
    written = sum(seen[writer].output_share for writer in writers if writer in seen)
    return written * mine.error / (mine.output + _TINY)


def _writers(name: str, groups: tuple[InputGroup, ...]) -> list[str]:
    """The linears that write to the residual stream what this one's branch computes; none for such a one itself."""
    home = next(group for group in groups if any(view.info.name == name for view in group.linears))
    if home.norm is None:
        return []
    expert, width = home.linears[0].expert, groups[0].width
    for group in sorted(groups, key=lambda group: group.stage):
        same = expert is None or group.linears[0].expert == expert
        writers = [view.info.name for view in group.linears if view.info.shape[0] == width]
        if group.stage > home.stage and group.norm is None and same and writers:
            return writers
    return []
