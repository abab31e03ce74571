"""What a method sees that rounds all linears of a block together: the block as a function of their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from subeight.formats import Format, QTensor
from subeight.methods.base import Method


@dataclass(frozen=True)
class BlockTask:
    """One block to be rounded.

    Attributes:
        weights: what is rounded, by the linear's name [out, in], float32.
        formats: the format of each.
        targets: the baseline's output for each batch of calibration text [rows, length, width].
        output: the block's own output for batch n with these weights in place, differentiable in them; it reads what
            the quantized model before it computes.
    """

    weights: Mapping[str, Float[Tensor, "out in"]]
    formats: Mapping[str, Format]
    targets: Sequence[Float[Tensor, "rows length width"]]
    output: Callable[[Mapping[str, Tensor], int], Float[Tensor, "rows length width"]]

    def loss(self, weights: Mapping[str, Tensor], batch: int) -> Float[Tensor, ""]:
        """The mean squared distance from the baseline's output."""
        return (self.output(weights, batch).float() - self.targets[batch].float()).square().mean()


@dataclass(frozen=True)
class Tune(Method):
    """Chooses the codes of all linears of a block together, by the block's output."""

    move: ClassVar[str] = "round"
    scope: ClassVar[str] = "block"

    @property
    @override
    def needs(self) -> frozenset[str]:
        """The states of the text themselves."""
        return frozenset({"states"})

    def tune(self, task: BlockTask, generator: torch.Generator, notes: dict[str, Any]) -> dict[str, QTensor]:
        """Codes for every weight of the task; what is worth recording goes to `notes`."""
        raise NotImplementedError
