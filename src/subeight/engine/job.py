"""What one quantization is: a plan, where its checkpoint goes, and how it is carried out."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from subeight.export.checkpoint import Exporter
from subeight.recipes.plan import Plan

CALIBRATION_BATCH = 4  # sequences of one step of what is tuned, and of one forward


@dataclass(frozen=True)
class Job:
    """One plan to be carried out, and the directory that becomes its checkpoint."""

    plan: Plan
    directory: Path
    exporter: Exporter


@dataclass(frozen=True)
class Settings:
    """How the loop runs; none of it is part of the recipe, but batch and threads change the last bits.

    `max_memory` bounds the Hessians that are gathered at once, and as well the activations, in bytes: others lie in
    `states` while the loop runs. `scratch` keeps all of them on disk, where they survive a kill. `forced` shows all
    tokens to every expert of a mixture.
    """

    dtype: torch.dtype = torch.float32
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    batch: int = CALIBRATION_BATCH
    seed: int = 0
    max_memory: int | None = None
    scratch: Path | None = None
    quiet: bool = False
    states: Path | None = None
    forced: bool = False


@dataclass(frozen=True)
class Outcome:
    """What happened to one linear."""

    name: str
    weight_error: float
    output_error: float | None
    notes: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "weight_error": self.weight_error,
            "output_error": self.output_error,
            "notes": self.notes,
        }
