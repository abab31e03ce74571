"""What KV policies cost on a model, by context: divergence and perplexity by place, retrieval, answers, bytes.

The weights are a choice of their own: each checkpoint is measured with each policy, against the full model with full
keys and values, all by the same chunks.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from subeight.evals.divergence import divergences
from subeight.evals.stats import mean_interval, perplexity_interval, share_interval
from subeight.kv.cache import KVCache
from subeight.kv.policy import KVPolicy
from subeight.models.model import Model
from subeight.models.packed import load_packed
from subeight.models.shell import Head, Shell
from subeight.probe.caches import CHUNK, agreement, final_states, finds, greedy
from subeight.text.needles import Needle

SEGMENT = 256  # tokens that are resampled together
PARTS = 4  # of a context, by which loss is told


@dataclass(frozen=True)
class Loaded:
    """One checkpoint in memory."""

    name: str
    module: PreTrainedModel
    trunk: str
    head: Head
    nbytes: int
    warnings: Sequence[str]

    @classmethod
    def of(cls, name: str, model: Model, dtype: torch.dtype, device: torch.device) -> Loaded:
        """Loads it, quantized linears on their codes."""
        packed = load_packed(model, dtype, device)
        head = Shell(model, dtype, device).head()
        return cls(name, packed.module, model.skeleton.trunk_name, head, packed.nbytes, packed.warnings)

    def cache(self, policy: KVPolicy) -> KVCache:
        """An empty cache of this model."""
        return KVCache(self.module, policy)


@dataclass(frozen=True)
class Text:
    """What is asked at one context: windows of that length, their last `written` as an answer, and hidden numbers."""

    context: int
    windows: Sequence[Tensor]
    needles: Sequence[Needle]
    written: int

    @property
    def chunk(self) -> int:
        """Tokens that are read together: few enough that a short context meets the cache too."""
        return max(1, min(CHUNK, self.context // PARTS))


@dataclass(frozen=True)
class Losses:
    """Every token of the windows but the first: divergence, loss, place, segment; and the cache's bytes."""

    kl: np.ndarray
    nll: np.ndarray
    place: np.ndarray
    segment: np.ndarray
    held: int


@dataclass(frozen=True)
class Reference:
    """What the full model with full keys and values makes of a text."""

    states: Sequence[Tensor]
    nll: Sequence[Tensor]
    answers: Sequence[Sequence[int]]


def reference(base: Loaded, text: Text) -> Reference:
    """Runs the baseline once."""
    states, nll, answers = [], [], []
    for window in text.windows:
        states.append(final_states(base.module, base.trunk, window, base.cache(KVPolicy()), text.chunk))
        nll.append(_nll(states[-1], base.head, window))
        answers.append(_written(base, window, text, base.cache(KVPolicy())))
    return Reference(states, nll, answers)


def losses(base: Loaded, loaded: Loaded, policy: KVPolicy, text: Text, known: Reference) -> Losses:
    """Reads the windows under a policy."""
    parts, held = [], 0
    for number, window in enumerate(text.windows):
        cache = loaded.cache(policy)
        states = final_states(loaded.module, loaded.trunk, window, cache, text.chunk)
        held = max(held, cache.nbytes)
        parts.append(divergences(known.states[number][:-1], [states[:-1]], [base.head, loaded.head], window[1:]))
    kl, rise = (np.concatenate([getattr(part, name)[0].numpy() for part in parts]) for name in ("kl", "nll"))
    nll = np.concatenate([part.numpy() for part in known.nll]) + rise
    place = np.concatenate([np.arange(len(window) - 1) for window in text.windows])
    windows = np.repeat(np.arange(len(text.windows)), [len(w) - 1 for w in text.windows])
    return Losses(kl, nll, place, windows * text.context + place // SEGMENT, held)


def measure(
    base: Loaded, loaded: Loaded, policy: KVPolicy, text: Text, known: Reference, seed: int = 0
) -> dict[str, Any]:
    """One checkpoint under one policy at one context."""
    read = losses(base, loaded, policy, text, known)
    right = [finds(loaded.module, needle, loaded.cache(policy), text.chunk) for needle in text.needles]
    same = [
        agreement(known.answers[number], _written(loaded, window, text, loaded.cache(policy)))
        for number, window in enumerate(text.windows)
    ]
    found, perplexity = (
        mean_interval(read.kl, read.segment, seed=seed).within(0.0),
        perplexity_interval(read.nll, read.segment, seed=seed),
    )
    return {
        "weights": loaded.name,
        "policy": str(policy),
        "context": text.context,
        "kl": found.value,
        "kl_ci": found.ci,
        "kl_by_place": _by_place(read.kl, read.place, text.context),
        "ppl": perplexity.value,
        "ppl_ci": perplexity.ci,
        "nll_by_place": _by_place(read.nll, read.place, text.context),
        "cache_bytes": read.held,
        "retrieval": _retrieval(text.needles, right),
        "agreement": float(np.mean(same)) if text.written else None,
    }


@torch.no_grad()
def _nll(states: Tensor, head: Head, targets: Tensor) -> Tensor:
    """Loss of every token but the first, float64."""
    rows = zip(states[:-1].split(SEGMENT), targets[1:].split(SEGMENT), strict=True)
    return torch.cat([torch.nn.functional.cross_entropy(head(x), y, reduction="none").double() for x, y in rows]).cpu()


def _written(loaded: Loaded, window: Tensor, text: Text, cache: Cache) -> list[int]:
    """What comes after all but the last tokens of a window."""
    prompt = window[: len(window) - text.written]
    return greedy(loaded.module, prompt, text.written, cache, text.chunk) if text.written else []


def _by_place(values: np.ndarray, places: np.ndarray, context: int) -> list[dict[str, float]]:
    """Means of equal parts of the context."""
    borders = np.linspace(0, context, PARTS + 1).astype(int).tolist()
    found = []
    for first, last in pairwise(borders):
        inside = (places >= first) & (places < last)
        found.append({"from": first, "to": last, "mean": float(values[inside].mean()) if inside.any() else None})
    return found


def _retrieval(needles: Sequence[Needle], right: Sequence[bool]) -> dict[str, Any] | None:
    """The share that was found, with Wilson's interval, and by depth and count."""
    if not needles:
        return None
    cells: dict[tuple[int, float], list[bool]] = {}
    for needle, found in zip(needles, right, strict=True):
        cells.setdefault((needle.count, needle.depth), []).append(found)
    rows = [
        {"numbers": count, "depth": depth, "found": sum(found), "asked": len(found)}
        for (count, depth), found in sorted(cells.items())
    ]
    share = share_interval(sum(right), len(right))
    return {"share": share.value, "share_ci": share.ci, "cells": rows}
