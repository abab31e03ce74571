"""What a tap gathers about one tensor on its way into the linears that read it.

Methods read these numbers instead of the inputs themselves, so that a calibration of any length costs the
same memory: one square matrix and two rows per InputGroup. In the second moments a token counts with its length, not
its square: a few massive tokens, which the norm behind them brings down to the size of all others, would decide alone.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from subeight.formats.rotation import rotate

GATHERED = frozenset({"hessian", "absmax", "absmean", "drift"})


@dataclass
class Stats:
    """Statistics of one InputGroup's input over `count` tokens; what no method needs is None."""

    count: int
    hessian: Float[Tensor, "in in"] | None = None  # 2 / sum(c) * X^T diag(c) X, c: token_counts, float32
    absmax: Float[Tensor, " in"] | None = None
    absmean: Float[Tensor, " in"] | None = None
    # 2 / sum(c) * (X' - X)^T diag(c) X, where the baseline reads X' in place of X; None where it reads the same
    drift: Float[Tensor, "in in"] | None = None
    weight: float = 0.0  # sum(c)

    @classmethod
    def from_inputs(cls, inputs: Float[Tensor, "... in"], needs: Collection[str] = GATHERED) -> Stats:
        """The statistics of inputs that fit into memory: tokens in all axes but the last."""
        x = inputs.reshape(-1, inputs.shape[-1]).float()
        counts = token_counts(x)
        weight = float(counts.sum(dtype=torch.float64))
        return cls(
            count=x.shape[0],
            hessian=(x.T @ (counts * x)).mul_(2 / (weight or 1)) if "hessian" in needs else None,
            absmax=x.abs().amax(0) if "absmax" in needs else None,
            absmean=x.abs().mean(0) if "absmean" in needs else None,
            weight=weight,
        )

    def rotated(self) -> Stats:
        """The moments of inputs whose channels are turned as formats with `had` turn them."""

        def turned(moments: Tensor | None) -> Tensor | None:
            return None if moments is None else rotate(rotate(moments).T).T.contiguous()

        return Stats(self.count, hessian=turned(self.hessian), drift=turned(self.drift), weight=self.weight)

    def rescaled(self, s: Float[Tensor, " in"]) -> Stats:
        """The statistics after a move has divided input channel j by `s[j]`; tokens count as they did before."""
        s = s.float()
        return Stats(
            count=self.count,
            hessian=None if self.hessian is None else self.hessian / s / s[:, None],
            absmax=None if self.absmax is None else self.absmax / s.abs(),
            absmean=None if self.absmean is None else self.absmean / s.abs(),
            drift=None if self.drift is None else self.drift / s / s[:, None],
            weight=self.weight,
        )


def token_counts(x: Float[Tensor, "tokens in"]) -> Float[Tensor, "tokens 1"]:
    """What each token counts: one over its root mean square, as the nearest power of two; nothing where it is zero.

    A power of two, so that products of bf16 values stay exact.
    """
    square = x.float().square().mean(1, keepdim=True)
    mantissa, exponent = torch.frexp(square.sqrt())
    nearest = exponent - (mantissa < 0.5**0.5).to(exponent.dtype)
    return torch.where(square > 0, torch.ldexp(torch.ones_like(square), -nearest.clamp(-100, 100)), 0.0)
