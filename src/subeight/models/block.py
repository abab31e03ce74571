"""One decoder layer with its weights: loaded, callable, and its linears readable and writable as 2-D views."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from subeight.formats import Format, Scales, fake_quantize
from subeight.models.calls import Call
from subeight.models.model import Model
from subeight.models.read.quantized import Codes
from subeight.models.structure import LinearView, Structure
from subeight.models.watch import PRODUCTS
from subeight.models.weights import Weights


@dataclass(frozen=True)
class Written:
    """Another source of a block's weights than the model's own: a shard that was just quantized."""

    weights: Weights
    codes: Codes | None


class Block:
    """Block `index` of a model. It computes in `dtype`; `stored` keeps the weights as the checkpoint has them."""

    def __init__(
        self,
        model: Model,
        index: int,
        dtype: torch.dtype,
        device: torch.device | str = "cpu",
        *,
        keep: bool = False,
        written: Written | None = None,
    ) -> None:
        self.index = index
        self.dtype = dtype
        self.device = torch.device(device)
        self.structure: Structure = model.structures[index]
        self.prefix = model.skeleton.block_name(index)
        self.module: nn.Module = copy.deepcopy(model.skeleton.blocks[index])
        self.stored: dict[str, Tensor] = {}
        source = written or Written(model.weights, model.codes)
        for name in model.skeleton.block_parameters(index):
            value = source.weights.read(name)
            if keep:
                self.stored[name] = value
            self._set(name, value.to(self.device, dtype))
        for name in (name for name in model.skeleton.block_buffers(index) if source.weights.has(name)):
            value = source.weights.read(name)
            if keep:
                self.stored[name] = value
            self._set_buffer(name, value)
        for name, buffer in list(self.module.named_buffers()):
            owner, _, tail = name.rpartition(".")
            self.module.get_submodule(owner)._buffers[tail] = buffer.to(self.device)
        self._inputs = _input_formats(source.codes, self.structure, self.device)

    def _set(self, name: str, value: Tensor) -> None:
        owner, _, tail = name.removeprefix(f"{self.prefix}.").rpartition(".")
        self.module.get_submodule(owner)._parameters[tail] = nn.Parameter(value, requires_grad=False)

    def _set_buffer(self, name: str, value: Tensor) -> None:
        owner, _, tail = name.removeprefix(f"{self.prefix}.").rpartition(".")
        module = self.module.get_submodule(owner)
        module._buffers[tail] = value.to(module.get_buffer(tail).dtype)

    def to(self, dtype: torch.dtype) -> None:
        """Computes in another dtype from now on."""
        self.dtype = dtype
        for name in self.parameters():
            self._set(name, self.parameter(name).to(dtype))

    def parameters(self) -> list[str]:
        """Full names of the block's parameters."""
        return [f"{self.prefix}.{name}" for name, _ in self.module.named_parameters()]

    def parameter(self, name: str) -> Tensor:
        """The live parameter of this full name."""
        return self.module.get_parameter(name.removeprefix(f"{self.prefix}."))

    def weight(self, view: LinearView) -> Tensor:
        """The weight [out, in] that the block computes with, as a view of its parameter."""
        return view.of(self.parameter(view.parameter))

    def original(self, view: LinearView) -> Tensor:
        """The weight [out, in] as stored, in float32 on the block's device; needs `keep=True`."""
        return view.of(self.stored[view.parameter]).to(self.device, torch.float32)

    def set_weight(self, view: LinearView, weight: Tensor) -> None:
        """Makes the block compute with `weight` [out, in] from now on."""
        self.weight(view).copy_(weight)

    def quantize_inputs(self, formats: dict[str, tuple[Format, Scales | None]]) -> None:
        """Rounds the inputs of the named linears from now on: a format, and a static scale where there is one."""
        self._inputs = {**self._inputs, **formats}

    @property
    def inputs(self) -> dict[str, tuple[Format, Scales | None]]:
        """How the inputs of linears are rounded, by name."""
        return dict(self._inputs)

    @contextmanager
    def replaced(
        self, parameters: dict[str, Tensor], inputs: dict[str, tuple[Format, Scales | None]]
    ) -> Iterator[None]:
        """Computes with other parameters (by full name) and other rounding of inputs, while it lasts."""
        kept, before = {name: self.parameter(name) for name in parameters}, self._inputs
        try:
            for name, value in parameters.items():
                self._set(name, value)
            self._inputs = inputs
            yield
        finally:
            for name, value in kept.items():
                self._set(name, value)
            self._inputs = before

    def __call__(self, hidden: Tensor, call: Call) -> Tensor:
        """The block's output for a hidden state [batch, length, width]; differentiable where that or a weight asks."""
        asked = hidden.requires_grad or any(value.requires_grad for value in self.module.parameters())
        with torch.set_grad_enabled(asked), self._rounding():
            return self.module(hidden.to(self.device, self.dtype), *call[0], **call[1])

    @contextmanager
    def _rounding(self) -> Iterator[None]:
        with Block.rounding_of([self]):
            yield

    @staticmethod
    @contextmanager
    def rounding_of(blocks: Sequence["Block"]) -> Iterator[None]:
        """Rounds the inputs of these blocks' linears as their formats say, while it lasts."""
        rounded = {
            block.weight(view).data_ptr(): block._inputs[view.info.name]
            for block in blocks
            if block._inputs
            for view in block.structure.linears()
            if view.info.name in block._inputs
        }
        if not rounded:
            yield
            return
        with _InputRounding(rounded):
            yield


class _InputRounding(TorchFunctionMode):
    """Rounds the input of every product with one of the given weights, as a W8A8 kernel would."""

    def __init__(self, formats: dict[int, tuple[Format, Scales | None]]) -> None:
        super().__init__()
        self._formats = formats

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        product = PRODUCTS.get(func)
        if product is not None and len(args) > product[1]:
            found = self._formats.get(args[product[1]].data_ptr())
            if found is not None:
                value = args[product[0]]
                args = list(args)
                rounded = fake_quantize(value, found[0], found[1]).to(value.dtype)
                if torch.is_grad_enabled() and value.requires_grad:
                    rounded = value + (rounded - value).detach()  # as if it were not rounded
                args[product[0]] = rounded
        return func(*args, **(kwargs or {}))


def _input_formats(
    codes: Codes | None, structure: Structure, device: torch.device
) -> dict[str, tuple[Format, Scales | None]]:
    found: dict[str, tuple[Format, Scales | None]] = {}
    for view in structure.linears() if codes is not None else ():
        inputs = codes.inputs(view.info.name) if codes is not None else None
        if inputs is not None:
            format, static = inputs
            found[view.info.name] = format, None if static is None else Scales(static.scales.to(device))
    return found
