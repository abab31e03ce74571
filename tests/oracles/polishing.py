"""KL of two whole models in float64, and its gradient to a quantized model's scales and vectors, by plain autograd."""

from collections.abc import Mapping

import torch
from torch import Tensor

from subeight.formats import QTensor
from subeight.formats.rotation import rotate


def divergence(baseline: torch.nn.Module, candidate: torch.nn.Module, ids: Tensor) -> Tensor:
    """Mean over tokens of sum p (log p - log q)."""
    with torch.no_grad():
        p = torch.log_softmax(baseline(input_ids=ids, use_cache=False).logits.double(), -1)
    q = torch.log_softmax(candidate(input_ids=ids, use_cache=False).logits.double(), -1)
    return (p.exp() * (p - q)).sum(-1).mean()


def gradients(
    baseline: torch.nn.Module, candidate: torch.nn.Module, ids: Tensor, codes: Mapping[str, QTensor]
) -> dict[str, Tensor]:
    """By parameter: `<linear>.scales` for the codes, else the parameter's own name (vectors only)."""
    parameters = dict(candidate.named_parameters())
    slopes = torch.autograd.grad(divergence(baseline, candidate, ids), list(parameters.values()), allow_unused=True)
    by_name = dict(zip(parameters, slopes, strict=True))
    found = {name: slope for name, slope in by_name.items() if slope is not None and slope.dim() == 1}
    for name, weight in codes.items():
        slope, width = by_name[f"{name}.weight"], weight.format.group or weight.shape[1]
        assert slope is not None
        if weight.format.rotated:  # W = C R^T, so the slope of C is that of W times R
            slope = slope @ rotate(torch.eye(weight.shape[1])).double()
        result = torch.zeros(weight.scales.shape, dtype=torch.float64)
        for row in range(weight.shape[0]):
            for column in range(weight.shape[1]):
                code = float(weight.format.values.values(weight.codes[row : row + 1, column : column + 1]))
                zero = 0 if weight.zeros is None else int(weight.zeros[row, column // width])
                result[row if len(result) > 1 else 0, column // width] += slope[row, column] * (code - zero)
        found[f"{name}.scales"] = result
    return found
