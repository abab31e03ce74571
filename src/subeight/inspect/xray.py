"""The x-ray of a whole model: weights and inputs of every block, one block in memory at a time."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.inspect.activations import InputWatch
from subeight.inspect.summary import summarize
from subeight.inspect.weights import x_ray_weight
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.structure import InputGroup
from subeight.probe.watching import run_watched
from subeight.records.progress import progress


def x_ray(
    model: Model,
    ids: Tensor,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    batch: int = 8,
    quiet: bool = False,
) -> dict[str, Any]:
    """The `linears`, `inputs` and `summary` of an inspect record, for token ids [sequences, length].

    Weights are looked at as stored, in float32; inputs as the model computes them in `dtype`.

    Raises:
        ModelError: an input that holds NaN or Inf.
    """
    linears: list[dict[str, Any]] = []
    inputs: list[dict[str, Any]] = []
    spell = speller(model)
    shell = Shell(model, dtype, device)
    hidden = [shell.embed(part).cpu() for part in torch.split(ids, batch)]
    with progress(len(model.skeleton.blocks), f"Inspecting {model.label}", "blocks", quiet=quiet) as advance:
        for index in range(len(model.skeleton.blocks)):
            block = Block(model, index, dtype, device, keep=True)
            linears += [x_ray_weight(view.info, block.original(view)) for view in block.structure.linears()]
            watches = _watch(block, shell, hidden, ids)
            inputs += [watch.describe(ids, spell) for watch in watches]
            advance()
        for info in model.linears:
            if info.block is None and info.kind != "tied":
                weight = model.weights.read(f"{info.name}.weight").to(device)
                linears.append(x_ray_weight(info, weight))
    return {"linears": linears, "inputs": inputs, "summary": summarize(linears, inputs, ids.numel())}


def _watch(block: Block, shell: Shell, hidden: list[Tensor], ids: Tensor) -> list[InputWatch]:
    """Runs the block over all batches, replacing every hidden state by its output."""
    watches = {group.name: InputWatch(group, ids.numel(), block) for group in block.structure.groups}
    start = 0

    def shown(group: InputGroup, rows: Tensor, cells: Tensor | None) -> None:
        watches[group.name].add(rows, None if cells is None else cells + start)

    for index, value in enumerate(hidden):
        call = shell.call(tuple(value.shape[:2]), block.index)
        hidden[index] = run_watched(block, value, call, shown).cpu()
        start += value.shape[0] * value.shape[1]
    return list(watches.values())


def speller(model: Model) -> Callable[[int], str]:
    """Token ids as readable text; by number where the model comes without a tokenizer."""
    try:
        tokenizer = model.tokenizer()
    except ModelError:
        return lambda token: f"token {token}"
    return lambda token: repr(tokenizer.decode([token]))
