"""SmoothQuant: hands the extremes of the inputs over to the weights, until both are equally hard to round.

Xiao et al. 2022, https://arxiv.org/abs/2211.10438. Input channel j is divided by s_j = max|x_j|^alpha /
max|w_j|^(1 - alpha) and column j of the weights multiplied by it. Made for inputs in 8 bits. With `search`,
several alphas are tried and the one kept that loses least when weights and inputs are rounded.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from subeight.errors import InputError
from subeight.formats import Format, quantize
from subeight.formats.rotation import rotate
from subeight.methods.base import Move, option
from subeight.methods.scales import output_error
from subeight.models.stats import Stats

SMALLEST = 1e-5  # the authors' floor for a scale


@dataclass(frozen=True)
class Smooth(Move):
    """Divide the inputs' extremes by s and multiply the weights by it."""

    name: ClassVar[str] = "smooth"
    alpha: float = option(0.5, "share of the difficulty that the weights take over", low=0, high=1)
    search: bool = option(False, "try `alphas` and keep the best for each group of linears, or none")
    alphas: tuple[float, ...] = option((0.3, 0.4, 0.5, 0.6, 0.7, 0.8), "what `search` tries", low=0, high=1)

    @property
    def needs(self) -> frozenset[str]:
        """The largest inputs; the search measures errors through the Hessian too."""
        return frozenset({"absmax", "hessian"} if self.search else {"absmax"})

    @override
    @torch.no_grad()
    def diagonal(
        self,
        weights: list[Float[Tensor, "out in"]],
        formats: list[Format | None],
        stats: Stats,
        channels: Int[Tensor, " in"],
        producers: int,
        inputs: Format | None = None,
    ) -> Float[Tensor, " producers"]:
        """`s` for `alpha`, or for the best of `alphas`; ones where the search finds that nothing helps."""
        if stats.absmax is None:
            raise InputError("smooth was called without absmax; give calibration text.")
        # a producer's channel is as hard as its loudest reader: the largest of all, on both sides
        x = _largest(stats.absmax.float(), channels, producers)
        w = _largest(torch.stack([v.float().abs().amax(0) for v in weights]).amax(0), channels, producers)
        if not self.search:
            return _scale(x, w, self.alpha)
        if stats.hessian is None:
            raise InputError("smooth with search was called without a hessian; give calibration text.")
        best = torch.ones(producers, device=channels.device)
        least = mixed_error(weights, formats, inputs, stats, best[channels])
        for alpha in self.alphas:
            s = _scale(x, w, alpha)
            error = mixed_error(weights, formats, inputs, stats, s[channels])
            if error < least:
                best, least = s, error
        return best


def mixed_error(
    weights: list[Float[Tensor, "out in"]],
    formats: list[Format | None],
    inputs: Format | None,
    stats: Stats,
    s: Float[Tensor, " in"],
) -> float:
    """Twice the mean squared error of the outputs, with weights times s and inputs over s both rounded."""
    assert stats.hessian is not None
    variance = None if inputs is None else input_variance(inputs, stats.rescaled(s))
    total = 0.0
    for weight, format in zip(weights, formats, strict=True):
        scaled = weight.float() * s
        if format is not None:
            scaled = quantize(scaled, format).dequantize()
            total += output_error(scaled / s - weight.float(), stats.hessian)
        if variance is not None:
            total += 2 * float((scaled.square().sum(0) * variance).sum(dtype=torch.float64))
    return total


def input_variance(format: Format, stats: Stats) -> Float[Tensor, " in"]:
    """The expected squared rounding error of each input channel, from what the statistics know.

    An integer grid has even steps: a twelfth of the step squared. A static scale spans the largest input
    seen, a scale per token what is typically the largest of a token. A float's steps grow with the value: its
    error is a share of the channel's own square.
    """
    if format.rotated:  # as errors of the channels that were turned, each of which is a mixture of them
        turned = input_variance(format.plain, stats.rotated())
        return (rotate(torch.eye(len(turned), device=turned.device)).square() * turned).sum(1)
    assert stats.hessian is not None
    squares = stats.hessian.diagonal().float() / 2
    if not format.grid.startswith("int"):
        mantissa = {"fp8": 3, "fp8_e5m2": 2}.get(format.grid, 1)
        return squares * 4.0**-mantissa / 24  # mean over values spread evenly in log
    if format.per == "tensor":
        assert stats.absmax is not None
        widest = stats.absmax.float().max().square()
    else:
        widest = _typical_largest(squares).square()
    half_steps = 2 ** (format.code_bits - 1) - 0.5
    return (widest / half_steps**2 / 12).expand_as(squares)


def _typical_largest(squares: Float[Tensor, " in"]) -> Tensor:
    """The median of a token's largest input, as if channels were independent and Gaussian."""
    deviations = squares.clamp_min(1e-30).sqrt()
    low, high = torch.zeros_like(deviations[0]), deviations.max() * 8
    for _ in range(30):
        middle = (low + high) / 2
        above = torch.special.erfc(middle / (deviations * math.sqrt(2))).sum()  # channels expected beyond
        low = torch.where(above > math.log(2), middle, low)
        high = torch.where(above > math.log(2), high, middle)
    return high


def _scale(x: Tensor, w: Tensor, alpha: float) -> Tensor:
    s = x.clamp_min(SMALLEST).pow(alpha) / w.clamp_min(SMALLEST).pow(1 - alpha)
    # a channel that was never fed, or is never read, stays as it is
    return torch.where((x > 0) & (w > 0), s.clamp_min(SMALLEST), 1.0)


def _largest(values: Float[Tensor, " in"], channels: Int[Tensor, " in"], producers: int) -> Float[Tensor, " producers"]:
    return torch.zeros(producers, device=values.device).scatter_reduce_(0, channels, values, "amax")
