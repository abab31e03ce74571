"""SignRound: which way each value is rounded, and how far each group is clipped, learned from the block's output.

Cheng et al. 2023 (AutoRound), https://arxiv.org/abs/2309.05516. Every value gets an offset of at most half a step,
every group two factors of its range. They take steps of one size against the sign of the gradient of |block -
baseline|^2, the size falling to zero, through rounding as if it were not there (straight-through). Unlike the
authors' code, the best parameters are those of the best pass over all batches, not of the best batch, and what is
returned is compared with plain rounding on all of them: it is never worse there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from subeight.errors import FormatError, RecipeError
from subeight.formats import Format, QTensor
from subeight.formats.scales import grouped, storable, ungrouped, value_range
from subeight.methods.base import option
from subeight.methods.tune import BlockTask, Tune

NOT_FINITE = "a weight holds NaN or Inf: give finite weights"


@dataclass(frozen=True)
class SignRound(Tune):
    """Learn the rounding by signed gradients."""

    name: ClassVar[str] = "signround"
    steps: int = option(200, "how many steps are taken, one batch each", low=1, high=100_000)
    rate: float = option(0.0, "size of the first step in units of a code; 0 means 1 / steps", low=0.0, high=0.5)
    clip: bool = option(True, "learn the range of each group too")

    @override
    def tune(self, task: BlockTask, generator: torch.Generator, notes: dict[str, Any]) -> dict[str, QTensor]:
        """Codes of the best pass; notes: `loss` and what plain rounding loses, `plain`."""
        linears = {name: _Rounding.of(weight, task.formats[name]) for name, weight in task.weights.items()}
        plain = {name: linear.kept() for name, linear in linears.items()}
        best, least = plain, float("inf")
        order: list[int] = []
        passed: list[float] = []
        for step in range(self.steps):
            if not order:
                least, best, passed = self._kept(linears, passed, least, best)
                order = torch.randperm(len(task.targets), generator=generator).tolist()
            passed.append(self._step(task, linears, order.pop(), self._size(step)))
        if len(passed) == len(task.targets):
            least, best, passed = self._kept(linears, passed, least, best)
        last = {name: linear.kept() for name, linear in linears.items()}
        losses = [(_whole(task, linears, kept), kept) for kept in (plain, best, last)]
        loss, kept = min(losses, key=lambda pair: pair[0])
        notes |= {"loss": loss, "plain": losses[0][0]}
        return {name: linear.codes(kept[name]) for name, linear in linears.items()}

    def _size(self, step: int) -> float:
        return (self.rate or 1 / self.steps) * (1 - step / self.steps)

    def _step(self, task: BlockTask, linears: Mapping[str, _Rounding], batch: int, size: float) -> float:
        with torch.enable_grad():
            loss = task.loss({name: linear.weight() for name, linear in linears.items()}, batch)
        parameters = [p for linear in linears.values() for p in linear.parameters(self.clip)]
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        with torch.no_grad():
            for parameter, gradient in zip(parameters, gradients, strict=True):
                if gradient is not None:
                    parameter.sub_(gradient.sign(), alpha=size)
            for linear in linears.values():
                linear.bound()
        return float(loss.detach())

    @staticmethod
    def _kept(
        linears: Mapping[str, _Rounding], passed: list[float], least: float, best: dict[str, tuple[Tensor, ...]]
    ) -> tuple[float, dict[str, tuple[Tensor, ...]], list[float]]:
        """The best so far, when a pass over all batches has ended with these losses."""
        if not passed or sum(passed) >= least:
            return least, best, []
        return sum(passed), {name: linear.kept() for name, linear in linears.items()}, []


def _whole(task: BlockTask, linears: Mapping[str, _Rounding], kept: Mapping[str, tuple[Tensor, ...]]) -> float:
    """The mean loss over all batches with the codes that these parameters give."""
    with torch.no_grad():
        weights = {name: linear.codes(kept[name]).dequantize() for name, linear in linears.items()}
        losses = [float(task.loss(weights, batch)) for batch in range(len(task.targets))]
    return sum(losses) / len(losses)


@dataclass(eq=False)
class _Rounding:
    """The parameters of one weight: offsets [out, groups, columns] and the factors of each group's range."""

    format: Format
    width: int
    groups: Tensor  # the weight, in groups
    low: Tensor
    high: Tensor
    offset: Tensor
    below: Tensor
    above: Tensor

    @classmethod
    def of(cls, weight: Tensor, format: Format) -> _Rounding:
        """Plain rounding over the full range.

        Raises:
            RecipeError: the format's grid is not one of integers.
        """
        if not format.grid.startswith("int"):
            raise RecipeError(f"signround rounds to integers, and {format} has none; choose gptq or rtn for it.")
        groups = grouped(weight.detach().float(), format)
        if not bool(torch.isfinite(groups).all()):
            raise FormatError(NOT_FINITE)
        low, high = value_range(groups, format)
        parameters = (torch.zeros_like(groups), torch.ones_like(low), torch.ones_like(high))
        offset, below, above = (parameter.requires_grad_() for parameter in parameters)
        return cls(format, weight.shape[1], groups, low, high, offset, below, above)

    def parameters(self, clip: bool) -> list[Tensor]:
        """What is learned."""
        return [self.offset, self.below, self.above] if clip else [self.offset]

    def bound(self) -> None:
        """Offsets stay within half a step, ranges within the full one."""
        self.offset.clamp_(-0.5, 0.5)
        for factor in (self.below, self.above):
            factor.clamp_(0.0, 1.0)

    def kept(self) -> tuple[Tensor, ...]:
        """A copy of the parameters."""
        return tuple(p.detach().clone() for p in (self.offset, self.below, self.above))

    def weight(self) -> Tensor:
        """The rounded weight [out, in], differentiable in the parameters as if nothing were rounded."""
        scale, zero = self._scale(self.below, self.above)
        values = self._codes(self.offset, scale, zero)
        values = values if zero is None else values - zero[..., None]
        return ungrouped(values * scale[..., None], self.width)

    @torch.no_grad()
    def codes(self, kept: tuple[Tensor, ...]) -> QTensor:
        """The codes that these parameters stand for."""
        offset, below, above = kept
        scale, zero = self._scale(below, above)
        codes = ungrouped(self._codes(offset, scale, zero), self.width).to(torch.int8).contiguous()
        zeros = None if zero is None else zero.to(torch.int8)
        return QTensor(self.format, (len(codes), self.width), codes, scale, zeros)

    def _scale(self, below: Tensor, above: Tensor) -> tuple[Tensor, Tensor | None]:
        """Scales as they are stored, and zero points of affine formats."""
        low, high = self.low * below, self.high * above
        first, last = self.format.levels
        if self.format.symmetric:
            ideal = torch.maximum(-low, high) / self.format.values.peak
            return _through(ideal, storable(self.format, ideal)), None
        ideal = (high - low) / (last - first)
        scale = _through(ideal, storable(self.format, ideal))
        zero = (first - low / scale).clamp(first, last)
        return scale, _through(zero, zero.round())

    def _codes(self, offset: Tensor, scale: Tensor, zero: Tensor | None) -> Tensor:
        first, last = self.format.levels
        scaled = self.groups / scale[..., None] + offset
        scaled = (scaled if zero is None else scaled + zero[..., None]).clamp(first, last)
        return _through(scaled, scaled.round())


def _through(value: Tensor, rounded: Tensor) -> Tensor:
    """`rounded`, with the gradient of `value`."""
    return rounded.detach() + (value - value.detach())
