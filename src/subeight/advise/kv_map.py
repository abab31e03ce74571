"""Which keys and values need the bits: the loss of each layer's, rounded alone, and of nothing else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from subeight.advise.kv import Loaded, Reference, Text, losses
from subeight.evals.stats import mean_interval
from subeight.formats import Format
from subeight.kv.policy import SIDES, KVPolicy


def sensitivity(
    base: Loaded,
    policy: KVPolicy,
    formats: Sequence[Format],
    text: Text,
    known: Reference,
    advance: Callable[[int], None],
    seed: int = 0,
) -> list[dict[str, Any]]:
    """One row for every layer, side and format; scales, window, sinks and basis are the policy's."""
    found = []
    for layer in range(base.module.config.get_text_config(decoder=True).num_hidden_layers):
        for side in SIDES:
            for format in formats:
                read = losses(base, base, alone(policy, layer, side, format), text, known)
                mean = mean_interval(read.kl, read.segment, seed=seed).within(0.0)
                found.append({"layer": layer, "side": side, "format": str(format), "kl": mean.value, "kl_ci": mean.ci})
                advance(text.context)
    return found


def alone(policy: KVPolicy, layer: int, side: str, format: Format) -> KVPolicy:
    """The policy where only these keys or values are rounded."""
    full = replace(policy, keys=None, values=None, layers={})
    return full.with_sides({(layer, side): format})
