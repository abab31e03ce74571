"""A quantized checkpoint as one transformers module whose linears run their codes, for `generate` and all else."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

import torch
from torch import nn
from transformers import PreTrainedModel

from subeight.errors import ModelError
from subeight.formats import Scales
from subeight.kernels.attention import use_plain_products
from subeight.kernels.linear import QuantLinear
from subeight.models.model import Model


@dataclass
class Packed:
    """The module, its packed linears by name, and why others of the quantized ones are dense."""

    module: PreTrainedModel
    linears: dict[str, QuantLinear] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as they are held."""
        plain = {value.data_ptr(): value.nbytes for value in self.module.parameters()}
        return sum(plain.values()) + sum(linear.nbytes for linear in self.linears.values())

    @property
    def warnings(self) -> list[str]:
        """One for each reason why quantized linears stay dense."""
        found: dict[str, list[str]] = {}
        for name, reason in self.dense.items():
            found.setdefault(reason.replace(name, "it"), []).append(name)
        return [f"{len(names)} quantized linears stay dense ({names[0]}, ...): {why}" for why, names in found.items()]


def load_packed(model: Model, dtype: torch.dtype, device: torch.device | str = "cpu") -> Packed:
    """Loads `model` in `dtype`, quantized linears as `QuantLinear`; nothing of them is ever dequantized whole.

    Fused experts, and codes in an order of their own, stay dense: `dense` says which.
    """
    found = Packed(copy.deepcopy(model.skeleton.model))
    module = found.module
    kept = {name for index in range(len(model.skeleton.blocks)) for name in model.skeleton.block_buffers(index)}
    for name, buffer in list(module.named_buffers()):
        owner, _, tail = name.rpartition(".")
        value = model.weights.read(name).to(buffer.dtype) if name in kept and model.weights.has(name) else buffer
        module.get_submodule(owner)._buffers[tail] = value.to(device)
    codes_of = _replace_linears(found, model, torch.device(device), dtype)
    read: dict[int, nn.Parameter] = {}  # tied parameters are one
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        if parameter.is_meta:
            if id(parameter) not in read:
                value = model.weights.read(name).to(device, dtype)
                read[id(parameter)] = nn.Parameter(value, requires_grad=False)
            owner, _, tail = name.rpartition(".")
            module.get_submodule(owner)._parameters[tail] = read[id(parameter)]
    _replace_head(found, model, codes_of)
    use_plain_products(module)
    module.eval()
    module.generation_config = model.generation_config() or module.generation_config
    return found


def _replace_linears(found: Packed, model: Model, device: torch.device, dtype: torch.dtype) -> set[str]:
    """Puts a `QuantLinear` where the checkpoint has codes for a linear of its own; returns all that has codes."""
    codes = model.codes
    if codes is None:
        return set()
    for view in model.views():
        name = view.info.name
        if name not in codes:
            continue
        if view.parameter != f"{name}.weight":
            found.dense[name] = "it is a slice of a fused parameter" + _unrounded(model, name)
            continue
        linear = _packed(found, model, name, device)
        if linear is not None:
            plain = found.module.get_submodule(name)
            if plain.bias is not None:
                linear.bias = nn.Parameter(model.weights.read(f"{name}.bias").to(device, dtype), requires_grad=False)
            _set_module(found.module, name, linear)
    return set(codes.names)


def _packed(found: Packed, model: Model, name: str, device: torch.device) -> QuantLinear | None:
    assert model.codes is not None
    try:
        weight = model.codes.read(name)
    except ModelError as error:
        found.dense[name] = str(error) + _unrounded(model, name)
        return None
    inputs = model.codes.inputs(name)
    format, scales = (None, None) if inputs is None else inputs
    static = None if scales is None else Scales(scales.scales.to(device))
    found.linears[name] = QuantLinear(weight.to(device), inputs=format, scales=static)
    return found.linears[name]


def _unrounded(model: Model, name: str) -> str:
    """A linear that stays dense reads its inputs as they are: told where the checkpoint rounds them."""
    inputs = None if model.codes is None else model.codes.inputs(name)
    return "" if inputs is None else f"; its inputs are not rounded to {inputs[0]} here"


def _replace_head(found: Packed, model: Model, codes_of: set[str]) -> None:
    """A head with codes of its own, or those of the embeddings that it is tied to, runs them too."""
    head, embedding = found.module.get_output_embeddings(), found.module.get_input_embeddings()
    names = {id(module): name for name, module in found.module.named_modules()}
    stored = names.get(id(embedding if model.skeleton.tied else head))
    if head is None or stored not in codes_of or getattr(head, "bias", None) is not None:
        return
    linear = _packed(found, model, stored, embedding.weight.device)
    if linear is not None:
        _set_module(found.module, names[id(head)], linear)


def _set_module(module: nn.Module, name: str, value: nn.Module) -> None:
    owner, _, tail = name.rpartition(".")
    setattr(module.get_submodule(owner), tail, value)
