"""Outliers in the weights: how far the largest values stretch the scales, and how much of the rounding error is
theirs.

The question behind it is which of three moves a linear needs. The answer is an experiment: set the largest values
apart (out of the scales, kept exact), round the rest again, and see how much of the squared error is gone. Large
matrices answer by a fixed sample of their rows.
"""

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from subeight.formats import Format, find_scales
from subeight.models.linear_info import LinearInfo

FORMATS = {grid: Format.parse(f"{grid}:g64") for grid in ("int4", "int3")}
APART = {"top0.1%": 0.001, "top1%": 0.01}
SAMPLE = 2**20  # values that the counterfactual looks at; whole rows, drawn with seed 0
# Normally distributed weights give 0.06 (top 0.1 %) and 0.25 (top 1 %) at int4:g64, Laplace's 0.11 and 0.39.
FEW = {"top0.1%": 0.25, "top1%": 0.5}
HEAVY = {"top0.1%": 0.10, "top1%": 0.35}
_CHUNK = 2**18  # values at a time: the cache's size, and no float64 copy of a whole matrix
_KEPT = " It stays in high precision unless a rule names it."


@dataclass(frozen=True)
class Moments:
    """Absolute maximum, root mean square and excess kurtosis of all values of one weight."""

    absmax: float
    rms: float
    kurtosis: float


def moments(weight: Float[Tensor, "out in"]) -> Moments:
    """Of every value, summed in float64."""
    absmax = torch.zeros((), device=weight.device)
    sums = torch.zeros(4, dtype=torch.float64, device=weight.device)
    for part in weight.split(max(1, _CHUNK // weight.shape[1])):
        x = part.reshape(-1).double()
        square = x * x
        absmax = torch.maximum(absmax, x.abs().amax().float())
        sums += torch.stack([x.sum(), square.sum(), square.dot(x), square.dot(square)])
    m1, m2, m3, m4 = (sums / weight.numel()).tolist()
    variance = m2 - m1**2
    fourth = m4 - 4 * m1 * m3 + 6 * m1**2 * m2 - 3 * m1**4
    kurtosis = fourth / variance**2 - 3 if variance > 1e-12 * m2 else 0.0
    return Moments(float(absmax), m2**0.5, kurtosis)


def sampled(weight: Float[Tensor, "out in"], values: int = SAMPLE) -> Float[Tensor, "rows in"]:
    """The weight in float32, or so many of its rows (drawn with seed 0, in order) as hold `values` values."""
    count = max(1, values // weight.shape[1])
    if count < len(weight):
        drawn = torch.randperm(len(weight), generator=torch.Generator().manual_seed(0))[:count]
        weight = weight[drawn.sort().values.to(weight.device)]
    return weight.float()


def squared_error(weight: Float[Tensor, "out in"], format: Format) -> float:
    """Sum of squared differences after rounding to nearest with absmax scales."""
    scale, _ = find_scales(weight, format).expand(format, weight.shape[1])
    difference = (format.values.snap(weight / scale).mul_(scale).sub_(weight)).flatten()
    return float(difference.dot(difference))


def error_shares(weight: Float[Tensor, "out in"]) -> tuple[dict[str, float], dict[str, dict[str, float]]]:
    """Per format the relative rounding error |W - Q(W)| / |W|, and the share of its square that goes away when the
    largest values are set apart and the rest is rounded again."""
    flat = weight.flatten()
    total = float(flat.dot(flat))
    counts = {name: max(1, round(share * flat.numel())) for name, share in APART.items()}
    largest = flat.abs().topk(max(counts.values())).indices
    before = {name: squared_error(weight, format) for name, format in FORMATS.items()}
    shares: dict[str, dict[str, float]] = {name: {} for name in FORMATS}
    rest = weight.clone()
    for apart, count in sorted(counts.items(), key=lambda item: item[1]):
        rest.view(-1)[largest[:count]] = 0  # zero is on the grid and below every absmax: it costs and stretches nothing
        for name, format in FORMATS.items():
            error = before[name]
            shares[name][apart] = 1 - squared_error(rest, format) / error if error else 0.0
    return {name: (error / total) ** 0.5 if total else 0.0 for name, error in before.items()}, shares


def x_ray_weight(info: LinearInfo, weight: Float[Tensor, "out in"]) -> dict[str, Any]:
    """One row of the record's `linears`."""
    found = moments(weight)
    errors, shares = error_shares(sampled(weight))
    reach = found.absmax / found.rms if found.rms else 0.0
    return {
        "name": info.name,
        "block": info.block,
        "group": info.group,
        "kind": info.kind,
        "shape": list(info.shape),
        "range_over_rms": reach,
        "kurtosis": found.kurtosis,
        "error_share": shares,
        "error": errors,
        "tails": tails(shares["int4"]),
        "means": _means(info, shares["int4"], errors["int4"]),
    }


def tails(shares: dict[str, float]) -> str:
    """`few`: a few values cause the error; `heavy`: longer tails than normal ones; `light`: neither."""
    if any(shares[apart] >= least for apart, least in FEW.items()):
        return "few"
    return "heavy" if any(shares[apart] >= least for apart, least in HEAVY.items()) else "light"


def _means(info: LinearInfo, shares: dict[str, float], error: float) -> str:
    if not error:
        return "It lies on the 4-bit grid already: rounding loses nothing."
    tenth, percent = (f"{max(0.0, shares[apart]):.0%}" for apart in ("top0.1%", "top1%"))
    said = {
        "few": f"Few values cause much of the error (the top 1 % take {percent} of it with them, the top 0.1 % "
        f"{tenth}): set them apart, or clip them with a searched scale.",
        "heavy": f"Its tails are heavier than normal ones (without the top 1 % {percent} of the error is gone, of "
        "normal weights 25%): a rotation flattens them, clipping and set-apart values help some.",
        "light": f"Light tails (without the top 1 % {percent} of the error is gone, of normal weights 25%): "
        "no outliers to treat, methods that round well (gptq) are enough.",
    }[tails(shares)]
    return said + (_KEPT if info.kind in {"router", "embedding", "head"} else "")
