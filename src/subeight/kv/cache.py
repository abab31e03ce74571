"""A KV cache for transformers (`past_key_values=`) that stores packed codes, by a policy.

New tokens are attended to in full precision by the call that brings them. Beyond sinks and window they are rounded in
whole runs, and what later calls read of them is dequantized layer by layer.
"""

from __future__ import annotations

import sys
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin

from subeight.errors import KernelError
from subeight.kv.policy import KVPolicy, LayerPolicy
from subeight.kv.store import Store

FULL, SLIDING = "full_attention", "sliding_attention"
States = Float[Tensor, "batch heads tokens dim"]
Turn = Callable[[Tensor, int, bool], Tensor]  # keys, the first one's position, back or forth


class KVCache(Cache):  # type: ignore[misc]  # transformers is untyped
    """The cache of a model under a policy.

    Raises:
        RecipeError: the policy names layers that the model does not have.
        KernelError: a layer of the model is of a kind that no policy can hold (linear attention), or keys cannot be
            taken back to before their rotary embedding.
    """

    def __init__(self, model: PreTrainedModel, policy: KVPolicy) -> None:
        config = model.config.get_text_config(decoder=True)
        count = config.num_hidden_layers
        kinds = list(getattr(config, "layer_types", None) or [FULL] * count)
        strange = sorted(set(kinds) - {FULL, SLIDING})
        if strange:
            raise KernelError(
                f"This model has layers of {', '.join(strange)}, whose state no KV policy holds; policies are for "
                f"{FULL} and {SLIDING}: leave the cache as it is."
            )
        policy.require_layers(count)
        turn = rotary_turn(model) if policy.rope == "before" else None
        window = getattr(config, "sliding_window", None)
        layers = [
            KVLayer(policy, policy.of_layer(index), turn, sliding=window if kind == SLIDING else None)
            for index, kind in enumerate(kinds)
        ]
        super().__init__(layers=layers)
        self.policy = policy

    @property
    def nbytes(self) -> int:
        """Bytes that the cache holds now."""
        return sum(layer.nbytes for layer in self.layers)


