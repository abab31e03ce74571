"""Schemes: how weights, inputs and cache could be stored, and what a roofline foretells of each on a model."""

from __future__ import annotations

from dataclasses import dataclass

from subeight.advise.machine import Machine
from subeight.formats import Format
from subeight.kv.memory import Shape, cache_bytes
from subeight.kv.policy import KVPolicy
from subeight.models.model import Model

BF16 = 2  # bytes
FULL = KVPolicy()


@dataclass(frozen=True)
class Scheme:
    """One way to store a model: the formats of its linears' weights and inputs, and the policy of its cache."""

    name: str
    weights: Format | None = None
    inputs: Format | None = None
    kv: KVPolicy = FULL


def _scheme(name: str, weights: str | None, inputs: str | None = None, kv: str = "none") -> Scheme:
    first, second = (None if text is None else Format.parse(text) for text in (weights, inputs))
    return Scheme(name, first, second, KVPolicy.parse(kv))


SCHEMES = (
    _scheme("bf16", None),
    _scheme("W8A8", "int8:channel", "int8:token"),
    _scheme("W8A8 static", "int8:channel", "int8:tensor"),
    _scheme("fp8", "fp8:channel", "fp8:token"),
    _scheme("W4A16", "int4:g64"),
    _scheme("W4A8", "int4:g64", "int8:token"),
    _scheme("W3A16", "int3:g64"),
    _scheme("W2A16", "int2:g64"),
    _scheme("bf16, KV int8", None, kv="int8:token,axis=token"),
    _scheme("bf16, KV int4", None, kv="int4:g64"),
    _scheme("W4A16, KV int4", "int4:g64", kv="int4:g64"),
)


@dataclass(frozen=True)
class Sizes:
    """What decides a model's cost: its blocks' linears [out, in], its head, and its cache."""

    linears: tuple[tuple[int, int], ...]
    head: tuple[int, int]
    cache: Shape
    query_heads: int

    @classmethod
    def of(cls, model: Model) -> Sizes:
        """Of a model, experts counted as all of them being read."""
        text = model.config.get_text_config(decoder=True)
        linears = tuple(view.info.shape for view in model.views())
        head = (text.vocab_size, text.hidden_size)
        return cls(linears, head, Shape.of(model.config), text.num_attention_heads)

    def weight_bytes(self, scheme: Scheme) -> int:
        """Bytes of the blocks' linears and the head, which stays in 16 bits."""
        return sum(_stored(scheme, shape) for shape in self.linears) + BF16 * self.head[0] * self.head[1]


@dataclass(frozen=True)
class Foretold:
    """Seconds of one step, which of memory, products and calls is the most of it, bytes read, and operations."""

    seconds: float
    bound: str
    bytes: int
    operations: int


def decode(machine: Machine, sizes: Sizes, scheme: Scheme, context: int, batch: int) -> Foretold:
    """One token of each of `batch` sequences after `context` tokens."""
    held = cache_bytes(sizes.cache, scheme.kv, context, batch)
    return _step(machine, sizes, scheme, batch, batch, held, batch * context)


def prefill(machine: Machine, sizes: Sizes, scheme: Scheme, context: int, batch: int = 1) -> Foretold:
    """`context` tokens of each of `batch` sequences at once; only the last meets the head."""
    written = cache_bytes(sizes.cache, scheme.kv, context, batch)
    return _step(machine, sizes, scheme, batch * context, batch, written, batch * context * context // 2)


def _step(machine: Machine, sizes: Sizes, scheme: Scheme, rows: int, last: int, cache: int, pairs: int) -> Foretold:
    """`rows` through the blocks, `last` of them through the head; `pairs` of a query and a key."""
    weights = sum(out * width for out, width in sizes.linears)
    rate = (
        machine.int8 if scheme.inputs is not None and scheme.weights == Format.parse("int8:channel") else machine.bf16
    )
    attention = 4 * pairs * sizes.query_heads * sizes.cache.head_dim * len(sizes.cache.sliding)
    in_blocks, others = 2 * rows * weights, 2 * last * sizes.head[0] * sizes.head[1] + attention
    products = in_blocks / (rate or machine.bf16) + others / machine.bf16
    read = sizes.weight_bytes(scheme) + cache
    memory = read / machine.bandwidth
    calls = machine.call * len(sizes.linears)
    largest = max(("memory", memory), ("products", products), ("calls", calls), key=lambda part: part[1])
    return Foretold(max(memory, products) + calls, largest[0], read, in_blocks + others)


def _stored(scheme: Scheme, shape: tuple[int, int]) -> int:
    return BF16 * shape[0] * shape[1] if scheme.weights is None else scheme.weights.stored_bits(shape) // 8
