"""SignRound: which way each value is rounded, and how wide each group's steps are, learned from the block's output.

Cheng et al. 2023 (AutoRound), https://arxiv.org/abs/2309.05516. Every value has a position between the codes, every
group a scale; both take steps that fall to zero, against the sign of the gradient of the block's distance from the
baseline's or by Adam (Kingma and Ba 2014, https://arxiv.org/abs/1412.6980), through rounding as if it were not there
(straight-through).

Unlike the authors' code it starts from GPTQ's codes, with the positions as near to the weights as these codes allow
(measured on smollm2 at 2 bits: a third less error than from plain rounding, after as many steps), every token counts
alike, however large its state (8 % less KL there), values whose gradient is small beside the others' hardly move (half
the error: Adam alone moves them as far as all others, by noise), and the best pass is chosen by batches that no step
was taken on. What comes out is never worse on them than the start.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from subeight.errors import FormatError, RecipeError
from subeight.formats import QTensor
from subeight.formats.rotation import rotate, unrotate
from subeight.formats.scales import grouped, storable, ungrouped
from subeight.methods.base import option
from subeight.methods.tune import BlockTask, Tune

NOT_FINITE = "a weight holds NaN or Inf: give finite weights"
BETAS = (0.9, 0.99)
TINY = 1e-20
QUIET = 0.3  # of a tensor's root mean square gradient, below which a value's own hardly moves it
WAY = 2.0  # what the first step would cover if all were as long, as a share of all codes: finer codes, shorter steps
INSIDE = 0.49  # how near to the border of a code's interval a position starts at most
HELD = 16  # one batch of so many judges and is not trained on


@dataclass(frozen=True)
class SignRound(Tune):
    """Learn the rounding by the block's output."""

    name: ClassVar[str] = "signround"
    start: str = option("gptq", "what rounds each linear before", choices=("gptq", "rtn"))
    steps: int = option(100, "how many steps are taken, one batch each", low=1, high=100_000)
    descent: str = option("adam", "how a step follows the gradient", choices=("adam", "sign"))
    rate: float = option(
        0.0,
        "size of the first step in units of a code; 0 means 2 / steps / how many codes there are",
        low=0.0,
        high=0.5,
    )
    clip: bool = option(True, "learn the scale of each group too, at a third of the rate")

    @override
    def passes(self, sequences: int, batch: int) -> float:
        return 2 + 3 * self.steps * batch / sequences  # the baseline's states beside its own, and the steps

    @override
    def tune(self, task: BlockTask, generator: torch.Generator, notes: dict[str, Any]) -> dict[str, QTensor]:
        """Codes of the best pass; notes: `loss` and what the start loses, `loss_before`, on the batches that judge."""
        linears = {name: _Learned.of(weight, task.start[name], self) for name, weight in task.weights.items()}
        order = torch.randperm(task.batches, generator=generator).tolist()
        count = max(1, task.batches // HELD)
        held, train = order[:count], order[count:] or order
        best, before = dict(task.start), _mean_loss(task, task.start, held)
        least, left = before, list(train)
        for step in range(self.steps):
            if not left:
                left = [train[at] for at in torch.randperm(len(train), generator=generator).tolist()]
            _, slopes = task.gradients({name: linear.weight() for name, linear in linears.items()}, left.pop())
            for name, linear in linears.items():
                linear.move(slopes[name], 1 - step / self.steps)
            if not left or step + 1 == self.steps:
                codes = {name: linear.codes() for name, linear in linears.items()}
                loss = _mean_loss(task, codes, held)
                if loss < least:
                    least, best = loss, codes
        notes |= {"loss": least, "loss_before": before}
        return best


def _mean_loss(task: BlockTask, codes: Mapping[str, QTensor], batches: list[int]) -> float:
    weights = {name: code.dequantize() for name, code in codes.items()}
    return sum(task.loss(weights, batch) for batch in batches) / len(batches)


class _Learned:
    """One weight: the position of every value [out, groups, columns] in units of codes, a factor of every scale.

    No position leaves the intervals of the codes, so rounding it needs no clamping.
    """

    def __init__(self, codes_before: QTensor, position: Tensor, method: SignRound) -> None:
        self.codes_before = codes_before
        self.position = position
        self.factor = torch.ones_like(codes_before.scales)[..., None]  # [out, groups, 1]
        first, last = codes_before.format.levels
        self._rate = method.rate or WAY / method.steps / (last - first + 1)
        self._clip = method.clip
        self._rounded = self._values()
        learned = [self.position, self.factor] if method.clip else [self.position]
        groups = [{"params": [value]} for value in learned]
        self._adam = None if method.descent == "sign" else torch.optim.Adam(groups, betas=BETAS, eps=TINY, fused=True)

    @classmethod
    def of(cls, weight: Tensor, start: QTensor, method: SignRound) -> _Learned:
        """Where the codes of `start` are, as near to the weight as they allow.

        Raises:
            RecipeError: the format's grid is not one of integers.
        """
        if not start.format.grid.startswith("int"):
            raise RecipeError(f"signround rounds to integers, and {start.format} has none; choose gptq or rtn for it.")
        weight = weight.detach().float()
        groups = grouped(rotate(weight) if start.format.rotated else weight, start.format)
        if not bool(torch.isfinite(groups).all()):
            raise FormatError(NOT_FINITE)
        codes = grouped(start.codes.float(), start.format)
        wanted = groups / start.scales[..., None]
        if start.zeros is not None:
            wanted = wanted + start.zeros.float()[..., None]
        return cls(start, codes + (wanted - codes).clamp_(-INSIDE, INSIDE), method)

    @property
    def scale(self) -> Tensor:
        """Scales as they are stored [out, groups, 1]."""
        start = self.codes_before
        return storable(start.format, start.scales[..., None] * self.factor)

    def _values(self) -> Tensor:
        """What is multiplied by the scale: codes less the zero point."""
        values, zeros = self.position.round(), self.codes_before.zeros
        return values if zeros is None else values.sub_(zeros.float()[..., None])

    def weight(self) -> Tensor:
        """The rounded weight [out, in]; what its codes are is kept for the step that follows."""
        self._rounded = self._values()
        found = ungrouped(self._rounded * self.scale, self.codes_before.shape[1])
        return unrotate(found) if self.codes_before.format.rotated else found

    def codes(self) -> QTensor:
        """What is stored."""
        codes = ungrouped(self.position.round(), self.codes_before.shape[1])
        return replace(self.codes_before, codes=codes.to(torch.int8).contiguous(), scales=self.scale[..., 0])

    def move(self, slope: Tensor, share: float) -> None:
        """A step, `share` of the first one, against the gradient [out, in] to the weight that was last asked for."""
        format = self.codes_before.format
        per_value = grouped(rotate(slope) if format.rotated else slope.float(), format)
        slopes = [per_value * self.scale]
        if self._clip:
            own = (per_value * self._rounded).sum(-1, keepdim=True)
            if format.per == "tensor":
                own = own.sum().view(1, 1, 1)
            slopes.append(own * self.codes_before.scales[..., None])
        size = share * self._rate
        self._step(slopes, [size, size / 3])
        first, last = format.levels
        self.position.clamp_(first - INSIDE, last + INSIDE)

    def _step(self, slopes: list[Tensor], sizes: list[float]) -> None:
        if self._adam is None:
            for value, slope, size in zip((self.position, self.factor), slopes, sizes, strict=False):
                value.sub_(slope.sign(), alpha=size)
            return
        for group, slope, size in zip(self._adam.param_groups, slopes, sizes, strict=False):
            group["params"][0].grad, group["lr"] = slope, size
            group["eps"] = QUIET * float(slope.square().mean().sqrt()) + TINY
        self._adam.step()
