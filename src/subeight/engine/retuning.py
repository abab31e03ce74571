"""A quantized model's codes tuned block by block on more text: from its own codes, toward the baseline's blocks.

EfficientQAT's first phase (Block-AP, Chen et al. 2024, https://arxiv.org/abs/2407.11062), by the method that tunes
blocks in `quantize`. Each block reads what the tuned ones before it compute and is held to what the baseline's does.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from subeight.engine.job import Settings
from subeight.engine.kept import keep_codes, kept_codes
from subeight.engine.streams import MemoryStream, embedded
from subeight.engine.tuning import States, tune_block
from subeight.formats import QTensor
from subeight.methods.tune import Tune
from subeight.models.block import Block
from subeight.models.calls import Call
from subeight.models.gauge import Gauge
from subeight.models.model import Model
from subeight.models.shelf import Shelf
from subeight.models.shell import Shell
from subeight.models.structure import LinearView
from subeight.records.progress import progress


@dataclass(frozen=True)
class Versions:
    """A quantized model, and the one that it was made of with the gauge that brings its weights there."""

    start: Model
    baseline: Model
    gauge: Gauge


def retune(
    versions: Versions, names: Collection[str], method: Tune, ids: Tensor, settings: Settings, folder: Path
) -> dict[str, QTensor]:
    """Codes of the linears `names` for the ids [sequences, length]; blocks that `folder` has are not tuned again.

    No block's output is further from the baseline's on the batches that judge than it was.
    """
    start, found = versions.start, dict[str, QTensor]()
    shell, other = Shell(start, settings.dtype, settings.device), _exact_shell(versions, settings)
    stream, exact = (
        MemoryStream(embedded(one, ids, settings.batch), Shelf(settings.max_memory, settings.states))
        for one in (shell, other)
    )
    count = len(start.skeleton.blocks)
    with progress(count, f"Tuning {start.label} block by block", "blocks", quiet=settings.quiet) as advance:
        for index in range(count):
            block = Block(start, index, settings.dtype, settings.device)
            teacher, weights = _exact_block(versions, index, settings)
            targets = [teacher(hidden, call) for hidden, call in exact.batches(other, index)]
            views = [view for view in block.structure.linears() if view.info.name in names]
            path = folder / f"{index:05d}.safetensors"
            if views and not path.is_file():
                states = list(stream.batches(shell, index)), targets
                keep_codes(path, _tuned(start, block, method, views, weights, states, settings))
            for view in views:
                name = view.info.name
                assert start.codes is not None
                found |= kept_codes(path, {name: start.codes.read(name).format})
                block.set_weight(view, found[name].to(settings.device).dequantize())
            if index < count - 1:
                stream.advance(block, shell)
                exact.advance(_in_turn(targets), other)
            advance()
    return found


def _in_turn(outputs: Sequence[Tensor]) -> Callable[[Tensor, Call], Tensor]:
    left = iter(outputs)
    return lambda hidden, call: next(left)  # noqa: ARG005


def _tuned(
    start: Model,
    block: Block,
    method: Tune,
    views: list[LinearView],
    weights: dict[str, Tensor],
    states: States,
    settings: Settings,
) -> dict[str, QTensor]:
    assert start.codes is not None
    own = {view.info.name: start.codes.read(view.info.name).to(settings.device) for view in views}
    codes, _ = tune_block(block, method, views, weights, own, states, settings.seed)
    return codes


def _exact_shell(versions: Versions, settings: Settings) -> Shell:
    shell = Shell(versions.baseline, settings.dtype, settings.device)
    versions.gauge.shell(shell)
    return shell


def _exact_block(versions: Versions, index: int, settings: Settings) -> tuple[Block, dict[str, Tensor]]:
    """The baseline's block in the gauge of the quantized model, and its weights in float32 by their linears' names."""
    block = Block(versions.baseline, index, torch.float32, settings.device)
    versions.gauge.apply(block)
    weights = {view.info.name: block.weight(view).clone() for view in block.structure.linears()}
    block.to(settings.dtype)
    return block, weights
