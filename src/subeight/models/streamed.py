"""Answers of a model that does not fit: its blocks are read one after the other, once for every token.

All prompts take their step together while a block is there. Each is computed as if it were alone, with a cache of its
own, so the answers are those of the model loaded whole (`models.whole`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.cache_utils import Cache

from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.whole import Whole, first_maximum


@dataclass
class _Text:
    """What is read next of one prompt [rows, length], and the cache of what was read before."""

    ids: Tensor
    cache: Cache | None = None


class Streamed:
    """A model that answers from disk: one block, the shell and the prompts' caches are in memory.

    `room` are the bytes that caches may take; where all prompts together need more, they take turns. `block` gives
    the blocks of another model than the stored one (a mixture).
    """

    def __init__(
        self,
        model: Model,
        shell: Shell,
        *,
        room: int,
        block: Callable[[int], AbstractContextManager[Block]] | None = None,
    ) -> None:
        self._model, self._shell, self._room = model, shell, room
        self._block = block or (lambda index: nullcontext(Block(model, index, shell.dtype, shell.device)))

    def greedy(self, prompts: Sequence[Sequence[int]], tokens: int, stop: set[int]) -> list[list[int]]:
        """Up to `tokens` greedy tokens after each prompt, the stopping token left out; no sampling, no penalties."""
        longest = max((len(prompt) for prompt in prompts), default=0) + tokens
        size = max(1, self._room // (longest * cache_bytes(self._model, self._shell.dtype)))
        parts = [prompts[start : start + size] for start in range(0, len(prompts), size)]
        return [found for part in parts for found in self._together(part, tokens, stop)]

    def sample(self, ids: Tensor, generator: torch.Generator) -> Iterator[Tensor]:
        """Endless tokens [batch, 1] after `ids` [batch, length], drawn at temperature 1."""
        text = _Text(ids.to(self._shell.device))
        while True:
            (logits,) = self._read([text])
            chances = torch.softmax(logits.float(), -1).cpu()
            token = torch.multinomial(chances, 1, generator=generator)
            yield token
            text.ids = token.to(self._shell.device)

    def _together(self, prompts: Sequence[Sequence[int]], tokens: int, stop: set[int]) -> list[list[int]]:
        written: list[list[int]] = [[] for _ in prompts]
        texts = {n: _Text(torch.tensor([list(p)], device=self._shell.device)) for n, p in enumerate(prompts)}
        for _ in range(tokens):
            logits = self._read(list(texts.values())) if texts else []
            for number, found in zip(list(texts), logits, strict=True):
                token = first_maximum(found[0])
                if token in stop:
                    del texts[number]
                    continue
                written[number].append(token)
                texts[number].ids = torch.tensor([[token]], device=self._shell.device)
        return written

    @torch.no_grad()
    def _read(self, texts: Sequence[_Text]) -> list[Tensor]:
        """The logits [rows, vocabulary] behind what is read next of each text; reads every block once."""
        hidden, calls = [], []
        for text in texts:
            state, call, text.cache = self._shell.enter(text.ids, text.cache)
            hidden.append(state)
            calls.append(call)
        for index in range(len(self._model.skeleton.blocks)):
            with self._block(index) as block:
                hidden = [block(state, call[index]) for state, call in zip(hidden, calls, strict=True)]
            del block  # before the next one is read
        return [self._shell.logits(state)[:, -1].clone() for state in hidden]


def cache_bytes(model: Model, dtype: torch.dtype) -> int:
    """What the keys and values of one token take in all layers."""
    text = model.config.get_text_config(decoder=True)
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    return int(2 * heads * width * text.num_hidden_layers * dtype.itemsize)


def writer_of(model: Model, dtype: torch.dtype, device: torch.device | str, room: int) -> Whole | Streamed:
    """What writes answers with `model`: loaded whole where it takes no more than `room` bytes, else from disk."""
    needed = dtype.itemsize * sum(parameter.numel() for parameter in model.skeleton.model.parameters())
    return (
        Whole(model, dtype, device) if needed <= room else Streamed(model, Shell(model, dtype, device), room=room // 2)
    )
