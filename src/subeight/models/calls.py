"""What a trunk calls its blocks with: masks, positions and the like, recorded by standing in for the blocks."""

from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache

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
    hidden, calls, _ = _recorded(model, skeleton, input_ids=ids, use_cache=False)
    return hidden, [(args, {k: v for k, v in kwargs.items() if k != "past_key_values"}) for args, kwargs in calls]


def record_step(
    model: nn.Module, skeleton: Skeleton, ids: Tensor, cache: Cache | None
) -> tuple[Tensor, list[Call], Cache]:
    """The same for ids that follow what `cache` holds; the blocks called so will add theirs to the cache returned."""
    hidden, calls, output = _recorded(model, skeleton, input_ids=ids, past_key_values=cache, use_cache=True)
    return hidden, calls, output.past_key_values


def _recorded(model: nn.Module, skeleton: Skeleton, **asked: Any) -> tuple[Tensor, list[Call], Any]:
    owner, _, tail = skeleton.blocks_name.rpartition(".")
    parent = model.get_submodule(owner)
    blocks = getattr(parent, tail)
    calls: list = []
    setattr(parent, tail, nn.ModuleList([Recorder(block, calls) for block in blocks]))
    try:
        with torch.no_grad():
            output = parent(**asked)
    finally:
        setattr(parent, tail, blocks)
    return calls[0][0], [(args, kwargs) for _, args, kwargs in calls], output
