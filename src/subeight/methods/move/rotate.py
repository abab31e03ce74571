"""Rotate: the residual stream and the values of each head in another basis, in which no channel stands out.

Ashkboos et al. 2024 (QuaRot), https://arxiv.org/abs/2404.00456: R1 and R2, folded into the weights, so that the
checkpoint is an ordinary one. A tied head gets weights of its own (its bytes are counted), since the last norm moves
into it. The rotations carried out while running (R4, in front of down_proj) are formats: `int4:token:had`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from subeight.methods.base import Method, option


@dataclass(frozen=True)
class Rotate(Method):
    """Turn the stream so that outliers are shared by all channels."""

    name: ClassVar[str] = "rotate"
    move: ClassVar[str] = "move"
    scope: ClassVar[str] = "model"
    position: ClassVar[str] = "rotation"
    values: bool = option(True, "turn the values inside each head too (R2)")
