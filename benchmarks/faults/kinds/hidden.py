"""Culprits that looking at weights does not find: much damage to the output for a small error of the weight.

A weight error is one number for the whole matrix; what a product loses also depends on what it meets. Cells (one row's
group) whose weights meet the largest activations get a wrong scale, as many as a budget of weight error allows.
"""

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from benchmarks.faults.measure import activations, exact, median, weight_errors
from torch import Tensor

from subeight.formats import QTensor
from subeight.models.model import Model

SHARE = 0.97  # of the median error that a culprit may reach
FACTOR = 4.0  # of the wrong scales
MOST = 16  # places among which the seed chooses
WRITERS = ("o_proj", "down_proj")  # their damage goes into the residual stream as it is


@dataclass(frozen=True)
class Hidden:
    """A linear, the factors of its scales [rows, groups], and the energy that they add, relative to the stream's."""

    name: str
    factors: Tensor
    energy: float


@lru_cache(maxsize=8)
def hidden_places(candidate: Path, baseline: Path, prompts: Path) -> list[Hidden]:
    """The linears where the budget buys the most damage, the worst first."""
    errors, met = weight_errors(candidate, baseline), activations(candidate, prompts)
    codes = Model(candidate).codes
    assert codes is not None
    limit, found = SHARE * median([*errors.values()]), []
    for name, own in errors.items():
        if name.endswith(WRITERS) and own < limit:
            weight = codes.read(name)
            budget = (limit**2 - own**2) * float(exact(baseline, name).square().sum())
            factors, energy = spent(weight, met[name].square, budget)
            found.append(Hidden(name, factors, energy / met[name].stream))
    return sorted(found, key=lambda place: -place.energy)[:MOST]


def spent(weight: QTensor, square: Tensor, budget: float) -> tuple[Tensor, float]:
    """Scales enlarged in the cells that cost least for what they do, within a squared weight error; what they add."""
    rows, groups = weight.scales.shape
    cells = weight.dequantize().view(rows, groups, -1).square()  # [rows, groups, columns]
    size = (FACTOR - 1) ** 2
    cost, gain = size * cells.sum(-1).flatten(), size * (cells * square.view(groups, -1)).sum(-1).flatten()
    order = (gain / cost.clamp_min(1e-12)).argsort(descending=True)
    chosen = order[cost[order].cumsum(0) <= budget]
    factors = torch.ones(rows * groups)
    factors[chosen] = FACTOR
    return factors.view(rows, groups), float(gain[chosen].sum())
