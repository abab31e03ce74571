"""Bytes of keys and values by policy, context and batch, before any is stored; and where they outweigh the weights."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from subeight.formats import Format
from subeight.kv.policy import SIDES, KVPolicy, run_of, stored_bits

FULL_BITS = 16


@dataclass(frozen=True)
class Shape:
    """What decides the size of a cache: heads and their width, and of each layer its window (None sees everything)."""

    heads: int
    head_dim: int
    sliding: tuple[int | None, ...]

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Shape:
        """Of a model's config."""
        text = config.get_text_config(decoder=True)
        count = text.num_hidden_layers
        kinds = list(getattr(text, "layer_types", None) or ["full_attention"] * count)
        heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        window = getattr(text, "sliding_window", None)
        return cls(heads, head_dim, tuple(window if kind == "sliding_attention" else None for kind in kinds))


def cache_bytes(shape: Shape, policy: KVPolicy, context: int, batch: int = 1) -> int:
    """What the cache of `batch` sequences of `context` tokens holds under the policy, full precision in 16 bits."""
    sides = [(layer, side) for layer in range(len(shape.sliding)) for side in SIDES]
    each = [
        side_bytes(shape, policy, layer, side, getattr(policy.of_layer(layer), side), context) for layer, side in sides
    ]
    return round(sum(each)) * batch


def side_bytes(shape: Shape, policy: KVPolicy, layer: int, side: str, format: Format | None, context: int) -> float:
    """What the keys or the values of one layer and one sequence hold in this format, under the policy in all else."""
    sliding = shape.sliding[layer]
    axis = policy.axis if side == "keys" else "token"
    tokens = context if sliding is None else min(context, sliding - 1)
    sinks = 0 if sliding is not None else policy.sinks
    run = 1 if format is None or axis == "token" else run_of(format)
    stored = 0 if format is None else max(tokens - sinks - policy.window, 0) // run * run
    bits = stored_bits(format, shape.head_dim, axis)
    return shape.heads * shape.head_dim * (stored * bits + (tokens - stored) * FULL_BITS) / 8


def mean_bits(shape: Shape, policy: KVPolicy) -> tuple[float, float]:
    """Stored bits of a key and of a value beyond window and sinks, over the layers."""
    each = [policy.bits(shape.head_dim, layer) for layer in range(len(shape.sliding))]
    keys, values = zip(*each, strict=True)
    return sum(keys) / len(each), sum(values) / len(each)


def crossing(shape: Shape, policy: KVPolicy, weights: int, batch: int = 1, longest: int = 1 << 24) -> int | None:
    """The context from which keys and values take more bytes than the weights; None where up to `longest` none is."""
    if cache_bytes(shape, policy, longest, batch) <= weights:
        return None
    low, high = 0, longest
    while low < high:
        middle = (low + high) // 2
        if cache_bytes(shape, policy, middle, batch) > weights:
            high = middle
        else:
            low = middle + 1
    return low
