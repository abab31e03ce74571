"""How biased a forced calibration is: what an expert reads when it is shown all tokens, against what it is sent."""

import torch
from jaxtyping import Float
from torch import Tensor

from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.routing import experts_of, run_routed
from subeight.models.shell import Shell
from subeight.models.stats import Stats
from subeight.records.progress import progress


def forced_bias(
    model: Model,
    ids: Tensor,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    batch: int = 4,
    quiet: bool = False,
) -> dict[str, float | None]:
    """For each expert, how far the second moments of all tokens are from those of its own: 0 is alike.

    The Frobenius norm of the difference over that of its own, each scaled to one mean diagonal, for GPTQ does not look
    at the scale; None for an expert that no token of `ids` [sequences, length] is sent to. Measured on the model's own
    states, one block in memory at a time.
    """
    shell = Shell(model, dtype, device)
    states = [shell.embed(part).cpu() for part in torch.split(ids, batch)]
    found: dict[str, float | None] = {}
    with progress(len(model.skeleton.blocks), "Comparing with forced routing", "blocks", quiet=quiet) as advance:
        for index in range(len(model.skeleton.blocks)):
            block = Block(model, index, dtype, device)
            inputs, chosen = [], []
            for number, hidden in enumerate(states):
                output, routing = run_routed(block, hidden, shell.call(tuple(hidden.shape[:2]), index))
                states[number] = output.cpu()
                if routing is not None:
                    inputs.append(routing.inputs)
                    chosen.append(routing.chosen)
            if inputs:
                found |= _of_block(experts_of(block.structure), torch.cat(inputs), torch.cat(chosen))
            advance()
    return found


def _of_block(names: list[str], inputs: Tensor, chosen: Tensor) -> dict[str, float | None]:
    whole = _moments(inputs)
    found: dict[str, float | None] = {}
    for number, name in enumerate(names):
        own = inputs[(chosen == number).any(1)]
        if not len(own):
            found[name] = None
            continue
        moments = _moments(own)
        found[name] = float((whole - moments).norm() / moments.norm())
    return found


def _moments(inputs: Float[Tensor, "tokens width"]) -> Float[Tensor, "width width"]:
    """Second moments as GPTQ reads them, scaled to a mean diagonal of 1."""
    hessian = Stats.from_inputs(inputs, {"hessian"}).hessian
    assert hessian is not None
    return hessian / hessian.diagonal().mean()
