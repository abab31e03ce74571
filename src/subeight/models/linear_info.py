"""What is known about a linear before its weights are read: its name, its place and who shares its input."""

from dataclasses import dataclass
from typing import Protocol

import torch

from subeight.formats import Format


@dataclass(frozen=True)
class LinearInfo:
    """One 2-D weight that a recipe can decide about.

    `name` is the checkpoint's name without ".weight" ("model.layers.3.self_attn.q_proj", "lm_head"), `shape` is
    (out rows, in columns), and `block` the index of its decoder layer, None outside the layers. Linears that read
    the same tensor share `group`, the name of their InputGroup; those that vLLM fuses into one share `fusion`.
    """

    name: str
    shape: tuple[int, int]
    block: int | None
    group: str
    fusion: str | None
    kind: str  # "linear" | "conv1d" | "expert" | "head" | "tied" (to the embedding) | "embedding" | "router"
    dtype: torch.dtype  # of the checkpoint
    whole: bool = False  # a part of one tensor in which the checkpoint stores all experts

    @property
    def count(self) -> int:
        """How many weights it holds."""
        return self.shape[0] * self.shape[1]

    @property
    def expert(self) -> str | None:
        """The expert that it is a part of ("model.layers.3.mlp.experts.7"), however the checkpoint stores it."""
        if self.kind != "expert":
            return None
        parent, _, tail = self.name.rpartition(".")
        return f"{parent.rpartition('.')[0]}.{tail}" if tail.isdigit() else parent


class Decided(Protocol):
    """A linear and what was decided about it: what readers and exporters need to know of a plan's Site."""

    @property
    def linear(self) -> LinearInfo:
        """Which linear."""

    @property
    def weights(self) -> Format | None:
        """The format of its weights, None where they are kept as they are."""

    @property
    def inputs(self) -> Format | None:
        """The format of its inputs, None where they are left as they are."""

    @property
    def apart(self) -> bool:
        """Whether values or a correction in 16 bits stand beside its codes."""
