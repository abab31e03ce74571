"""The part of a model outside its blocks: embeddings before them, the last norm and the head after them.

It runs transformers' own forward with the blocks taken out, so scaling, soft caps, position embeddings and masks are
the family's own.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast

from subeight.models.calls import Call, Recorder, record_calls, record_step
from subeight.models.model import Model
from subeight.models.precision import exact_products


class Shell:
    """Embeddings, last norm and head of one model, in one dtype on one device.

    With `weights=False` nothing is read: it only tells with which masks and positions the blocks are called.
    """

    def __init__(
        self, model: Model, dtype: torch.dtype, device: torch.device | str = "cpu", *, weights: bool = True
    ) -> None:
        self.dtype = dtype
        self.device = torch.device(device)
        self._skeleton = model.skeleton
        self._module = copy.deepcopy(model.skeleton.model)
        for name in model.skeleton.shell_parameters():
            if not weights:
                shape = self._module.get_parameter(name).shape
                self._set(name, torch.zeros(1, dtype=dtype, device=self.device).expand(shape))
            elif name not in model.skeleton.tied_names:
                self._set(name, model.weights.read(name).to(self.device, dtype))
        self._module.tie_weights()
        for name, buffer in list(self._module.named_buffers()):
            owner, _, tail = name.rpartition(".")
            self._module.get_submodule(owner)._buffers[tail] = buffer.to(self.device)
        self._calls: dict[tuple[int, ...], list[Call]] = {}

    def _set(self, name: str, value: Tensor) -> None:
        owner, _, tail = name.rpartition(".")
        self._module.get_submodule(owner)._parameters[tail] = nn.Parameter(value, requires_grad=False)

    def names(self) -> list[str]:
        """Full names of its parameters."""
        return self._skeleton.shell_parameters()

    def parameter(self, name: str) -> Tensor:
        """The live parameter of this full name."""
        return self._module.get_parameter(name)

    def replace(self, name: str, value: Tensor) -> None:
        """Puts `value` in the place of a parameter; one that was tied to another is so no longer."""
        self._set(name, value.to(self.device, self.dtype))

    def embed(self, ids: Tensor) -> Tensor:
        """The input of the first block, [batch, length, width], for token ids [batch, length]."""
        hidden, calls = record_calls(self._module, self._skeleton, ids.to(self.device))
        self._calls.setdefault(tuple(ids.shape), calls)
        return hidden

    def call(self, shape: tuple[int, ...], block: int) -> Call:
        """The other arguments that the trunk gives to block `block` for ids of this shape."""
        if shape not in self._calls:
            self.embed(torch.zeros(shape, dtype=torch.long))
        return self._calls[shape][block]

    def enter(self, ids: Tensor, cache: Cache | None) -> tuple[Tensor, list[Call], Cache]:
        """The input of the first block for ids that follow what a cache holds, the blocks' calls, and the cache."""
        return record_step(self._module, self._skeleton, ids.to(self.device), cache)

    def finish(self, hidden: Tensor) -> Tensor:
        """The final hidden state (after the last norm) from the output of the last block."""
        return self._after(hidden, self._module.get_submodule(self._skeleton.trunk_name)).last_hidden_state

    def logits(self, hidden: Tensor) -> Tensor:
        """The model's own logits [batch, length, vocabulary], in its dtype, from the output of the last block."""
        return self._after(hidden, self._module).logits

    def _after(self, hidden: Tensor, run: nn.Module) -> Any:
        """What the trunk or the whole model makes of the output of the last block."""
        trunk = self._module.get_submodule(self._skeleton.trunk_name)
        tail = self._skeleton.blocks_name.rpartition(".")[2]
        blocks = getattr(trunk, tail)
        recorders = [Recorder(block, []) for block in blocks]
        recorders[-1].result = hidden
        setattr(trunk, tail, nn.ModuleList(recorders))
        try:
            with torch.set_grad_enabled(hidden.requires_grad):
                ids = torch.zeros(hidden.shape[:2], dtype=torch.long, device=self.device)
                return run(input_ids=ids, use_cache=False)
        finally:
            setattr(trunk, tail, blocks)

    def head(self) -> "Head":
        """The function from final hidden states [n, width] to float32 logits [n, vocabulary]."""
        return Head(self._module, self._skeleton.trunk_name, self.dtype)


class Head:
    """Final hidden states [n, width] to float32 logits [n, vocabulary], through transformers' own forward.

    Products of bf16 numbers are summed in float32, so the logits are those of the bf16 weights exactly. Where the
    family does no more than multiply (tried once), `into` writes the logits into memory that is there already.
    """

    def __init__(self, module: PreTrainedModel, trunk: str, dtype: torch.dtype) -> None:
        self._module = _without(module, trunk)
        self._trunk = trunk
        self._dtype = dtype
        head = module.get_output_embeddings()
        full = nn.Linear(1, 1, bias=False, device="meta")
        full.weight = nn.Parameter(head.weight.float(), requires_grad=False)
        if head.bias is not None:
            full.bias = nn.Parameter(head.bias.float(), requires_grad=False)
        self._module.set_output_embeddings(full)
        self._weight = full.weight
        probe = torch.randn(2, self._weight.shape[1], generator=torch.Generator().manual_seed(0)).to(dtype)
        probe = probe.to(self._weight.device)
        plain = self._product(probe)
        observed = self(probe)
        self.vocabulary = observed.shape[-1]
        if plain.shape == observed.shape and torch.allclose(plain, observed, rtol=1e-6, atol=1e-6):
            self.into = self._into

    def __call__(self, hidden: Tensor) -> Tensor:
        trunk = self._module.get_submodule(self._trunk)
        trunk.forward = _given(hidden.float()[None])
        try:
            with exact_products(self._dtype), torch.set_grad_enabled(hidden.requires_grad):
                ids = torch.zeros(1, 1, dtype=torch.long, device=hidden.device)
                return self._module(input_ids=ids, use_cache=False).logits[0]
        finally:
            del trunk.forward

    def _product(self, hidden: Tensor) -> Tensor:
        with exact_products(self._dtype):
            return hidden.float() @ self._weight.T

    def _into(self, hidden: Tensor, out: Tensor) -> None:
        with exact_products(self._dtype):
            torch.mm(hidden.float(), self._weight.T, out=out)


def _without(module: PreTrainedModel, name: str) -> PreTrainedModel:
    """The module with nothing in its trunk: what the head does not need (embeddings) may go from memory."""
    whole = copy.copy(module)
    parent: nn.Module = whole
    for part in name.split("."):
        parent._modules = dict(parent._modules)
        child = copy.copy(parent._modules[part])
        assert child is not None
        parent._modules[part] = child
        parent = child
    parent._modules, parent._parameters = {}, {}
    return whole


class _Given(BaseModelOutputWithPast):  # type: ignore[misc]  # transformers is untyped
    """A trunk's output with nothing but a hidden state; whatever else a family looks for is None."""

    def __getattr__(self, name: str) -> None:
        return None


def _given(hidden: Tensor) -> Callable[..., BaseModelOutputWithPast]:
    def forward(*_args: Any, **_kwargs: Any) -> BaseModelOutputWithPast:
        return _Given(last_hidden_state=hidden)

    return forward
