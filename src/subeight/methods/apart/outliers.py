"""Outliers: the few values whose isolation lowers the output error most, kept in 16 bits.

Dettmers et al. 2023 (SpQR), https://arxiv.org/abs/2306.03078, for single values; Dettmers et al. 2022 (LLM.int8()),
https://arxiv.org/abs/2208.07339, for whole input columns. They are chosen before rounding and left out of the scales: a
group that loses its extreme gets finer steps, which is most of what isolation gains. Group by group, the next value
taken out is the one whose loss lowers the expected output error most (the extreme, or where rounding costs most),
found with the scales that the rest would get; the budget goes to the largest gains of all groups.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from subeight.errors import InputError
from subeight.formats import Format, Sparse, find_scales, quantize
from subeight.formats.apart import WIDEST, sparse_bits
from subeight.formats.scales import grouped, ungrouped
from subeight.methods.base import Select, option
from subeight.models.stats import Stats


@dataclass(frozen=True)
class Outliers(Select):
    """Set the values apart that cost most."""

    name: ClassVar[str] = "outliers"
    percent: float = option(0.5, "share of the values that are kept in 16 bits, in per cent", low=0.0, high=20.0)
    kind: str = option("values", "single values, or whole columns of the inputs", choices=("values", "columns"))
    most: int = option(4, "values taken out of one group at most", low=1, high=64)

    @property
    @override
    def needs(self) -> frozenset[str]:
        return frozenset({"hessian"})

    @override
    def extra_bits(self, shape: tuple[int, int]) -> float:
        return sparse_bits(shape, self._count(shape))

    @override
    @torch.no_grad()
    def select(self, weight: Float[Tensor, "out in"], format: Format, stats: Stats | None) -> Sparse:
        if stats is None or stats.hessian is None:
            raise InputError("outliers was called without a Hessian; give calibration text.")
        if weight.shape[1] > WIDEST:
            raise InputError(
                f"outliers numbers columns in 15 bits, and this weight has {weight.shape[1]}; leave it out."
            )
        cost = stats.hessian.diagonal().float()
        count = self._count((weight.shape[0], weight.shape[1]))
        if self.kind == "columns":
            return Sparse.of(weight, self._columns(weight, format, cost, count // len(weight)))
        return Sparse.of(weight, self._values(weight, format, cost, count))

    def _count(self, shape: tuple[int, int]) -> int:
        """How many values of a matrix are set apart; of whole columns as many as fit."""
        if self.kind == "columns":
            return int(shape[1] * self.percent / 100) * shape[0]
        return int(shape[0] * shape[1] * self.percent / 100)

    @staticmethod
    def _columns(weight: Tensor, format: Format, cost: Tensor, count: int) -> Tensor:
        """The columns that plain rounding would cost most."""
        lost = (quantize(weight, format).dequantize() - weight).square().sum(0) * cost
        chosen = torch.zeros_like(weight, dtype=torch.bool)
        chosen[:, lost.topk(count).indices] = True
        return chosen

    def _values(self, weight: Tensor, format: Format, cost: Tensor, count: int) -> Tensor:
        """Where values are taken out [out, in], by what each group gains per value."""
        rest, errors = weight.clone(), []
        places: list[Tensor] = []
        for _ in range(self.most):
            errors.append(_errors(rest, format, cost))
            rest, place = _without_the_worst(rest, format, cost, errors[-1])
            places.append(place)
        errors.append(_errors(rest, format, cost))
        gains = _per_value(torch.stack(errors))  # [most, out, groups]
        order = gains.flatten().topk(min(count, gains.numel()))
        taken = torch.zeros_like(gains, dtype=torch.bool).flatten()
        taken[order.indices[order.values > 0]] = True
        numbers = taken.view_as(gains).sum(0)  # of each group the first so many: equal gains may come in any order
        taken = torch.arange(self.most, device=weight.device).view(-1, 1, 1) < numbers
        chosen = torch.zeros_like(grouped(weight, format), dtype=torch.bool)
        for place, now in zip(places, taken, strict=True):
            chosen.scatter_(2, place[..., None], now[..., None] | chosen.gather(2, place[..., None]))
        return ungrouped(chosen, weight.shape[1])


def _errors(weight: Tensor, format: Format, cost: Tensor) -> Tensor:
    """What each group [out, groups] costs the outputs when it is rounded."""
    miss = (quantize(weight, format, find_scales(weight, format)).dequantize() - weight).square() * cost
    return grouped(miss, format).sum(-1)


def _without_the_worst(weight: Tensor, format: Format, cost: Tensor, before: Tensor) -> tuple[Tensor, Tensor]:
    """Every group without one value: its extreme, or that which rounding costs most; and its place [out, groups]."""
    groups = grouped(weight, format)
    miss = grouped(
        (quantize(weight, format, find_scales(weight, format)).dequantize() - weight).square() * cost, format
    )
    tries = []
    for place in (groups.abs().argmax(-1), miss.argmax(-1)):
        rest = ungrouped(groups.scatter(2, place[..., None], 0.0), weight.shape[1])
        tries.append((rest, place, before - _errors(rest, format, cost)))
    (one, first, gain), (other, second, more) = tries
    better = more > gain
    rest = torch.where(better[..., None], grouped(other, format), grouped(one, format))
    return ungrouped(rest, weight.shape[1]), torch.where(better, second, first)


def _per_value(errors: Tensor) -> Tensor:
    """What the k-th value taken out gains [most, out, groups], made falling: a later one counts with those before it.

    The least concave curve above the gains of a group: the budget is then spent value by value, the largest first.
    """
    most = len(errors) - 1
    curve = errors[0] - errors  # [most + 1, ...] what the first k gain together
    gains = torch.empty_like(errors[1:])
    at = torch.zeros_like(errors[0], dtype=torch.long)  # values taken so far on the hull
    for k in range(most):
        steps = torch.arange(1, most + 1, device=errors.device).view(-1, *[1] * (errors.ndim - 1))
        here = curve.gather(0, at[None])
        slopes = torch.where(steps > at, (curve[1:] - here) / (steps - at).clamp_min(1), -torch.inf)
        best, where = slopes.max(0)
        fresh = at <= k
        gains[k] = torch.where(fresh, best, gains[k - 1] if k else best)
        at = torch.where(fresh, where + 1, at)
    return gains
