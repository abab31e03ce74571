"""What a block and the shell become in a checkpoint: codes where quantized, everything else as it is stored."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from subeight.errors import OutputError
from subeight.export.checkpoint import Exporter
from subeight.formats import QTensor
from subeight.models.model import Model
from subeight.models.read.compressed_tensors import METHOD
from subeight.models.structure import LinearView, Structure
from subeight.models.weights import saved_as
from subeight.recipes.plan import Plan

Codes = Mapping[str, QTensor]


def block_tensors(
    model: Model,
    structure: Structure,
    stored: Mapping[str, Tensor],
    codes: Codes,
    plan: Plan,
    exporter: Exporter,
    input_scales: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """The tensors of one block's shard; `stored` are its parameters as they are to be kept."""
    tensors: dict[str, Tensor] = {}
    views: dict[str, list[LinearView]] = {}
    for view in structure.linears():
        views.setdefault(view.parameter, []).append(view)
    for name, value in stored.items():
        inside = [view for view in views.get(name, ()) if view.info.name in codes]
        split = [view for view in views.get(name.removesuffix("_bias"), ()) if view.whole]
        if any(view.info.name in codes for view in split) and exporter.name != "dense":
            _require_split(split[0], exporter)
            tensors |= _one_by_one(name, value, split, codes, plan, exporter, input_scales)
            continue
        if any(view.whole for view in inside):
            value = _filled(value, inside, codes)
        elif inside:
            for view in inside:
                tensors |= _linear(view, codes, plan, exporter, input_scales)
            if len(inside) == len(views[name]):
                continue
        for key, part in saved_as(model.skeleton.model, {name: value}).items():
            if any(view.whole for view in inside) or key.removesuffix(".weight") not in codes:
                tensors[key] = part
    return tensors


def _linear(
    view: LinearView, codes: Codes, plan: Plan, exporter: Exporter, input_scales: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    name = view.info.name
    return exporter.tensors(plan.site(name), codes[name].to("cpu"), None, input_scales.get(name))


def _require_split(view: LinearView, exporter: Exporter) -> None:
    if exporter.name != METHOD:
        raise OutputError(
            f"The checkpoint stores all experts of {view.whole} as one tensor, which {exporter.name} cannot hold "
            f"quantized; export `--to {METHOD}`, where each is stored for itself, or `--to dense`."
        )


def _one_by_one(
    name: str,
    value: Tensor,
    views: Iterable[LinearView],
    codes: Codes,
    plan: Plan,
    exporter: Exporter,
    input_scales: Mapping[str, Tensor],
) -> dict[str, Tensor]:
    """A parameter that the checkpoint stored whole, or its bias [experts, out], expert by expert as engines load it."""
    tensors: dict[str, Tensor] = {}
    for view in views:
        own = view.info.name
        if name != view.parameter:
            start, stop = view.rows or (0, value.shape[1])
            tensors[f"{own}.bias"] = value[view.expert, start : stop : view.step].clone()
        elif own in codes:
            tensors |= _linear(view, codes, plan, exporter, input_scales)
        else:
            tensors[f"{own}.weight"] = view.of(value).clone(memory_format=torch.contiguous_format)
    return tensors


def _filled(value: Tensor, inside: Iterable[LinearView], codes: Codes) -> Tensor:
    """A fused parameter that the checkpoint stores whole, its quantized experts dequantized."""
    value = value.clone()
    for view in inside:
        view.of(value).copy_(codes[view.info.name].dequantize(torch.float32))
    return value


def shell_tensors(
    model: Model, codes: Codes, plan: Plan, exporter: Exporter, values: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """The tensors outside the blocks, `values` in the place of the model's own; a tied head is not written twice."""
    tensors: dict[str, Tensor] = {}
    for name in model.skeleton.shell_parameters():
        if name in model.skeleton.tied_names:
            continue
        linear = name.removesuffix(".weight")
        if linear in codes:
            tensors |= exporter.tensors(plan.site(linear), codes[linear])
        else:
            stored = model.weights.read(name)
            value = values[name].to(stored.dtype) if name in values else stored
            tensors |= saved_as(model.skeleton.model, {name: value})
    return tensors


def checkpoint_config(model: Model) -> dict:
    """The model's config as its quantized checkpoint has it."""
    config = model.skeleton.config.to_dict()
    config["architectures"] = [type(model.skeleton.model).__name__]
    config["dtype"] = str(model.stored_dtype).removeprefix("torch.")
    return config
