"""A quantized checkpoint as a transformers module whose linears hold their codes and pass gradients to their inputs."""

from __future__ import annotations

import copy
from collections import defaultdict
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from subeight.errors import ModelError
from subeight.formats import Format, QTensor, Scales
from subeight.models.model import Model
from subeight.models.structure import LinearView
from subeight.records.memory import return_freed
from subeight.train.qlora_frozen import FrozenEmbedding, FrozenExperts, FrozenLinear, FrozenWeight


@dataclass
class Base:
    """The module; its packed weights by the name of the linear; why other quantized ones are dense."""

    module: PreTrainedModel
    packed: dict[str, FrozenWeight] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as they are held now; what is shared counts once."""
        plain = {value.data_ptr(): value.nbytes for value in self.module.parameters() if not value.requires_grad}
        return sum(plain.values()) + sum(weight.nbytes for weight in self.packed.values())


def load_base(model: Model, dtype: torch.dtype, device: torch.device | str = "cpu") -> Base:
    """Loads `model` with its quantized linears, experts, embeddings and head packed; the rest in `dtype`, frozen.

    Of one linear at a time codes are unpacked; nothing is dequantized that does not stay so.
    """
    base = Base(copy.deepcopy(model.skeleton.model))
    place = torch.device(device)
    for name, buffer in list(base.module.named_buffers()):
        owner, _, tail = name.rpartition(".")
        base.module.get_submodule(owner)._buffers[tail] = buffer.to(place)
    return_freed()
    _pack_blocks(base, model, dtype, place)
    _pack_ends(base, model, dtype, place)
    for name, parameter in list(base.module.named_parameters(remove_duplicate=False)):
        if parameter.is_meta and name not in model.skeleton.tied_names:
            value = model.weights.read(name).to(place, dtype)
            owner, _, tail = name.rpartition(".")
            base.module.get_submodule(owner)._parameters[tail] = nn.Parameter(value, requires_grad=False)
    if any(parameter.is_meta for parameter in base.module.parameters()):
        base.module.tie_weights()
    base.module.requires_grad_(False)
    base.module.config.use_cache = False
    return_freed()  # what packing went through is no part of the memory that training needs
    return base


def _pack_blocks(base: Base, model: Model, dtype: torch.dtype, device: torch.device) -> None:
    fused: dict[str, list[LinearView]] = defaultdict(list)
    for view in model.views():
        if view.expert is not None:
            fused[view.parameter].append(view)
            continue
        name = view.info.name
        codes = _codes(base, model, name, device)
        if codes is None:
            continue
        module_name = view.parameter.removesuffix(".weight")
        plain = base.module.get_submodule(module_name)
        if not isinstance(plain, nn.Linear | Conv1D):
            base.dense[name] = f"it is the weight of a {type(plain).__name__}"
            continue
        base.packed[name] = FrozenWeight(codes, dtype)
        bias = None if view.bias is None else model.weights.read(view.bias).to(device, dtype)
        how = _inputs(model, name, device)
        linear = FrozenLinear(base.packed[name], bias, how, conv1d=isinstance(plain, Conv1D))
        set_module(base.module, module_name, linear)
    for parameter, views in fused.items():
        _pack_experts(base, model, parameter, views, dtype, device)


def _codes(base: Base, model: Model, name: str, device: torch.device) -> QTensor | None:
    """Codes where the checkpoint has them in a format of ours; where it has others, `base.dense` says why."""
    if model.codes is None or name not in model.codes:
        return None
    try:
        return model.codes.read(name).to(device)
    except ModelError as error:
        base.dense[name] = str(error)
        return None


def _inputs(model: Model, name: str, device: torch.device) -> tuple[Format, Scales | None] | None:
    found = None if model.codes is None else model.codes.inputs(name)
    if found is None:
        return None
    return found[0], None if found[1] is None else Scales(found[1].scales.to(device))


def _pack_experts(
    base: Base, model: Model, parameter: str, views: list[LinearView], dtype: torch.dtype, device: torch.device
) -> None:
    """A fused parameter is packed as a whole or not at all."""
    names = [view.info.name for view in views]
    coded = [name for name in names if model.codes is not None and name in model.codes]
    if not coded:
        return
    reason = None
    if len(coded) < len(names):
        reason = f"only {len(coded)} of the {len(names)} matrices of {parameter} are quantized"
    elif any(view.transposed for view in views):
        reason = f"{parameter} is stored [in, out]"
    elif any(_inputs(model, name, device) is not None for name in names):
        reason = "inputs of fused experts are not rounded here"
    if reason is not None:
        base.dense |= dict.fromkeys(coded, reason)
        return
    parts: dict[int, list[tuple[int, FrozenWeight]]] = defaultdict(list)
    for view in views:
        codes = _codes(base, model, view.info.name, device)
        if codes is None:  # what cannot be said by our formats is alike for all of them
            return
        base.packed[view.info.name] = FrozenWeight(codes, dtype)
        start = 0 if view.rows is None else view.rows[0]
        parts[view.expert or 0].append((start, base.packed[view.info.name]))
    experts = [[part for _, part in sorted(parts[e], key=lambda item: item[0])] for e in sorted(parts)]
    owner, _, tail = parameter.rpartition(".")
    module = base.module.get_submodule(owner)
    del module._parameters[tail]
    module.add_module(tail, FrozenExperts(parameter, experts))


def _pack_ends(base: Base, model: Model, dtype: torch.dtype, device: torch.device) -> None:
    """Embeddings and head with codes of their own; a tied head runs those of the embeddings."""
    module = base.module
    embedding, head = module.get_input_embeddings(), module.get_output_embeddings()
    names = {id(each): name for name, each in module.named_modules()}
    name, head_name = names[id(embedding)], names.get(id(head), "")
    codes = _codes(base, model, name, device)
    if codes is not None and type(embedding) is not nn.Embedding:
        base.dense[name] = f"it is a {type(embedding).__name__}"
    elif codes is not None:
        base.packed[name] = FrozenWeight(codes, dtype, by_rows=True)
        set_module(module, name, FrozenEmbedding(base.packed[name], dtype))
        if head is not None and model.skeleton.tied:
            set_module(module, head_name, FrozenLinear(base.packed[name], _bias(model, head_name, head, device, dtype)))
    own = None if head is None or model.skeleton.tied else _codes(base, model, head_name, device)
    if own is not None:
        base.packed[head_name] = FrozenWeight(own, dtype)
        bias = _bias(model, head_name, head, device, dtype)
        linear = FrozenLinear(base.packed[head_name], bias, _inputs(model, head_name, device))
        set_module(module, head_name, linear)


def _bias(model: Model, name: str, head: nn.Module, device: torch.device, dtype: torch.dtype) -> Tensor | None:
    return None if getattr(head, "bias", None) is None else model.weights.read(f"{name}.bias").to(device, dtype)


def set_module(module: nn.Module, name: str, value: nn.Module) -> None:
    """Puts `value` in the place of the submodule `name`."""
    owner, _, tail = name.rpartition(".")
    setattr(module.get_submodule(owner), tail, value)
