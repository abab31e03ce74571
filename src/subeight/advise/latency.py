"""What each linear costs one token in each format, measured inside the model: the prices of a budget in milliseconds.

So many blocks run that their weights come from memory, not from a cache, and every linear is timed where it stands, by
hooks. Formats take turns. Weights are rounded to nearest, which costs the same time as any other codes.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from subeight.advise.candidates import fill, short, stored_by
from subeight.advise.schemes import Scheme
from subeight.formats import Format, quantize
from subeight.kernels.linear import QuantLinear
from subeight.kv.cache import KVCache
from subeight.kv.policy import KVPolicy
from subeight.models.model import Model
from subeight.models.packed import load_packed
from subeight.records import fingerprint
from subeight.records.files import atomic_write

VERSION = 1  # of what is measured: an older file is not read
ROUNDS = 9
SPAN = 1 << 28  # bytes of the blocks in their own precision: more than caches hold
Shape = tuple[int, int]


@dataclass(frozen=True)
class Latencies:
    """Seconds of one token after `context` others, one sequence.

    `linears` are those of every linear by name and format, `None` in bf16; of embeddings and a head that is tied to
    them, those of the head. `rest` is all else: attention, norms, what calls cost.
    """

    context: int
    rest: float
    linears: dict[tuple[str, str | None], float]


def measure_latencies(
    model: Model, formats: Sequence[Format], context: int, dtype: torch.dtype, device: torch.device
) -> Latencies:
    """Times one token of the model in bf16 and in each of the formats.

    Raises:
        KernelError: the model's experts are fused, which no kernel runs packed.
    """
    layers = len(model.skeleton.blocks)
    count = min(layers, max(2, math.ceil(SPAN * layers / _bytes_of_blocks(model))))
    part = short(model, count)
    timings = [_Timing.of(part, format, context, dtype, device) for format in (None, *formats)]
    for number in range(ROUNDS + 1):
        for timing in timings:
            timing.sample(counted=number > 0)
    plain = timings[0]
    inside = sum(map(median, plain.linears.values()))
    rest = max(median(plain.steps) - inside, 0.0) * layers / count
    seconds = {timing.format: timing.by_shape() for timing in timings}
    heads = {timing.format: median(timing.heads) for timing in timings}
    found: dict[tuple[str, str | None], float] = {}
    for linear in model.linears:
        for format, by_shape in seconds.items():
            outside = heads[format] if linear.kind == "head" or model.skeleton.tied else 0.0
            found[linear.name, format] = outside if linear.block is None else by_shape[linear.shape]
    return Latencies(context, rest, found)


def kept_latencies(
    cache: Path, model: Model, formats: Sequence[Format], context: int, dtype: torch.dtype, device: torch.device
) -> Latencies:
    """As they were measured before in `cache`, a folder of this stack, or as they are measured now (a minute)."""
    asked = [model.coordinate, [str(format) for format in formats], context, str(dtype), str(device)]
    kept = cache / f"latency-{VERSION}-{fingerprint([*asked, torch.get_num_threads()])}.json"
    if kept.is_file():
        content = json.loads(kept.read_text(encoding="utf-8"))
        return Latencies(content["context"], content["rest"], {(name, form): s for name, form, s in content["linears"]})
    found = measure_latencies(model, formats, context, dtype, device)
    rows = [[name, form, seconds] for (name, form), seconds in found.linears.items()]
    kept.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(kept, json.dumps({"context": found.context, "rest": found.rest, "linears": rows}))
    return found


@torch.inference_mode()
def token_seconds(model: Model, context: int, dtype: torch.dtype, device: torch.device) -> float:
    """Median seconds of one token of a checkpoint on its kernels, head included, after `context` others."""
    module = load_packed(model, dtype, device).module
    ids = torch.zeros(1, 1, dtype=torch.long, device=device)
    found = []
    for _ in range(ROUNDS + 1):
        cache = KVCache(module, KVPolicy())
        fill(module, cache, 1, context, dtype, device)
        began = _now(device)
        module(input_ids=ids, past_key_values=cache, use_cache=True)
        found.append(_now(device) - began)
    return median(found[1:])


def _bytes_of_blocks(model: Model) -> int:
    return sum(view.info.count * view.info.dtype.itemsize for view in model.views())


@dataclass
class _Timing:
    """A model stored in one format, and the seconds of its linears, of its blocks as a whole, and of its head."""

    format: str | None
    module: PreTrainedModel
    trunk: nn.Module
    head: nn.Module
    context: int
    shapes: dict[str, Shape]
    linears: dict[str, list[float]] = field(default_factory=dict)
    steps: list[float] = field(default_factory=list)
    heads: list[float] = field(default_factory=list)

    @classmethod
    def of(cls, model: Model, format: Format | None, context: int, dtype: torch.dtype, device: torch.device) -> _Timing:
        module = stored_by(model, Scheme("", format), dtype, device)
        plain = module.get_output_embeddings()
        head = plain if format is None else QuantLinear(quantize(plain.weight.float(), format), plain.bias)
        shapes = {view.info.name: view.info.shape for view in model.views()}
        name = None if format is None else str(format)
        return cls(name, module, module.get_submodule(model.skeleton.trunk_name), head, context, shapes)

    @torch.inference_mode()
    def sample(self, *, counted: bool) -> None:
        """One token through the blocks, then through the head."""
        weight = self.module.get_input_embeddings().weight
        cache = KVCache(self.module, KVPolicy())
        fill(self.module, cache, 1, self.context, weight.dtype, weight.device)
        ids = torch.zeros(1, 1, dtype=torch.long, device=weight.device)
        began = _now(weight.device)
        self.trunk(input_ids=ids, past_key_values=cache, use_cache=True)  # as a whole, without the hooks' own time
        step = _now(weight.device) - began
        found: dict[str, float] = {}
        with self._timed(found, weight.device):
            state = self.trunk(input_ids=ids, past_key_values=cache, use_cache=True).last_hidden_state
        began = _now(weight.device)
        self.head(state)
        head = _now(weight.device) - began
        if counted:
            self.steps.append(step)
            self.heads.append(head)
            for name, seconds in found.items():
                self.linears.setdefault(name, []).append(seconds)

    @contextmanager
    def _timed(self, found: dict[str, float], device: torch.device) -> Iterator[None]:
        """Notes the seconds of every linear of the blocks, while it lasts."""

        def begin(name: str) -> Any:
            return lambda *_: found.__setitem__(name, -_now(device))

        def end(name: str) -> Any:
            return lambda *_: found.__setitem__(name, found[name] + _now(device))

        hooks = []
        for name in self.shapes:
            linear = self.module.get_submodule(name)
            hooks += [linear.register_forward_pre_hook(begin(name)), linear.register_forward_hook(end(name))]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    def by_shape(self) -> dict[Shape, float]:
        """The median over linears of one shape."""
        found: dict[Shape, list[float]] = {}
        for name, samples in self.linears.items():
            found.setdefault(self.shapes[name], []).extend(samples)
        return {shape: median(samples) for shape, samples in found.items()}


def _now(device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
