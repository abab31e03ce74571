"""AWQ: makes the columns that large inputs meet larger, so that rounding costs them less.

Lin et al. 2023, https://arxiv.org/abs/2306.00978. Input channel j is divided by s_j and column j of the
weights multiplied by it, which changes nothing until the weights are rounded. s is searched on a grid between
"by the inputs alone" and "not at all", for the least error of the linears' outputs. That error is exact here,
tr(dW H dW^T) through the Hessian, instead of a forward pass per candidate. The paper's clipping is a choice
of scales, so it is an option of the method that rounds: `search: output`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor
from typing_extensions import override

from subeight.errors import InputError
from subeight.formats import Format, quantize
from subeight.methods.base import Move, option
from subeight.methods.scales import output_error
from subeight.models.stats import Stats

SMALLEST = 1e-4  # the authors' floor for a scale: channels that were never fed have a mean of 0


@dataclass(frozen=True)
class Awq(Move):
    """Scale up the columns that matter."""

    name: ClassVar[str] = "awq"
    grid: int = option(20, "how many exponents are tried, 0 <= a < 1", low=1, high=200)
    rows: int = option(1024, "how many rows of the weights the search looks at, evenly spaced over all of them", low=1)
    duo: bool = option(True, "divide by the weights' own size to the power 1 - a, as the authors' code does")

    @property
    def needs(self) -> frozenset[str]:
        """The mean inputs give the direction, the Hessian the error."""
        return frozenset({"hessian", "absmean"})

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
        """The best `s` of the grid, or ones where none beats rounding the weights as they are."""
        if stats.hessian is None or stats.absmean is None:
            raise InputError("awq was called without hessian and absmean; give calibration text.")
        rounded = [(w.float(), f) for w, f in zip(weights, formats, strict=True) if f is not None]
        best = torch.ones(producers, device=channels.device)
        if not rounded:
            return best
        rounded = _spaced(rounded, self.rows)
        size = _column_size(rounded) if self.duo else None
        least = scaled_error(rounded, stats.hessian, best[channels])
        for step in range(self.grid):
            s = _candidate(stats.absmean, size, step / self.grid, channels, producers)
            error = scaled_error(rounded, stats.hessian, s[channels])
            if error < least:
                best, least = s, error
        return best


def _spaced(rounded: list[tuple[Tensor, Format]], rows: int) -> list[tuple[Tensor, Format]]:
    """About `rows` rows in all, the same share of every weight; formats whose rows share a scale stay whole."""
    step = max(1, -(-sum(len(weight) for weight, _ in rounded) // rows))
    return [(w if f.per == "tensor" or f.grid == "nvfp4" else w[::step], f) for w, f in rounded]


def scaled_error(
    rounded: list[tuple[Tensor, Format]], hessian: Float[Tensor, "in in"], s: Float[Tensor, " in"]
) -> float:
    """What the outputs lose when every weight is rounded with its columns multiplied by `s`."""
    total = 0.0
    for weight, format in rounded:
        error = quantize(weight * s, format).dequantize().div_(s).sub_(weight)
        total += output_error(error, hessian)
    return total


def _candidate(
    mean: Float[Tensor, " in"],
    size: Float[Tensor, " in"] | None,
    exponent: float,
    channels: Int[Tensor, " in"],
    producers: int,
) -> Float[Tensor, " producers"]:
    wanted = mean.float().pow(exponent)
    if size is not None:
        wanted = wanted / size.pow(1 - exponent).clamp_min(SMALLEST)
    s = _geometric_mean(wanted.clamp_min(SMALLEST), channels, producers)
    return s / (s.max() * s.min()).sqrt()


def _column_size(rounded: list[tuple[Tensor, Format]]) -> Float[Tensor, " in"]:
    """Per column, the mean of |w| as a share of the largest value under the same scale."""
    total, rows = torch.zeros(rounded[0][0].shape[1], device=rounded[0][0].device), 0
    for weight, format in rounded:
        group = format.group or weight.shape[1]
        largest = torch.cat([p.abs().amax(1, keepdim=True).expand_as(p) for p in weight.split(group, dim=1)], dim=1)
        total += (weight.abs() / largest.clamp_min(1e-12)).sum(0)
        rows += weight.shape[0]
    return total / rows


def _geometric_mean(
    wanted: Float[Tensor, " in"], channels: Int[Tensor, " in"], producers: int
) -> Float[Tensor, " producers"]:
    """One s per producer: nearest, in ratio, to what each of its consumers wanted.

    A scale too large by some factor costs one consumer about what a scale too small by it costs another, so
    none is favoured; a maximum would let one loud head decide for all heads that share its values.
    """
    logs = torch.zeros(producers, device=wanted.device).index_add_(0, channels, wanted.log())
    counts = torch.bincount(channels, minlength=producers).clamp_min(1)
    return (logs / counts).exp()
