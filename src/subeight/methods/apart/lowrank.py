"""Low rank: a thin product in 16 bits that makes up for what rounding lost where the inputs are loud.

Zhang et al. 2024 (LQER), https://arxiv.org/abs/2402.02446, scales the columns of the error by the inputs' size before
the singular values are cut; Liu et al. 2024 (EoRA), https://arxiv.org/abs/2410.21271, turns it into the eigenspace of
the inputs, which is the best that any product of this rank can do for the outputs on the calibration text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from subeight.errors import InputError
from subeight.formats import Thin
from subeight.formats.apart import thin_bits
from subeight.methods.base import Fit, option
from subeight.models.stats import Stats

SMALLEST = 1e-6  # of the largest direction of the inputs: what is counted as never fed


@dataclass(frozen=True)
class LowRank(Fit):
    """Correct the outputs by a thin product."""

    name: ClassVar[str] = "lowrank"
    rank: int = option(16, "rank of the correction, at most the linear's own", low=1, high=65536)
    metric: str = option(
        "eigen",
        "what counts: the error of the outputs (EoRA), of the weights, each column as loud as its inputs (LQER), or of "
        "the weights alone",
        choices=("eigen", "diagonal", "weights"),
    )

    @property
    @override
    def needs(self) -> frozenset[str]:
        return frozenset() if self.metric == "weights" else frozenset({"hessian"})

    @override
    def extra_bits(self, shape: tuple[int, int]) -> float:
        return thin_bits(shape, self._rank(shape))

    @override
    @torch.no_grad()
    def fit(self, lost: Float[Tensor, "out in"], stats: Stats | None) -> Thin:
        turn, back = self._metric(lost, stats)
        rank = self._rank((lost.shape[0], lost.shape[1]))
        u, s, v = torch.linalg.svd(lost.double() @ turn, full_matrices=False)
        root = s[:rank].sqrt()
        return Thin.of((u[:, :rank] * root).float(), ((root[:, None] * v[:rank]) @ back).float())

    def _rank(self, shape: tuple[int, int]) -> int:
        return min(self.rank, *shape)

    def _metric(self, lost: Tensor, stats: Stats | None) -> tuple[Tensor, Tensor]:
        """S and its inverse, with S S^T the inputs' second moments as far as they count."""
        width = lost.shape[1]
        if self.metric == "weights":
            one = torch.eye(width, dtype=torch.float64, device=lost.device)
            return one, one
        if stats is None or stats.hessian is None:
            raise InputError("lowrank was called without a Hessian; give calibration text or choose metric: weights.")
        hessian = stats.hessian.double()
        if self.metric == "diagonal":
            loud = hessian.diagonal().clamp_min(SMALLEST * float(hessian.diagonal().max()) or 1.0).sqrt()
            return torch.diag(loud), torch.diag(1 / loud)
        values, vectors = torch.linalg.eigh(hessian)
        root = values.clamp_min(SMALLEST * float(values[-1]) or 1.0).sqrt()
        return vectors * root, (vectors / root).T
