"""What a trunk calls its blocks with: masks, positions and the like, recorded by standing in for the blocks."""

from typing import Any

import torch
from torch import Tensor, nn

from subeight.models.skeleton import Skeleton

Call = tuple[tuple, dict]


class Recorder(nn.Module):
    """Stands in for a block: keeps what the trunk calls it with and returns the hidden state as it came."""

    def __init__(self, block: nn.Module, calls: list) -> None:
        super().__init__()
        object.__setattr__(self, "_block", block)
        self._calls = calls
        self.result: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(object.__getattribute__(self, "_block"), name)

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        self._calls.append((hidden_states, args, kwargs))
        return hidden_states if self.result is None else self.result


def record_calls(model: nn.Module, skeleton: Skeleton, ids: Tensor) -> tuple[Tensor, list[Call]]:
    """What the first block is given for `ids`, and the other arguments of every block."""
    owner, _, tail = skeleton.blocks_name.rpartition(".")
    parent = model.get_submodule(owner)
    blocks = getattr(parent, tail)
    calls: list = []
    setattr(parent, tail, nn.ModuleList([Recorder(block, calls) for block in blocks]))
    try:
        with torch.no_grad():
            parent(input_ids=ids, use_cache=False)
    finally:
        setattr(parent, tail, blocks)
    hidden = calls[0][0]
    return hidden, [(args, {k: v for k, v in kwargs.items() if k != "past_key_values"}) for _, args, kwargs in calls]
