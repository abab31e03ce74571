"""A block run once over one batch, with every InputGroup's input shown on the way, and which tokens its rows are."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from subeight.models.block import Block
from subeight.models.calls import Call
from subeight.models.structure import InputGroup
from subeight.models.watch import Watcher

# (group, its input as rows [n, width], the cell of the batch [n] that each row is; None where it cannot be told)
Shown = Callable[[InputGroup, Tensor, Tensor | None], None]


class _RowWatcher(Watcher):
    """Remembers the last rows that were picked out of a matrix: that is how an expert gets its tokens."""

    picked: tuple[Tensor, Tensor] | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = super().__torch_function__(func, types, args, kwargs)
        if func is torch.Tensor.__getitem__ and args[0].dim() == 2:
            index = args[1]
            if isinstance(index, Tensor) and index.dtype == torch.long and index.dim() == 1:
                self.picked = (result, index)
        return result


def run_watched(block: Block, hidden: Tensor, call: Call, shown: Shown) -> Tensor:
    """The block's output for a hidden state [batch, length, width]; `shown` meets each group's input once."""
    by_weight = {block.weight(view).data_ptr(): group for group in block.structure.groups for view in group.linears}
    waiting = {group.name for group in block.structure.groups}
    cells = torch.arange(hidden.shape[0] * hidden.shape[1], device=block.device)
    routed: Tensor | None = None  # the tokens of the expert that is running

    def seen(weight: Tensor, value: Tensor, _transposed: bool) -> None:
        nonlocal routed
        group = by_weight.get(weight.data_ptr())
        if group is None or group.name not in waiting:
            return
        waiting.discard(group.name)
        rows = value.reshape(-1, value.shape[-1])
        if not group.is_expert:
            shown(group, rows, cells if len(rows) == len(cells) else None)
            return
        if watcher.picked is not None and watcher.picked[0] is value:
            routed = watcher.picked[1]
        shown(group, rows, routed if routed is not None and len(routed) == len(rows) else None)

    watcher = _RowWatcher(seen)
    with watcher:
        return block(hidden, call)
