"""A fixed rotation of the columns, of any width: what `had` in a format means.

A width of m 2^k columns is turned by Q (x) H: the Hadamard matrix of 2^k inside every run of 2^k columns, a random
orthogonal Q of m across the runs, and random signs before both. It spreads an outlier of one column over all (Chee et
al. 2023, https://arxiv.org/abs/2307.13304; Ashkboos et al. 2024, https://arxiv.org/abs/2404.00456). The same width
always has the same rotation, so it is not stored.
"""

from functools import lru_cache

import torch
from torch import Tensor

_SEED = 20240404
_LARGEST = 512  # of a Hadamard matrix: larger ones mix no better and cost more


def rotate(matrix: Tensor) -> Tensor:
    """The last dimension turned, float32: norms and products of rows stay."""
    signs, across, inside = _parts(matrix.shape[-1], matrix.device)
    runs = (matrix.to(torch.float32) * signs).unflatten(-1, (len(across), len(inside)))
    return torch.einsum("...mk,mn,kl->...nl", runs, across, inside).flatten(-2)


def unrotate(matrix: Tensor) -> Tensor:
    """The reverse of `rotate`."""
    signs, across, inside = _parts(matrix.shape[-1], matrix.device)
    runs = matrix.to(torch.float32).unflatten(-1, (len(across), len(inside)))
    return torch.einsum("...nl,mn,kl->...mk", runs, across, inside).flatten(-2) * signs


def turned_importance(importance: Tensor) -> Tensor:
    """What the turned columns [width] count where the others count this much: the diagonal of the turned metric."""
    return (rotate(torch.eye(len(importance), device=importance.device)).square() * importance[:, None]).sum(0)


@lru_cache(maxsize=16)
def _parts(width: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Signs [width], the orthogonal matrix across runs [m, m], the Hadamard matrix inside [2^k, 2^k]."""
    size = min(width & -width, _LARGEST)
    generator = torch.Generator().manual_seed(_SEED + width)
    signs = torch.randint(0, 2, (width,), generator=generator) * 2.0 - 1.0
    draw = torch.randn(width // size, width // size, generator=generator, dtype=torch.float64)
    across, upper = torch.linalg.qr(draw)
    across = across * upper.diagonal().sign()  # the decomposition that every implementation agrees on
    inside = torch.ones(1, 1, dtype=torch.float64)
    while len(inside) < size:
        inside = torch.cat([torch.cat([inside, inside], 1), torch.cat([inside, -inside], 1)])
    inside = inside / size**0.5
    return signs.to(device), across.float().to(device), inside.float().to(device)
