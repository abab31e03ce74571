"""How fast a loaded model reads and writes: seconds of a prefill, seconds of every token after it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from subeight.kernels.frames import with_room


@dataclass
class Timed:
    """Seconds of one model: of each prefill of the prompt, and of each token after it."""

    batch: int
    prompt: int
    prefill: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)

    def numbers(self) -> dict[str, float | int | list[float]]:
        """Medians as tokens per second, with the spread between the quarters of the samples."""
        return {
            "batch": self.batch,
            "prompt": self.prompt,
            "prefill_seconds": median(self.prefill),
            "prefill_spread": _quarters(self.prefill),
            "prefill_tokens_per_second": self.batch * self.prompt / median(self.prefill),
            "decode_seconds": median(self.decode),
            "decode_spread": _quarters(self.decode),
            "decode_tokens_per_second": self.batch / median(self.decode),
        }


def time_together(
    modules: Mapping[str, PreTrainedModel], prompt: Int[Tensor, "batch length"], tokens: int, rounds: int
) -> dict[str, Timed]:
    """Each model prefills the prompt and adds `tokens` greedy ones, `rounds` times, in turn, so that noise meets all.

    A first round warms up and is not counted.
    """
    found = {name: Timed(*prompt.shape) for name in modules}
    for number in range(rounds + 1):
        for name, module in modules.items():
            prefill, *decode = steps(module, prompt, tokens)
            if number:
                found[name].prefill.append(prefill)
                found[name].decode += decode
    return found


def steps(module: Callable[..., Any], prompt: Tensor, tokens: int, cache: Cache | None = None) -> list[float]:
    """Seconds of the prefill, then of each token; into `cache` where one is given."""
    return with_room(lambda: list(_stepped(module, prompt, tokens, cache)))


@torch.inference_mode()
def _stepped(module: Callable[..., Any], prompt: Tensor, tokens: int, cache: Cache | None) -> Iterator[float]:
    step = prompt
    for _ in range(tokens + 1):
        _settle(prompt.device)
        began = time.perf_counter()
        output = module(input_ids=step, past_key_values=cache, use_cache=True, logits_to_keep=1)
        cache, step = output.past_key_values, output.logits[:, -1].argmax(-1, keepdim=True)
        _settle(prompt.device)
        yield time.perf_counter() - began


def _settle(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _quarters(values: list[float]) -> list[float]:
    ordered = sorted(values)
    return [ordered[len(ordered) // 4], ordered[(3 * len(ordered)) // 4]]
