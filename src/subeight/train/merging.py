"""What becomes of an adapter: merged onto the 16-bit base, merged onto the dequantized one, merged and quantized again
with the same recipe, or kept apart. Which is best differs by model, so all of them are made and measured.

The adapter was trained beside codes, whose error it may have learned to make up for. On the 16-bit base that error is
gone and the correction is not; on the dequantized base the sum is what was trained, in the size of 16 bits; rounding
the sum again can erase a change that is smaller than the grid.
"""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from subeight.engine.shards import checkpoint_config, shell_tensors
from subeight.export import ShardWriter
from subeight.export.dense import Dense
from subeight.models.model import Model
from subeight.models.structure import LinearView
from subeight.models.weights import Weights, saved_as
from subeight.recipes.plan import Plan
from subeight.records.coordinates import fingerprint
from subeight.records.progress import progress
from subeight.train.adapters import Adapter

APART, FULL, DEQUANTIZED, AGAIN = "apart", "16-bit", "dequantized", "requantized"
MODES = (APART, FULL, DEQUANTIZED, AGAIN)
WORDS = {
    APART: "kept apart",
    FULL: "merged onto the 16-bit base",
    DEQUANTIZED: "merged onto the dequantized base",
    AGAIN: "merged and quantized again",
}


@dataclass(frozen=True)
class MergedWeights:
    """A model's weights with an adapter added as they are read, rounded once to the type that is stored."""

    weights: Weights
    adapter: Adapter
    views: dict[str, LinearView]  # by parameter, of the linears that have an adapter
    narrow: torch.dtype | None  # what float32 that was dequantized is rounded to

    def names(self) -> Iterable[str]:
        return self.weights.names()

    def has(self, name: str) -> bool:
        return self.weights.has(name)

    def dtype(self, name: str) -> torch.dtype:
        return self.narrow or self.weights.dtype(name)

    def read(self, name: str) -> Tensor:
        value = self.weights.read(name)
        if name in self.views:
            value = value.float().clone()
            self.views[name].of(value).add_(self.adapter.delta(name.removesuffix(".weight")))
        return value.to(self.dtype(name))


def merged(model: Model, adapter: Adapter, narrow: torch.dtype | None = None) -> Model:
    """`model`, quantized or not, as a plain model with the adapter in its weights; nothing is written or loaded.

    All of it is rounded to `narrow` where that is given: dequantized weights are float32 without.
    """
    made = copy.copy(model)
    made.__dict__.pop("linears", None)
    views = {
        view.parameter: view for view in model.views() if view.parameter.removesuffix(".weight") in adapter.factors
    }
    made.codes = made.quantization = None
    made.weights = MergedWeights(model.weights, adapter, views, narrow)
    weights = fingerprint([model.fingerprint["weights"], adapter.fingerprint])
    made.fingerprint = {**model.fingerprint, "weights": weights}
    return made


def write_dense(model: Model, directory: Path, *, quiet: bool = False) -> None:
    """Writes a 16-bit model block by block as an ordinary checkpoint."""
    count = len(model.skeleton.blocks)
    writer = ShardWriter(directory, Dense(), count + 1, model.skeleton.tied_names)
    with progress(count, "Writing the merged model", "blocks", quiet=quiet) as advance:
        for index in range(count):
            stored = {name: model.weights.read(name) for name in model.skeleton.block_parameters(index)}
            writer.write(index, saved_as(model.skeleton.model, stored))
            advance()
    writer.write(count, shell_tensors(model, {}, Plan("merged", ()), Dense(), {}))
    source = None if model.source.gguf is not None else model.directory
    if source is None:
        model.tokenizer().save_pretrained(directory)
    writer.finish(checkpoint_config(model), (), source)


def stored_bytes(model: Model, dtype: torch.dtype) -> int:
    """Bytes of all parameters of a checkpoint: codes where it has them, `dtype` elsewhere."""
    coded = set(model.codes.names) if model.codes is not None else set()
    total = sum(model.codes.nbytes(name) for name in coded) if model.codes is not None else 0
    inside: dict[str, int] = {}
    for view in model.views():
        if view.info.name in coded:
            inside[view.parameter] = inside.get(view.parameter, 0) + view.info.count
    for name, value in model.skeleton.model.named_parameters():
        if name not in model.skeleton.tied_names and name.removesuffix(".weight") not in coded:
            total += (value.numel() - inside.get(name, 0)) * dtype.itemsize
    return total
