"""How the blocks of a mixture of experts route tokens: watched where a block hands them to its experts."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from subeight.errors import ModelError
from subeight.models.block import Block
from subeight.models.calls import Call
from subeight.models.structure import LinearView, Structure
from subeight.models.watch import Watcher


@dataclass(frozen=True)
class Routing:
    """What one block did with the tokens of a batch, padding included, row after row."""

    inputs: Float[Tensor, "tokens width"]
    chosen: Int[Tensor, "tokens k"]
    weights: Float[Tensor, "tokens k"]  # of the experts' outputs, float32
    logits: Float[Tensor, "tokens experts"] | None  # of the router, float32; None where no router was seen


def experts_of(structure: Structure) -> list[str]:
    """The experts of a block by name, in their order; empty where it is no mixture."""
    found: dict[int, str] = {}
    for view in structure.linears():
        if view.expert is not None and view.info.expert is not None:
            found.setdefault(view.expert, view.info.expert)
    return [found[number] for number in sorted(found)]


def run_routed(block: Block, hidden: Tensor, call: Call) -> tuple[Tensor, Routing | None]:
    """The block's output for a hidden state [batch, length, width], and how it routed; None where it is no mixture."""
    views = [view for view in block.structure.linears() if view.expert is not None]
    if not views:
        return block(hidden, call), None
    router = _router(block)
    seen: list[Tensor] = []

    def look(weight: Tensor, value: Tensor, _transposed: bool) -> None:
        if router is not None and weight.data_ptr() == block.weight(router).data_ptr():
            seen.append(_logits(block, router, value))

    with _given_to(experts_module(block)) as given, Watcher(look):
        output = block(hidden, call)
    inputs, chosen, weights = given[0]
    return output, Routing(inputs, chosen, weights.float(), seen[0] if seen else None)


def experts_module(block: Block) -> nn.Module:
    """The module that holds a block's experts."""
    view = next(view for view in block.structure.linears() if view.expert is not None)
    owner = view.parameter.removeprefix(f"{block.prefix}.").rpartition(".")[0]
    return block.module.get_submodule(owner)


def expert_outputs(block: Block, inputs: Float[Tensor, "tokens width"], number: int) -> Float[Tensor, "tokens width"]:
    """What one expert makes of some tokens, with no routing weight on it; inputs are rounded as its formats say."""
    chosen = torch.full((len(inputs), 1), number, dtype=torch.long, device=inputs.device)
    one = torch.ones(len(inputs), 1, dtype=inputs.dtype, device=inputs.device)
    with torch.no_grad(), Block.rounding_of([block]):
        return experts_module(block)(inputs, chosen, one)


@contextmanager
def shown_to_all(block: Block) -> Iterator[None]:
    """While it lasts, each expert of the block reads all tokens before it reads its own; the block's output stays."""
    experts = experts_module(block)
    plain, count = experts.forward, len(experts_of(block.structure))

    def forward(hidden: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        for number in range(count):
            plain(hidden, torch.full_like(chosen[:, :1], number), torch.ones_like(weights[:, :1]))
        return plain(hidden, chosen, weights)

    experts.forward = forward
    try:
        yield
    finally:
        del experts.forward


@contextmanager
def _given_to(experts: nn.Module) -> Iterator[list[tuple[Tensor, Tensor, Tensor]]]:
    """What the experts are called with, while it lasts: (hidden states, chosen experts, their weights)."""
    given: list[tuple[Tensor, Tensor, Tensor]] = []

    def note(_module: nn.Module, args: Any, kwargs: Any) -> None:
        values = [*args, *kwargs.values()]
        if len(values) < 3 or values[0].dim() != 2 or values[1].shape != values[2].shape or values[1].dim() != 2:
            shapes = ", ".join(str(tuple(getattr(value, "shape", ()))) for value in values)
            raise ModelError(
                f"{type(experts).__name__} is called with {shapes}, and not with tokens [n, width] and the chosen "
                "experts and their weights [n, k]: how it routes cannot be watched."
            )
        given.append((values[0], values[1], values[2]))

    hook = experts.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield given
    finally:
        hook.remove()


def _router(block: Block) -> LinearView | None:
    """The linear that scores the experts: of the routers, the one with a row for each."""
    count = len(experts_of(block.structure))
    routers = [view for view in block.structure.linears() if view.info.kind == "router"]
    return next((view for view in routers if view.info.shape[0] == count), None)


def _logits(block: Block, router: LinearView, value: Tensor) -> Tensor:
    weight = block.weight(router).float()  # [experts, width]
    logits = value.reshape(-1, value.shape[-1]).float() @ weight.T
    return logits if router.bias is None else logits + block.parameter(router.bias).float()
