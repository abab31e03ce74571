"""Attention of one new token on a CPU: transformers' way to torch's fused kernel against our two products.

    python -m benchmarks.attention [--threads 2] [--seconds 1.5]

smollm2's shape (9 heads read 3 of keys, 64 wide) and one of 32 heads over 8, 128 wide; bf16, interleaved in one
process, medians. The fused kernel gets heads packed as transformers packs them.
"""

import argparse
import time

import torch
from benchmarks.common import spread, write_result
from torch import nn
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from subeight.kernels.attention import attend

SHAPES = {"9 heads over 3 of 64": (9, 3, 64), "32 heads over 8 of 128": (32, 8, 128)}
TOKENS = (128, 1024, 4096)


def main() -> None:
    """Times all shapes and lengths, writes ratios with their spread."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=1.5, help="for each shape and length")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    found = {
        f"{name}, {tokens} tokens": _ratio(*shape, tokens, given.seconds)
        for name, shape in SHAPES.items()
        for tokens in TOKENS
    }
    write_result("attention", {"threads": given.threads, "ratios": found})


@torch.no_grad()
def _ratio(heads: int, kv_heads: int, dim: int, tokens: int, seconds: float) -> dict[str, object]:
    draw = torch.Generator().manual_seed(0)
    query = torch.randn(1, heads, 1, dim, generator=draw).bfloat16()
    key, value = (torch.randn(1, kv_heads, tokens, dim, generator=draw).bfloat16() for _ in range(2))
    module = nn.Module()
    module.num_key_value_groups = heads // kv_heads
    ways = {"fused": sdpa_attention_forward, "two products": attend}
    times: dict[str, list[float]] = {name: [] for name in ways}
    began = time.perf_counter()
    while time.perf_counter() - began < seconds:
        for name, way in ways.items():
            start = time.perf_counter()
            way(module, query, key, value, None, scaling=dim**-0.5)
            times[name].append(time.perf_counter() - start)
    found = {name: spread(values[2:]) for name, values in times.items()}
    return {**found, "ratio": found["fused"]["median"] / found["two products"]["median"]}


if __name__ == "__main__":
    main()
