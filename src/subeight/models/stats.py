"""What a tap gathers about one tensor on its way into the linears that read it.

Methods read these numbers instead of the inputs themselves, so that a calibration of any length costs the
same memory: one square matrix and two rows per InputGroup.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from subeight.formats.rotation import rotate

GATHERED = frozenset({"hessian", "absmax", "absmean", "drift"})


@dataclass
class Stats:
    """Statistics of one InputGroup's input over `count` tokens; what no method needs is None."""

    count: int
    hessian: Float[Tensor, "in in"] | None = None  # 2 / count * X^T X, float32
    absmax: Float[Tensor, " in"] | None = None
    absmean: Float[Tensor, " in"] | None = None
    # 2 / count * (X' - X)^T X, where the baseline reads X' in place of X; None where it reads the same
    drift: Float[Tensor, "in in"] | None = None

    @classmethod
    def from_inputs(cls, inputs: Float[Tensor, "... in"], needs: Collection[str] = GATHERED) -> Stats:
        """The statistics of inputs that fit into memory: tokens in all axes but the last."""
        x = inputs.reshape(-1, inputs.shape[-1]).float()
        count = x.shape[0]
        return cls(
            count=count,
            hessian=(x.T @ x).mul_(2 / max(count, 1)) if "hessian" in needs else None,
            absmax=x.abs().amax(0) if "absmax" in needs else None,
            absmean=x.abs().mean(0) if "absmean" in needs else None,
        )

    def rotated(self) -> Stats:
        """The moments of inputs whose channels are turned as formats with `had` turn them."""

        def turned(moments: Tensor | None) -> Tensor | None:
            return None if moments is None else rotate(rotate(moments).T).T.contiguous()

        return Stats(self.count, hessian=turned(self.hessian), drift=turned(self.drift))

    def rescaled(self, s: Float[Tensor, " in"]) -> Stats:
        """The statistics after a move has divided input channel j by `s[j]`: no new tap is needed."""
        s = s.float()
        return Stats(
            count=self.count,
            hessian=None if self.hessian is None else self.hessian / s / s[:, None],
            absmax=None if self.absmax is None else self.absmax / s.abs(),
            absmean=None if self.absmean is None else self.absmean / s.abs(),
            drift=None if self.drift is None else self.drift / s / s[:, None],
        )
