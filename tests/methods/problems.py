"""Small problems for the oracles, as float32 tensors and as the same numbers in float64."""

import math
from dataclasses import dataclass

import numpy as np
import torch

from subeight.formats import Format, Scales
from subeight.models.stats import Stats
from tests.oracles.models_hessian import hessian


@dataclass(frozen=True)
class Problem:
    weight: torch.Tensor
    inputs: torch.Tensor

    @property
    def stats(self) -> Stats:
        return Stats.from_inputs(self.inputs)

    @property
    def hessian(self) -> np.ndarray:
        return hessian(self.inputs).numpy()


def make(rows: int = 10, width: int = 72, seed: int = 0, tokens: int = 300) -> Problem:
    """Correlated inputs of very different loudness, so that order, damping and feedback all matter."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator) / math.sqrt(width)
    loudness = torch.exp(torch.randn(width, generator=generator))
    mixing = torch.eye(width) + torch.randn(width, width, generator=generator) / math.sqrt(width)
    inputs = torch.randn(tokens, width, generator=generator) @ mixing * loudness
    return Problem(weight, alike(inputs))


def alike(inputs: torch.Tensor) -> torch.Tensor:
    """Tokens of one length: all count alike, and a plain sum over them is what the Hessian holds."""
    return inputs / inputs.square().mean(1, keepdim=True).sqrt()


def plain(scales: Scales, format: Format, width: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Scales and zero points [out, groups] in float64, as numbers, and columns per group."""
    effective = scales.effective.double().numpy()
    zeros = np.zeros_like(effective) if scales.zeros is None else scales.zeros.double().numpy()
    return effective, zeros, format.group or width


def output_error(weight: torch.Tensor, rounded: torch.Tensor, inputs: torch.Tensor) -> float:
    """How far the outputs move, as a share of themselves."""
    exact = inputs.double() @ weight.double().T
    return float((inputs.double() @ rounded.double().T - exact).square().sum() / exact.square().sum())
