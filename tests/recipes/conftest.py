"""The linears of a small Llama and a small mixture of experts, as a plan sees them: names and shapes, no weights."""

import pytest
import torch

from subeight.models.linear_info import LinearInfo


def linear(
    name: str,
    shape: tuple[int, int],
    group: str | None = None,
    kind: str = "linear",
    fusion: str | None = None,
    dtype: torch.dtype = torch.bfloat16,
) -> LinearInfo:
    block = int(name.split(".")[2]) if ".layers." in name else None
    return LinearInfo(name, shape, block, group or name, fusion, kind, dtype)


def llama(layers: int = 2, hidden: int = 128, middle: int = 320) -> list[LinearInfo]:
    found = [linear("model.embed_tokens", (512, hidden), kind="embedding")]
    for i in range(layers):
        attention, mlp = f"model.layers.{i}.self_attn", f"model.layers.{i}.mlp"
        qkv, gate_up = f"{attention}.q_proj+k_proj+v_proj", f"{mlp}.gate_proj+up_proj"
        for name, rows in (("q", hidden), ("k", 64), ("v", 64)):
            found.append(linear(f"{attention}.{name}_proj", (rows, hidden), qkv, fusion=qkv))
        found.append(linear(f"{attention}.o_proj", (hidden, hidden)))
        found += [linear(f"{mlp}.{name}_proj", (middle, hidden), gate_up, fusion=gate_up) for name in ("gate", "up")]
        found.append(linear(f"{mlp}.down_proj", (hidden, middle)))
    return [*found, linear("lm_head", (512, hidden), kind="head")]


def mixture() -> list[LinearInfo]:
    found = []
    for i in range(2):
        read = f"model.layers.{i}.mlp"
        found.append(linear(f"model.layers.{i}.self_attn.o_proj", (64, 64)))
        found.append(linear(f"{read}.gate", (4, 64), read, kind="router"))
        found += [linear(f"{read}.experts.{at}.up_proj", (96, 64), read, kind="expert") for at in range(4)]
    return found


@pytest.fixture
def linears() -> list[LinearInfo]:
    return llama()