class _Side:
    """Keys or values of one layer: sinks and recent tokens as they are, what lies between as codes.

    What is stored goes through `turn` before it is rounded, and back after.
    """

    def __init__(self, store: Store | None, turn: Turn | None = None) -> None:
        self.store = store
        self._turn = turn
        self._dropped = 0  # tokens that lay before the stored ones and are gone
        self.sinks: Tensor | None = None
        self.recent: Tensor | None = None

    @property
    def plain(self) -> list[Tensor]:
        return [part for part in (self.sinks, self.recent) if part is not None]

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for part in self.plain) + (0 if self.store is None else self.store.nbytes)

    @property
    def tokens(self) -> int:
        return sum(part.shape[2] for part in self.plain) + (0 if self.store is None else self.store.tokens)

    def states(self, dtype: torch.dtype) -> States:
        """All tokens in order."""
        middle = [] if self.store is None or not self.store.tokens else [self._stored(dtype)]
        first = [] if self.sinks is None else [self.sinks]
        last = [] if self.recent is None else [self.recent]
        return torch.cat([*first, *middle, *last], 2)

    def _stored(self, dtype: torch.dtype) -> States:
        assert self.store is not None
        if self._turn is None:
            return self.store.states(dtype)
        return self._turn(self.store.states(torch.float32), self._first, False).to(dtype)

    @property
    def _first(self) -> int:
        """The place of the first stored token in its sequence."""
        return self._dropped + (0 if self.sinks is None else self.sinks.shape[2])

    def append(self, states: States, sinks: int) -> None:
        """Adds tokens in full precision; the first of all become sinks."""
        missing = 0 if self.store is None else sinks - (0 if self.sinks is None else self.sinks.shape[2])
        if missing > 0 and self.recent is None:
            first, states = states[:, :, :missing], states[:, :, missing:]
            self.sinks = first.contiguous() if self.sinks is None else torch.cat([self.sinks, first], 2)
        if states.shape[2]:
            self.recent = states.contiguous() if self.recent is None else torch.cat([self.recent, states], 2)

    def settle(self, window: int) -> None:
        """Rounds what lies beyond the window, in whole runs."""
        if self.store is None or self.recent is None:
            return
        ready = (self.recent.shape[2] - window) // self.store.run * self.store.run
        if ready > 0:
            rounded = self.recent[:, :, :ready]
            self.store.append(
                rounded if self._turn is None else self._turn(rounded.float(), self._first + self.store.tokens, True)
            )
            self.recent = self.recent[:, :, ready:].contiguous()

    def crop(self, tokens: int) -> None:
        """Keeps the first `tokens`."""
        first = 0 if self.sinks is None else self.sinks.shape[2]
        stored = 0 if self.store is None else self.store.tokens
        if self.sinks is not None:
            self.sinks = self.sinks[:, :, :tokens].contiguous()
        left = max(tokens - first - stored, 0)
        if self.recent is not None:
            self.recent = self.recent[:, :, :left].contiguous()
        if self.store is not None and tokens - first < stored:
            kept = max(tokens - first, 0)
            whole = kept // self.store.run * self.store.run
            assert self.recent is not None  # what is stored was recent once
            if kept > whole:
                self.recent = self._stored(self.recent.dtype)[:, :, whole:kept].contiguous()
            self.store.keep(whole // self.store.run)

    def select(self, rows: Tensor) -> None:
        """Keeps these sequences of the batch, in this order."""
        if self.store is not None:
            self.store.select(rows)
        self.sinks = None if self.sinks is None else self.sinks.index_select(0, rows.to(self.sinks.device))
        self.recent = None if self.recent is None else self.recent.index_select(0, rows.to(self.recent.device))

    def forget(self, tokens: int) -> None:
        """Drops about the first `tokens`: of codes only whole runs; there are no sinks."""
        if self.store is not None and self.store.tokens:
            runs = min(tokens, self.store.tokens) // self.store.run
            self.store.drop(runs)
            self._dropped += runs * self.store.run
        elif self.recent is not None and tokens > 0:
            self.recent = self.recent[:, :, tokens:].contiguous()
            self._dropped += tokens


class KVLayer(CacheLayerMixin):  # type: ignore[misc]
    """One layer of the cache; `sliding` is the window of a layer that sees no further."""

    is_compileable = False
    is_croppable = True

    def __init__(
        self, policy: KVPolicy, formats: LayerPolicy, turn: Turn | None = None, sliding: int | None = None
    ) -> None:
        super().__init__()
        self.is_sliding = sliding is not None
        self._policy, self._formats, self._turn, self._sliding = policy, formats, turn, sliding
        self._seen = 0
        self._start()

    def _start(self) -> None:
        keys, values, policy = self._formats.keys, self._formats.values, self._policy
        along = policy.axis == "channel"
        self._keys = _Side(None if keys is None else Store(keys, along, policy.rotate), self._turn)
        self._values = _Side(None if values is None else Store(values, False, policy.rotate))

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:  # noqa: ARG002 - transformers'
        """Notes the type in which states are given back."""
        self.dtype, self.device = key_states.dtype, key_states.device
        self.is_initialized = True

    def update(
        self, key_states: States, value_states: States, *_args: object, **_kwargs: object
    ) -> tuple[States, States]:
        """Adds tokens and gives back all that these may attend to."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        sinks = 0 if self.is_sliding else self._policy.sinks
        self._keys.append(key_states, sinks)
        self._values.append(value_states, sinks)
        new = key_states.shape[2]
        self._seen += new
        keys, values = self._keys.states(self.dtype), self._values.states(self.dtype)
        if self._sliding is not None:
            seen = self._sliding - 1 + new
            keys, values = keys[:, :, -seen:], values[:, :, -seen:]
        for side in (self._keys, self._values):
            side.settle(self._policy.window)
            if self._sliding is not None:
                side.forget(side.tokens - (self._sliding - 1))
        return keys, values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Length and offset of what is attended to."""
        if self._sliding is None:
            return self._seen + query_length, 0
        offset = max(self._seen - self._sliding + 1, 0)
        return min(self._seen, self._sliding - 1) + query_length, offset

    def get_seq_length(self) -> int:
        """Tokens so far."""
        return self._seen

    def get_max_length(self) -> int:
        """-1: it grows."""
        return -1 if self._sliding is None else self._sliding

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return self._keys.nbytes + self._values.nbytes

    def reset(self) -> None:
        """Empties it."""
        self._seen, self.is_initialized = 0, False
        self._start()

    def crop(self, tokens_to_remove: int) -> None:
        """Removes the last tokens, given as a negative number.

        Raises:
            KernelError: the layer slides and has forgotten what would have to come back.
        """
        left = self._seen - abs(tokens_to_remove)
        if tokens_to_remove == 0 or not self.is_initialized:
            return
        if self._sliding is not None and self._seen >= self._sliding:
            raise KernelError("a sliding layer of the KV cache has forgotten tokens that cropping would need.")
        self._keys.crop(left)
        self._values.crop(left)
        self._seen = left

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The sequences of the batch in the order of these beams."""
        self.batch_select_indices(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Each sequence of the batch so many times."""
        if self._seen:
            rows = self._keys.plain[0].shape[0]
            self.batch_select_indices(torch.arange(rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keeps these sequences of the batch."""
        if self._seen:
            self._keys.select(indices)
            self._values.select(indices)


def rotary_turn(model: PreTrainedModel) -> Turn:
    """A function that takes keys back to before their rotary embedding, or forth again, by the model's own code.

    Positions are places in the cache: padding on the left turns a whole sequence by one angle more, back and forth.

    Raises:
        KernelError: the model has no such embedding, or it turns only a part of each head.
    """
    embedding = next((one for name, one in model.named_modules() if name.endswith("rotary_emb")), None)
    attention = next((one for name, one in model.named_modules() if name.endswith("self_attn")), None)
    apply = (
        None if attention is None else getattr(sys.modules[type(attention).__module__], "apply_rotary_pos_emb", None)
    )
    if embedding is None or apply is None:
        raise KernelError(
            "keys before RoPE were asked for, but this model has no rotary embedding; leave out rope=before."
        )

    def turn(keys: Tensor, first: int, back: bool) -> Tensor:
        places = torch.arange(first, first + keys.shape[2], device=keys.device)[None]
        cos, sin = embedding(keys.float(), places)
        if cos.shape[-1] != keys.shape[-1]:
            raise KernelError(
                "keys before RoPE were asked for, but only a part of each head is turned; use rope=after."
            )
        wide = keys.float()
        if not back:
            return apply(wide, wide, cos, sin)[1].to(keys.dtype)
        size = (cos.square() + sin.square())[:, None]  # of embeddings that scale too
        return (apply(wide, wide, cos, -sin)[1] / size).to(keys.dtype)

    return turn
