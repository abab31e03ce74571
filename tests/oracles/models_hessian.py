"""What a linear of a block reads, by hooks on the modules themselves, summed token by token in float64."""

import math

import torch
from torch import Tensor, nn


def inputs_of(block: nn.Module, linear: nn.Module, runs: list) -> Tensor:
    """All inputs [tokens, in] of `linear` while the block runs over (hidden, args, kwargs)."""
    seen: list[Tensor] = []
    hook = linear.register_forward_pre_hook(lambda _, args: seen.append(args[0].reshape(-1, args[0].shape[-1])))
    with torch.no_grad():
        for hidden, args, kwargs in runs:
            block(hidden, *args, **kwargs)
    hook.remove()
    return torch.cat(seen)


def expert_inputs(router: Tensor, top: int, hidden: Tensor, gate_up: Tensor, expert: int) -> tuple[Tensor, Tensor]:
    """Inputs of one expert's first and second product, for the hidden states [tokens, in] in front of the router."""
    chosen = (hidden @ router.T).softmax(-1).topk(top, -1).indices
    mine = hidden[(chosen == expert).any(-1)]
    gate, up = (mine @ gate_up.T).chunk(2, -1)
    return mine, nn.functional.silu(gate) * up


def counted(inputs: Tensor) -> list[float]:
    """What each input of [n, in] counts: one over its root mean square, as a power of two."""
    sizes = [math.sqrt(float(row.double().square().mean())) for row in inputs]
    return [2.0 ** -round(math.log2(size)) if size else 0.0 for size in sizes]


def hessian(inputs: Tensor, drift: Tensor | None = None) -> Tensor:
    """Twice the mean of the outer products of the inputs [n, in], or of how far they drifted with them, as counted."""
    counts, total = counted(inputs), torch.zeros(inputs.shape[1], inputs.shape[1], dtype=torch.float64)
    for count, left, right in zip(counts, inputs.double() if drift is None else drift, inputs.double(), strict=True):
        total += count * torch.outer(left, right)
    return 2 * total / (sum(counts) or 1)
