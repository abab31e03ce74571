"""How the student learns: KL to the baseline's logits, and Adam for which quiet gradients stay quiet."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from subeight.evals.divergence import mean_divergence
from subeight.models.shell import Head
from subeight.train.shards import like, whole
from subeight.train.student import Student

BETAS = (0.9, 0.95)
QUIET = 0.3  # of a tensor's root mean square gradient, below which a value's own hardly moves it
TINY = 1e-20


class Divergence(torch.autograd.Function):
    """Mean KL(baseline || student) in nats per token, from final hidden states; logits are made a part at a time."""

    @staticmethod
    def forward(ctx: Any, final: Tensor, targets: Tensor, heads: tuple[Head, Head]) -> Tensor:
        loss, slope = mean_divergence(targets, final.detach(), heads, slope=ctx.needs_input_grad[0])
        ctx.slope = slope
        return final.new_tensor(loss, dtype=torch.float32)

    @staticmethod
    def backward(ctx: Any, *slopes: Tensor) -> tuple[Tensor, None, None]:
        return (ctx.slope * slopes[0]).to(ctx.slope.dtype), None, None


class QuietAdam(torch.optim.Adam):
    """Adam (Kingma and Ba 2014, https://arxiv.org/abs/1412.6980) on gradients in units of their tensor's own.

    Its epsilon is a share of a tensor's root mean square gradient then: plain Adam moves values whose gradient is noise
    as far as those that matter, and a move that turns a code is loss.
    """

    def __init__(self, student: Student, rate: float) -> None:
        """`rate` is the first step of positions in codes; factors and vectors take a third of it, of their own size."""
        weights = student.weights.values()
        positions = [weight.position for weight in weights if weight.position.requires_grad]
        groups: list[dict[str, Any]] = [{"params": positions, "lr": rate}] if positions else []
        if weights:
            groups.append({"params": [weight.factor for weight in weights], "lr": rate / 3})
        sizes = ((value, float(_mean_square(value.detach()).sqrt())) for value in student.vectors.values())
        groups += [{"params": [value], "lr": rate / 3 * size} for value, size in sizes]
        super().__init__(groups, betas=BETAS, eps=QUIET, fused=True)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        for group in self.param_groups:
            for slope in (parameter.grad for parameter in group["params"] if parameter.grad is not None):
                slope.div_(_mean_square(slope).sqrt_().clamp_min_(TINY))  # nothing that a GPU is waited for
        return super().step(closure)

    def state_dict(self) -> dict[str, Any]:
        """Its state, whole, in every process."""
        found = super().state_dict()
        found["state"] = {at: {n: whole(v) for n, v in one.items()} for at, one in found["state"].items()}
        return found

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Takes what `state_dict` gave, in as many processes as there are now."""
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        state = {
            at: {n: like(v, parameters[at]) if v.shape == parameters[at].shape else v for n, v in one.items()}
            for at, one in state_dict["state"].items()
        }
        super().load_state_dict(state_dict | {"state": state})


def _mean_square(value: Tensor) -> Tensor:
    return whole(value.square().sum()) / value.numel()


class Distilled(nn.Module):
    """The student as a function from token ids and the baseline's final states to a loss."""

    _keys_to_ignore_on_save = None  # the Trainer asks, where it loads the best step

    def __init__(self, module: nn.Module, trunk: str, heads: tuple[Head, Head]) -> None:
        super().__init__()
        self.module, self.trunk = module, trunk
        self._heads = [heads]  # in a list, so that they are no parts of it

    def state_dict(self, *given: Any, **named: Any) -> dict[str, Any]:  # type: ignore[override]
        """What is trained alone, whole in every process: the rest is the checkpoint's that it began with."""
        everything = super().state_dict(*given, **named)
        trained = {name for name, value in self.named_parameters() if value.requires_grad}
        return {name: whole(value) for name, value in everything.items() if name in trained}

    def load_state_dict(self, state_dict: Mapping[str, Any], *given: Any, **named: Any) -> Any:
        """Takes what `state_dict` gave."""
        now = dict(self.named_parameters())
        return super().load_state_dict({n: like(v, now[n]) for n, v in state_dict.items()}, *given, **named)

    def forward(self, input_ids: Tensor, targets: Tensor) -> dict[str, Tensor]:
        final = self.module.get_submodule(self.trunk)(input_ids=input_ids, use_cache=False).last_hidden_state
        return {"loss": Divergence.apply(final, targets, self._heads[0])}
