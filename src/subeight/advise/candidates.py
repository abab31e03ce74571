"""Schemes timed on one real block of a model: a model of one block and one of two, whose difference is a block.

The head is timed by itself: it takes longer than a block, and its noise would count once for each. Weights are rounded
to nearest, which costs the same time as any other codes. The cache is filled with random states.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from subeight.advise.schemes import Scheme
from subeight.errors import KernelError
from subeight.formats import Scales, quantize
from subeight.kernels.linear import QuantLinear
from subeight.kv.cache import KVCache
from subeight.kv.memory import Shape
from subeight.models.model import Model
from subeight.models.packed import load_packed

ROUNDS = 7
STEPS = 8  # tokens of one sample of decode
HEAD = 0  # in place of a number of blocks
STATIC = 0.05  # a scale of fixed inputs: any takes as long


@dataclass(frozen=True)
class Measured:
    """Seconds of a whole model by one scheme, from one of its blocks."""

    prefill: float
    decode: Mapping[int, float]  # by batch
    kernels: Mapping[str, str]  # what runs one row, and what the prompt's

    def numbers(self) -> dict[str, Any]:
        """For the record."""
        decode = {str(batch): seconds for batch, seconds in self.decode.items()}
        return {"prefill_seconds": self.prefill, "decode_seconds": decode, "kernels": dict(self.kernels)}


class Timing:
    """One scheme on models of one and of two blocks."""

    def __init__(self, model: Model, scheme: Scheme, dtype: torch.dtype, device: torch.device) -> None:
        self.scheme = scheme
        self.device = device
        self.dtype = dtype
        self.layers = model.config.get_text_config(decoder=True).num_hidden_layers
        self.modules = [stored_by(short(model, count), scheme, dtype, device) for count in (1, 2)]
        self.trunk = model.skeleton.trunk_name
        self.width = model.config.get_text_config(decoder=True).hidden_size
        self.samples: dict[tuple[int, int, bool], list[float]] = {}  # by blocks, batch, and whether it is a prefill

    @torch.inference_mode()
    def sample(self, context: int, batch: Sequence[int]) -> None:
        """One prefill of a sequence and a few tokens of each batch, on both models without their head; and the head."""
        for blocks, module in enumerate(self.modules, 1):
            run = partial(module.get_submodule(self.trunk), use_cache=True)
            ids = torch.zeros(1, context, dtype=torch.long, device=self.device)
            empty = KVCache(module, self.scheme.kv)
            self._note((blocks, 1, True), partial(run, input_ids=ids, past_key_values=empty), 1)
            for size in batch:
                cache = KVCache(module, self.scheme.kv)
                fill(module, cache, size, context, self.dtype, self.device)
                step = torch.zeros(size, 1, dtype=torch.long, device=self.device)
                self._note((blocks, size, False), partial(run, input_ids=step, past_key_values=cache), STEPS)
        head = self.modules[0].get_output_embeddings()
        for size in {1, *batch}:
            states = torch.zeros(size, 1, self.width, dtype=self.dtype, device=self.device)
            self._note((HEAD, size, False), partial(head, states), STEPS)

    def _note(self, key: tuple[int, int, bool], run: Callable[[], object], steps: int) -> None:
        began = time.perf_counter()
        for _ in range(steps):
            run()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.samples.setdefault(key, []).append((time.perf_counter() - began) / steps)

    def forget(self) -> None:
        """Drops what was timed: a first round warms up."""
        self.samples.clear()

    def measured(self, context: int, batch: Sequence[int]) -> Measured:
        """The whole model's seconds: what is no block once, and every block."""
        linears = [one for one in self.modules[0].modules() if isinstance(one, QuantLinear)]
        kernels = {"few rows": "bf16", "prompt": "bf16"}
        if linears:
            kernels = {"few rows": linears[0].runner.kernel(1), "prompt": linears[0].runner.kernel(context)}
        decode = {size: self._whole(size, prompt=False) for size in batch}
        return Measured(self._whole(1, prompt=True), decode, kernels)

    def _whole(self, batch: int, *, prompt: bool) -> float:
        one, two = (median(self.samples[blocks, batch, prompt]) for blocks in (1, 2))
        return one + (self.layers - 1) * max(two - one, 0.0) + median(self.samples[HEAD, batch, False])


def time_schemes(
    model: Model,
    schemes: Sequence[Scheme],
    context: int,
    batch: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> dict[str, Measured]:
    """All schemes in turn, `ROUNDS` times, so that noise meets all alike; medians."""
    timings = [Timing(model, scheme, dtype, device) for scheme in schemes]
    for number in range(ROUNDS + 1):
        for timing in timings:
            timing.sample(context, batch)
            if not number:
                timing.forget()
    return {timing.scheme.name: timing.measured(context, batch) for timing in timings}


def short(model: Model, blocks: int) -> Model:
    """The model's first blocks alone, with its embeddings and its head."""
    text = model.config.get_text_config(decoder=True)
    kinds = getattr(text, "layer_types", None)
    changes: dict[str, Any] = {"num_hidden_layers": blocks}
    return model.with_config(changes | ({"layer_types": list(kinds[:blocks])} if kinds else {}))


def stored_by(model: Model, scheme: Scheme, dtype: torch.dtype, device: torch.device) -> PreTrainedModel:
    """The model with its linears as the scheme stores them, rounded to nearest."""
    module = load_packed(model, dtype, device).module
    if scheme.weights is None:
        return module
    for view in model.views():
        name = view.info.name
        if view.parameter != f"{name}.weight":
            raise KernelError(
                f"{name} is a slice of a fused parameter, which no kernel here runs packed, so no scheme can be timed "
                f"on {model.label}; advise is for models whose linears are modules of their own."
            )
        plain = module.get_submodule(name)
        weight = view.of(plain.weight).float()
        owner, _, tail = name.rpartition(".")
        fixed = scheme.inputs is not None and scheme.inputs.per == "tensor"
        scales = Scales(torch.full((1, 1), STATIC, device=device)) if fixed else None
        packed = QuantLinear(quantize(weight, scheme.weights), plain.bias, scheme.inputs, scales)
        setattr(module.get_submodule(owner), tail, packed)
    return module


def fill(
    module: PreTrainedModel, cache: Cache, batch: int, context: int, dtype: torch.dtype, device: torch.device
) -> None:
    """Random keys and values of `context` tokens in every layer."""
    shape = Shape.of(module.config)
    draw = torch.Generator().manual_seed(0)
    states = torch.randn(batch, shape.heads, context, shape.head_dim, generator=draw).to(device, dtype)
    for index in range(len(shape.sliding)):
        cache.update(states, states, index)
