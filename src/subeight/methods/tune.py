"""What a method sees that rounds all linears of a block together: the block as a function of their weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor
from typing_extensions import override

from subeight.formats import Format, QTensor
from subeight.methods.base import Method

Weights = Mapping[str, Float[Tensor, "out in"]]


@dataclass(frozen=True)
class BlockTask:
    """One block to be rounded, with what the quantized model before it computes.

    Attributes:
        weights: what is rounded, by the linear's name [out, in], float32.
        start: codes of each to start from, with the formats that they are to have.
        batches: how many batches of calibration text there are.
        gradients: for batch n with these weights in place, the squared distance of the block's output from the
            baseline's as a share of the token's square, the mean over tokens, and its gradient to every weight.
        loss: the distance alone.
    """

    weights: Weights
    start: Mapping[str, QTensor]
    batches: int
    gradients: Callable[[Weights, int], tuple[float, dict[str, Tensor]]]
    loss: Callable[[Weights, int], float]

    def formats(self) -> dict[str, Format]:
        """The format of each weight."""
        return {name: codes.format for name, codes in self.start.items()}


@dataclass(frozen=True)
class Tune(Method):
    """Chooses the codes of all linears of a block together, by the block's output.

    `start` names the method that rounds them first, one by one.
    """

    move: ClassVar[str] = "round"
    scope: ClassVar[str] = "block"
    start: str

    @property
    @override
    def needs(self) -> frozenset[str]:
        """The states of the text themselves."""
        return frozenset({"states"})

    def tune(self, task: BlockTask, generator: torch.Generator, notes: dict[str, Any]) -> dict[str, QTensor]:
        """Codes for every weight of the task; what is worth recording goes to `notes`."""
        raise NotImplementedError
