"""What a method sees that tunes a whole quantized model: its continuous parameters, and the loss with its gradients."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from typing_extensions import override

from subeight.methods.base import Method

Parameters = Mapping[str, Tensor]


@dataclass(frozen=True)
class ModelTask:
    """One quantized model whose codes are fixed.

    Attributes:
        parameters: what can be tuned, as the loop left it, by name, float32: scales of linears [out, groups], norms and
            biases [n].
        sequences: how many sequences of calibration text there are, each of the same length.
        gradients: the loss (mean KL, baseline || quantized, in nats per token) of the sequences with these numbers, and
            its gradient to every parameter; parameters count as they will be stored.
        loss: the loss alone.
        keep: writes the state of a half-done polish down, which `kept` gives after a kill; None where there is none.
        advance: tells that this share of the work is done too.
    """

    parameters: Mapping[str, Tensor]
    sequences: int
    gradients: Callable[[Parameters, list[int]], tuple[float, dict[str, Tensor]]]
    loss: Callable[[Parameters, list[int]], float]
    keep: Callable[[dict[str, Tensor]], None] = lambda _state: None
    kept: Callable[[], dict[str, Tensor] | None] = lambda: None
    advance: Callable[[float], None] = lambda _share: None


@dataclass(frozen=True)
class Polish(Method):
    """Tunes what is continuous in the whole quantized model; codes and formats stay."""

    move: ClassVar[str] = "polish"
    scope: ClassVar[str] = "model"

    @property
    @override
    def needs(self) -> frozenset[str]:
        """The text itself."""
        return frozenset({"text"})

    def polish(self, task: ModelTask, generator: torch.Generator, notes: dict[str, Any]) -> dict[str, Tensor]:
        """The parameters that are stored in the end; what is worth recording goes to `notes`."""
        raise NotImplementedError
