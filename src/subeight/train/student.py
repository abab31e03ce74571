"""The model that learns: a quantized checkpoint whose linears are trained through their rounding, and its norms."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from transformers import PreTrainedModel

from subeight.errors import ModelError
from subeight.formats import QTensor
from subeight.models.block import Block
from subeight.models.gauge import Gauge
from subeight.models.model import Model
from subeight.models.whole import Whole
from subeight.train.fake import FakeLinear, TrainedWeight
from subeight.train.shards import whole


@dataclass
class Student:
    """The module, its trained weights by the names of their linears, and what holds its trained vectors by theirs."""

    module: PreTrainedModel
    weights: dict[str, TrainedWeight] = field(default_factory=dict)
    holders: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def vectors(self) -> dict[str, nn.Parameter]:
        """The trained vectors as they are now: sharding puts others in their places."""
        return {name: holder.get_parameter("original") for name, holder in self.holders.items()}

    def keep_codes(self) -> None:
        """Scales and norms are trained alone from now on."""
        for weight in self.weights.values():
            weight.position.requires_grad_(False)

    def stored(self) -> dict[str, QTensor]:
        """The codes and scales that are written."""
        return {name: weight.stored().to("cpu") for name, weight in self.weights.items()}

    def values(self) -> dict[str, Tensor]:
        """The vectors that are written."""
        return {name: whole(value.detach()).float().cpu() for name, value in self.vectors.items()}


def student(
    start: Model,
    baseline: Model | None,
    gauge: Gauge | None,
    trained: Collection[str],
    dtype: torch.dtype,
    device: torch.device,
) -> Student:
    """`start` ready to be trained: the linears named, and with them the norms.

    Positions begin where its codes are, a little toward the baseline's weights brought into its gauge, if given.

    Raises:
        ModelError: it is not quantized, or experts are fused parameters, which are no modules.
    """
    codes = start.codes
    if codes is None:
        raise ModelError(f"{start.label} is not quantized; quantize it first.")
    found = Student(Whole(start, dtype, device).module)
    for parameter in found.module.parameters():
        parameter.requires_grad_(False)
    for index in range(len(start.skeleton.blocks)):
        exact = None if baseline is None else _aligned(baseline, index, gauge)
        for view in start.structures[index].linears():
            name = view.info.name
            if name not in codes:
                continue
            if view.parameter != f"{name}.weight":
                raise ModelError(
                    f"{name} is a slice of a fused parameter; `train qat` trains linears that are modules."
                )
            plain = found.module.get_submodule(name)
            weight: TrainedWeight | Tensor = plain.weight.detach()
            if name in trained:
                near = None if exact is None else exact.weight(view).to(device)
                weight = found.weights[name] = TrainedWeight(codes.read(name).to(device), dtype, near)
            owner, _, tail = name.rpartition(".")
            linear = FakeLinear(weight, plain.bias, codes.inputs(name), dtype)
            setattr(found.module.get_submodule(owner), tail, linear)
    _train_vectors(found)
    return found


def _aligned(baseline: Model, index: int, gauge: Gauge | None) -> Block:
    block = Block(baseline, index, torch.float32)
    if gauge is not None:
        gauge.apply(block)
    return block


class _AsStored(nn.Module):
    """A vector in float32, as the type that it is stored in has it."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, value: Tensor) -> Tensor:
        return value.to(self.dtype)


def _train_vectors(found: Student) -> None:
    """Norms, in float32, from now on."""
    for name, module in list(found.module.named_modules()):
        for tail, value in list(module.named_parameters(recurse=False)):
            if value.dim() != 1 or isinstance(module, FakeLinear | nn.Linear):
                continue
            setattr(module, tail, nn.Parameter(value.detach().float()))
            parametrize.register_parametrization(module, tail, _AsStored(value.dtype), unsafe=True)
            found.holders[f"{name}.{tail}"] = module.parametrizations[tail]
