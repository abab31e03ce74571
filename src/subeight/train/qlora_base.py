"""A quantized checkpoint as one transformers module whose weights are frozen codes: the base that adapters sit on."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from subeight.errors import ModelError
from subeight.formats import QTensor, Scales
from subeight.models.model import Model
from subeight.models.structure import LinearView
from subeight.train.qlora_linear import FrozenEmbedding, FrozenExperts, FrozenLinear, FrozenWeight


@dataclass
class Frozen:
    """The module; its packed parameters by name with how each is stored; why others of the quantized ones are dense."""

    module: PreTrainedModel
    formats: dict[str, str] = field(default_factory=dict)
    dense: dict[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all weights as they are held, adapters left out."""
        plain = {value.data_ptr(): value.nbytes for value in self.module.parameters() if not value.requires_grad}
        held = {id(module): module.nbytes for module in self.module.modules() if isinstance(module, FrozenWeight)}
        return sum(plain.values()) + sum(held.values())


def load_frozen(model: Model, dtype: torch.dtype, device: torch.device | str = "cpu") -> Frozen:
    """Loads a checkpoint, quantized or not, in `dtype`; what has codes stays packed and nothing is trainable.

    Fused experts are packed too, expert by expert. Codes in an order of their own stay dense: `dense` says which.
    """
    found = Frozen(copy.deepcopy(model.skeleton.model))
    module = found.module
    for name, buffer in list(module.named_buffers()):
        owner, _, tail = name.rpartition(".")
        module.get_submodule(owner)._buffers[tail] = buffer.to(device)
    by_parameter: dict[str, list[LinearView]] = {}
    for view in model.views():
        by_parameter.setdefault(view.parameter, []).append(view)
    place = _Place(found, model, dtype, torch.device(device))
    for parameter, views in by_parameter.items():
        if views[0].expert is None:
            place.linear(parameter, views[0])
        else:
            place.experts(parameter, views)
    place.outside()
    place.rest()
    module.config.use_cache = False
    return found


@dataclass
class _Place:
    """Puts weights where they belong."""

    found: Frozen
    model: Model
    dtype: torch.dtype
    device: torch.device

    @property
    def module(self) -> PreTrainedModel:
        return self.found.module

    def linear(self, parameter: str, view: LinearView) -> None:
        weight = self._codes(view.info.name)
        if weight is None:
            return
        owner = parameter.rpartition(".")[0]
        bias = None if view.bias is None else self._plain(view.bias)
        self._set(owner, self._frozen_linear(view.info.name, weight, bias))
        self.found.formats[parameter] = self._words(view.info.name)

    def experts(self, parameter: str, views: list[LinearView]) -> None:
        """The slices of one fused parameter, all of them or none."""
        codes = self.model.codes
        names = [view.info.name for view in views]
        if codes is None or not any(name in codes for name in names):
            return
        reason = self._why_dense(parameter, views)
        if reason is not None:
            self.found.dense[parameter] = reason
            return
        listed: dict[int, list[LinearView]] = {}
        for view in views:
            listed.setdefault(view.expert or 0, []).append(view)
        made = []
        for expert in sorted(listed):
            parts = sorted(listed[expert], key=lambda view: view.rows or (0, 0))
            held = [codes.read(view.info.name).to(self.device) for view in parts]
            made.append([FrozenWeight(weight, self.dtype) for weight in held])
        owner, _, tail = parameter.rpartition(".")
        parent = self.module.get_submodule(owner)
        del parent._parameters[tail]
        setattr(parent, tail, FrozenExperts(made))
        self.found.formats[parameter] = ", ".join(dict.fromkeys(self._words(name) for name in names))

    def _why_dense(self, parameter: str, views: list[LinearView]) -> str | None:
        codes = self.model.codes
        assert codes is not None
        for view in views:
            if view.info.name not in codes:
                return f"{view.info.name} has no codes, and the experts of a parameter are packed together or not"
            if view.transposed or codes.inputs(view.info.name) is not None:
                return f"{parameter} is stored transposed or has rounded inputs"
            try:
                codes.read(view.info.name)
            except ModelError as error:
                return str(error)
        return None

    def outside(self) -> None:
        """Embeddings and head, where they have codes; a tied head runs those of the embeddings."""
        embedding, head = self.module.get_input_embeddings(), self.module.get_output_embeddings()
        names = {id(module): name for name, module in self.module.named_modules()}
        first, last = names[id(embedding)], names.get(id(head))
        tied = self.model.skeleton.tied
        weight = self._codes(first)
        if weight is not None:
            apart = weight.sparse is not None or weight.thin is not None or weight.format.rotated
            if apart or type(embedding) is not nn.Embedding:
                why = "rows of it cannot be dequantized alone" if apart else f"{type(embedding).__name__} computes more"
                self.found.dense[f"{first}.weight"] = why
            else:
                held = FrozenWeight(weight, self.dtype, by_rows=True)
                self._set(first, FrozenEmbedding(held))
                self.found.formats[f"{first}.weight"] = self._words(first)
                if tied and last is not None:
                    self._set(last, FrozenLinear(held))
        if not tied and last is not None and (weight := self._codes(last)) is not None:
            bias = None if getattr(head, "bias", None) is None else self._plain(f"{last}.bias")
            self._set(last, self._frozen_linear(last, weight, bias))
            self.found.formats[f"{last}.weight"] = self._words(last)

    def rest(self) -> None:
        """Everything else as it is stored, in `dtype`; tied parameters are one."""
        read: dict[int, nn.Parameter] = {}
        for name, parameter in list(self.module.named_parameters(remove_duplicate=False)):
            if parameter.is_meta:
                if id(parameter) not in read:
                    read[id(parameter)] = self._plain(name)
                owner, _, tail = name.rpartition(".")
                self.module.get_submodule(owner)._parameters[tail] = read[id(parameter)]

    def _codes(self, name: str) -> QTensor | None:
        codes = self.model.codes
        if codes is None or name not in codes:
            return None
        try:
            return codes.read(name).to(self.device)
        except ModelError as error:
            self.found.dense[f"{name}.weight"] = str(error)
            return None

    def _frozen_linear(self, name: str, weight: QTensor, bias: nn.Parameter | None) -> FrozenLinear:
        assert self.model.codes is not None
        format, scales = self.model.codes.inputs(name) or (None, None)
        static = None if scales is None else Scales(scales.scales.to(self.device))
        return FrozenLinear(FrozenWeight(weight, self.dtype), bias, format, static)

    def _words(self, name: str) -> str:
        assert self.model.codes is not None
        return self.model.codes.format_words(name)

    def _plain(self, name: str) -> nn.Parameter:
        value: Tensor = self.model.weights.read(name).to(self.device, self.dtype)
        return nn.Parameter(value, requires_grad=False)

    def _set(self, name: str, value: nn.Module) -> None:
        owner, _, tail = name.rpartition(".")
        setattr(self.module.get_submodule(owner), tail, value)


def packed_modules(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every module that holds codes in the place of a parameter, by the name that the parameter had."""
    for name, part in module.named_modules():
        if isinstance(part, FrozenLinear | FrozenEmbedding):
            yield f"{name}.weight", part
        elif isinstance(part, FrozenExperts):
            yield name, part
