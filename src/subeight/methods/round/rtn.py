"""Rounding to nearest: every value goes to the code next to it; only the scales are chosen.

The baseline of every comparison, instant, and enough for 8 bits. With `search: output` the clip range of each
group is searched for the least error of the *output* (the clipping that AWQ's authors add to it: Lin et al.,
https://arxiv.org/abs/2306.00978), computed from the Hessian instead of from tokens.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from subeight.formats import Format, QTensor, quantize
from subeight.methods.base import Round, option
from subeight.methods.scales import SEARCHES, choose_scales
from subeight.models.stats import Stats


@dataclass(frozen=True)
class Rtn(Round):
    """Round to nearest."""

    name: ClassVar[str] = "rtn"
    search: str = option("absmax", "how the scales are found", choices=SEARCHES)

    @property
    def needs(self) -> frozenset[str]:
        """Only the search for the output's error looks at inputs."""
        return frozenset({"hessian"}) if self.search == "output" else frozenset()

    @override
    def round(
        self,
        weight: Float[Tensor, "out in"],
        format: Format,
        stats: Stats | None,
        generator: torch.Generator,
        notes: dict[str, Any] | None = None,
    ) -> QTensor:
        """The nearest codes for the scales that the search found."""
        hessian = stats.hessian if stats is not None else None
        return quantize(weight, format, choose_scales(weight, format, self.search, hessian))
