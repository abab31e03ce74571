"""Bytes of keys and values by policy, context and batch, before any is stored; and where they outweigh the weights."""

from __future__ import annotations

from dataclasses import dataclass

from transformers import PreTrainedConfig

from subeight.kv.policy import KVPolicy, run_of, stored_bits

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
    total = 0.0
    for index, sliding in enumerate(shape.sliding):
        one = policy.of_layer(index)
        tokens = context if sliding is None else min(context, sliding - 1)
        sinks = 0 if sliding is not None else policy.sinks
        for format, axis in ((one.keys, policy.axis), (one.values, "token")):
            run = 1 if format is None or axis == "token" else run_of(format)
            beyond = max(tokens - sinks - policy.window, 0) // run * run
            stored = 0 if format is None else beyond
            bits = stored_bits(format, shape.head_dim, axis)
            total += shape.heads * shape.head_dim * (stored * bits + (tokens - stored) * FULL_BITS) / 8
    return round(total) * batch


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
