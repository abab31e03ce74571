"""What a KV policy costs, apart from the weights or together with them: states, retrieval and answers under a cache.

Text is read in chunks, as long prompts are: the tokens of a chunk see each other, and window and sinks, in full
precision, all that lies before as the cache gives it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import Cache

from subeight.text.needles import Needle

CHUNK = 128
NewCache = Callable[[], Cache]


@torch.no_grad()
def final_states(
    module: PreTrainedModel, trunk: str, ids: Int[Tensor, " tokens"], cache: Cache, chunk: int = CHUNK
) -> Float[Tensor, "tokens width"]:
    """What the head reads of every token of one text."""
    return torch.cat([output.last_hidden_state[0] for output in _read(module.get_submodule(trunk), ids, cache, chunk)])


@torch.no_grad()
def finds(module: PreTrainedModel, needle: Needle, cache: Cache, chunk: int = CHUNK) -> bool:
    """Whether the likeliest tokens are the number that was asked for, each after the right ones before it."""
    ids = torch.tensor(needle.ids, device=module.device)
    story, answer = ids[: needle.answer], ids[needle.answer :]
    *_, last = _read(module, story, cache, chunk, logits_to_keep=1)
    if int(last.logits[0, -1].argmax()) != int(answer[0]):
        return False
    if len(answer) == 1:
        return True
    rest = module(input_ids=answer[None, :-1], past_key_values=cache, use_cache=True).logits[0]
    return bool((rest.argmax(-1) == answer[1:]).all())


@torch.no_grad()
def greedy(
    module: PreTrainedModel, prompt: Int[Tensor, " tokens"], tokens: int, cache: Cache, chunk: int = CHUNK
) -> list[int]:
    """The likeliest tokens after a prompt, one after the other; nothing stops them."""
    *_, last = _read(module, prompt, cache, chunk, logits_to_keep=1)
    found = [int(last.logits[0, -1].argmax())]
    while len(found) < tokens:
        step = torch.tensor([found[-1:]], device=module.device)
        output = module(input_ids=step, past_key_values=cache, use_cache=True)
        found.append(int(output.logits[0, -1].argmax()))
    return found


def agreement(one: Sequence[int], other: Sequence[int]) -> float:
    """The share of tokens up to the first at which two answers part."""
    same = next((at for at, (a, b) in enumerate(zip(one, other, strict=True)) if a != b), len(one))
    return same / len(one) if one else 1.0


def _read(module: torch.nn.Module, ids: Tensor, cache: Cache, chunk: int, **options: int) -> Iterator[Any]:
    for part in ids.split(chunk):
        yield module(input_ids=part[None], past_key_values=cache, use_cache=True, **options)
