"""What a block and the shell become in a checkpoint: codes where quantized, everything else as it is stored."""

from collections.abc import Iterable, Mapping

import torch
from torch import Tensor

from subeight.errors import OutputError
from subeight.export.checkpoint import Exporter
from subeight.formats import QTensor
from subeight.models.model import Model
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
        if any(view.whole for view in inside):
            value = _filled(value, inside, codes, exporter)
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


def _filled(value: Tensor, inside: Iterable[LinearView], codes: Codes, exporter: Exporter) -> Tensor:
    """A fused parameter that the checkpoint stores whole, its quantized experts dequantized."""
    if exporter.name != "dense":
        name = next(iter(inside)).whole
        raise OutputError(
            f"The checkpoint stores all experts of {name} as one tensor, which {exporter.name} cannot hold quantized; "
            "export `--to dense`."
        )
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
