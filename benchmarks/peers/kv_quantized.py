"""transformers' QuantizedCache on windows of tokens: final hidden states and the bytes that the cache holds.

ENV/bin/python kv_quantized.py MODEL_DIR WINDOWS.pt OUT.pt --backend hqq --bits 4 --axis-key 1 --axis-value 1

WINDOWS.pt holds token ids [windows, context]. `--protocol chunks` reads each window in chunks of 128 tokens, `prefill`
all but its last 256 tokens in one call and these in chunks of 32; only theirs are kept then. OUT.pt gets `states`
[windows, tokens, width], what the head reads, and of `keys` and `values` the bytes of codes, of scales and zero points
and of what stays in full precision (all as they lie in memory: 32 bits a number in float32), and the tokens in codes.

What the cache does is not changed: the first call rounds all of its tokens, none stays in full precision. Later tokens
are kept as they are until there are `--residual` of them; then everything, what was rounded before as well, is
dequantized and rounded anew, so that old tokens are rounded once for each time that the residual fills. A call that
brings as many tokens as the residual holds rounds everything anew.

How groups run over keys or values [batch, heads, tokens, channels], by backend and axis:
  hqq 1, quanto 0   consecutive channels of one token: per token
  quanto -1         as many tokens of one channel, one after the other, as in KIVI; it refuses a number of tokens that
                    does not fill whole groups
  hqq 0             elements that lie (all / 64) apart: of one channel, spread over heads and the whole context, where
                    the tokens fill whole groups, else of several channels
Their documentation recommends 1 and 1 for hqq, 0 and 0 for quanto. hqq fits its zero points (20 steps), quanto takes
the range; scales and zero points of both have the type of the states. `--backend full` is the plain cache, as a check.
"""

import argparse
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM
from transformers.cache_utils import Cache, DynamicCache, QuantizedCache

CHUNK, LAST, STEP = 128, 256, 32


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", type=Path)
    parser.add_argument("windows", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--backend", choices=("hqq", "quanto", "full"), required=True)
    parser.add_argument("--bits", type=int, default=4)
    parser.add_argument("--group", type=int, default=64)
    parser.add_argument("--residual", type=int, default=128)
    parser.add_argument("--axis-key", type=int, default=0)
    parser.add_argument("--axis-value", type=int, default=0)
    parser.add_argument("--protocol", choices=("chunks", "prefill"), default="chunks")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--threads", type=int, default=1)
    return parser.parse_args()


def main() -> None:
    """Reads every window with a cache of its own."""
    given = arguments()
    torch.set_num_threads(given.threads)
    model = AutoModelForCausalLM.from_pretrained(given.model, dtype=getattr(torch, given.dtype)).eval()
    states, held = [], {}
    for window in torch.load(given.windows):
        cache = new_cache(given, model)
        states.append(read(model, window, cache, given.protocol))
        held = {side: bytes_of(cache, side) for side in ("keys", "values")}
    packages = ("transformers", "torch", "hqq", "optimum-quanto")
    versions = {name: version(name) for name in packages}
    torch.save({"states": torch.stack(states).float(), **held, "versions": versions}, given.out)


def new_cache(given: argparse.Namespace, model: torch.nn.Module) -> Cache:
    if given.backend == "full":
        return DynamicCache(config=model.config)
    return QuantizedCache(
        given.backend, model.config, given.bits, given.axis_key, given.axis_value, given.group, given.residual
    )


@torch.no_grad()
def read(model: torch.nn.Module, window: torch.Tensor, cache: Cache, protocol: str) -> torch.Tensor:
    """Final hidden states of one window, or of its last tokens."""
    parts = window.split(CHUNK)
    if protocol == "prefill":
        parts = (window[:-LAST], *window[-LAST:].split(STEP))
    found = [
        model.model(input_ids=part[None], past_key_values=cache, use_cache=True).last_hidden_state[0] for part in parts
    ]
    return torch.cat(found[1:] if protocol == "prefill" else found)


def bytes_of(cache: Cache, side: str) -> dict[str, int]:
    """What all layers hold of keys or values, each memory once."""
    total = {"codes": 0, "scales": 0, "plain": 0, "tokens": 0}
    for layer in cache.layers:
        plain = getattr(layer, side)
        total["plain"] += plain.numel() * plain.element_size()
        total["tokens"] = layer.get_seq_length() - (plain.shape[-2] if plain.dim() == 4 else 0)
        stored = getattr(layer, f"_quantized_{side}", None)
        tensors = [] if stored is None else list(tensors_in(stored))
        for tensor in {one.untyped_storage().data_ptr(): one for one in tensors}.values():
            kind = "scales" if tensor.is_floating_point() else "codes"
            total[kind] += tensor.untyped_storage().nbytes()
    return total


def tensors_in(stored: Any) -> Iterator[torch.Tensor]:
    """Of hqq codes and a dictionary, of quanto a tensor made of tensors."""
    if hasattr(stored, "__tensor_flatten__"):
        for name in stored.__tensor_flatten__()[0]:
            yield from tensors_in(getattr(stored, name))
    elif isinstance(stored, torch.Tensor):
        yield stored
    elif isinstance(stored, dict | tuple):
        for one in stored.values() if isinstance(stored, dict) else stored:
            yield from tensors_in(one)


if __name__ == "__main__":
    main()
