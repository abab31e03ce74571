"""After the loop: what tunes the whole quantized model, and how its shards get what was tuned."""

from __future__ import annotations

import json
import time
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from subeight.engine.job import Settings
from subeight.engine.kept import keep_tensors, kept_tensors
from subeight.engine.lane import Lane
from subeight.engine.rounding import generator_of, polish_of
from subeight.engine.streams import embedded
from subeight.engine.tunable import STEP, Tunable, graph_bytes
from subeight.formats import QTensor
from subeight.methods.polishing import ModelTask, Polish
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.records.files import atomic_write
from subeight.records.memory import free_bytes
from subeight.records.progress import progress


def polish(model: Model, lane: Lane, ids: Tensor, settings: Settings) -> None:
    """Tunes the finished blocks of a lane as its plan says and writes them again; resumes where it was killed."""
    method = polish_of(lane.plan)
    if method is None:
        return
    began = time.monotonic()
    result = lane.folder / "polish" / "result.safetensors"
    tuned = kept_tensors(result)
    if tuned is None:
        tuned = _tuned(model, lane, method, ids, settings)
        keep_tensors(result, tuned)
    for index in range(len(model.skeleton.blocks)):
        lane.rewrite(index, tuned)
    lane.shell_values = {name: tuned[name] for name in model.skeleton.shell_parameters() if name in tuned}
    lane.seconds += time.monotonic() - began


def _tuned(model: Model, lane: Lane, method: Polish, ids: Tensor, settings: Settings) -> dict[str, Tensor]:
    model_in_text = _tunable(model, lane, ids, settings)
    state = lane.folder / "polish" / "state.safetensors"
    notes: dict[str, Any] = {}
    with progress(100, f"Tuning the whole of it by {method.name}", "%", quiet=settings.quiet) as advance:
        task = ModelTask(
            parameters=model_in_text.start(),
            sequences=len(ids),
            gradients=model_in_text.gradients,
            loss=model_in_text.loss,
            keep=partial(keep_tensors, state),
            kept=lambda: _moved_values(kept_tensors(state), settings.device),
            advance=lambda share: advance(100 * share),
        )
        tuned = method.polish(task, generator_of(settings.seed, method.name), notes)
    atomic_write(lane.folder / "polish" / "notes.json", json.dumps({"method": method.name, **notes}))
    return {name: value.cpu() for name, value in tuned.items()}


def _tunable(model: Model, lane: Lane, ids: Tensor, settings: Settings) -> Tunable:
    count = len(model.skeleton.blocks)
    shell = Shell(model, settings.dtype, settings.device)
    targets, head = _final_states(model, shell, ids, settings), shell.head()
    for name, codes in lane.shell_codes().items():
        shell.replace(f"{name}.weight", codes.dequantize())

    def block(index: int) -> Block:
        return Block(model, index, settings.dtype, settings.device, written=lane.written(index))

    size = settings.dtype.itemsize * sum(p.numel() for one in model.skeleton.blocks for p in one.parameters())
    resident = settings.max_memory is None or size <= settings.max_memory
    graphs = graph_bytes(count, STEP * ids.shape[1], model.skeleton.width, settings.dtype)
    return Tunable(
        block=cache(block) if resident else block,
        codes=[_moved(lane.kept_codes(index), settings.device) for index in range(count)],
        shell=shell,
        ids=ids,
        targets=targets,
        heads=(head, shell.head()),
        keeps_graphs=resident and graphs <= (settings.max_memory or free_bytes()) / 2,
    )


def _moved_values(kept: dict[str, Tensor] | None, device: torch.device) -> dict[str, Tensor] | None:
    return None if kept is None else {name: value.to(device) for name, value in kept.items()}


def _moved(codes: dict[str, QTensor], device: torch.device) -> dict[str, QTensor]:
    return {name: code.to(device) for name, code in codes.items()}


def _final_states(model: Model, shell: Shell, ids: Tensor, settings: Settings) -> Tensor:
    """What the baseline's head reads of every sequence [sequences, length, width]."""
    states = list(embedded(shell, ids, settings.batch))
    count = len(model.skeleton.blocks)
    with progress(count, f"Running the baseline {model.label}", "blocks", quiet=settings.quiet) as advance:
        for index in range(count):
            block = Block(model, index, settings.dtype, settings.device)
            states = [block(state, shell.call(tuple(state.shape[:2]), index)).cpu() for state in states]
            advance()
    return torch.cat([shell.finish(state.to(shell.device)).cpu() for state in states])
