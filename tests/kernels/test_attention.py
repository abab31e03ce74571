import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM

from subeight.kernels.attention import FUSED, NAME, attend, use_plain_products
from tests.engine.conftest import checkpoint  # noqa: F401 - a fixture


def oracle(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, scaling: float, seen: np.ndarray | None
) -> np.ndarray:
    """Head by head in float64: [batch, queries, heads, dim]."""
    batch, heads, queries, dim = query.shape
    shared = heads // key.shape[1]
    found = np.zeros((batch, queries, heads, dim))
    for at in range(batch):
        for head in range(heads):
            scores = scaling * query[at, head] @ key[at, head // shared].T
            if seen is not None:
                scores = np.where(seen[at, 0], scores, -np.inf)
            shares = np.exp(scores - scores.max(-1, keepdims=True))
            found[at, :, head] = shares / shares.sum(-1, keepdims=True) @ value[at, head // shared]
    return found


def drawn(queries: int, heads: int, kv_heads: int, tokens: int = 11) -> list[torch.Tensor]:
    draw = torch.Generator().manual_seed(3)
    shapes = [(2, heads, queries, 8), (2, kv_heads, tokens, 8), (2, kv_heads, tokens, 8)]
    return [torch.randn(shape, generator=draw) for shape in shapes]


def module_of(heads: int, kv_heads: int) -> nn.Module:
    module = nn.Module()
    module.num_key_value_groups = heads // kv_heads
    return module


@pytest.mark.parametrize("heads, kv_heads", [(4, 4), (6, 2), (3, 1)])
@pytest.mark.parametrize("masked", [None, "bool", "float"])
@pytest.mark.parametrize("queries", [1, 3])
def test_it_is_attention(heads, kv_heads, masked, queries):
    states = drawn(queries, heads, kv_heads)
    seen = None
    if masked or queries > 1:
        seen = torch.rand(2, 1, queries, 11, generator=torch.Generator().manual_seed(7)) < 0.6
        seen[..., 0] = True
    mask = seen if masked != "float" or seen is None else torch.where(seen, 0.0, torch.finfo(torch.float32).min)
    found, _ = attend(module_of(heads, kv_heads), *states, mask, scaling=0.3)
    wanted = oracle(*(one.double().numpy() for one in states), 0.3, None if seen is None else seen.numpy())
    assert found.shape == (2, queries, heads, 8)
    assert np.allclose(found.numpy(), wanted, atol=1e-5)


def test_bf16_sums_in_float32():
    states = [one.bfloat16() for one in drawn(1, 6, 2, tokens=500)]
    found, _ = attend(module_of(6, 2), *states, None)
    wanted = oracle(*(one.double().numpy() for one in states), 8**-0.5, None)
    assert found.dtype == torch.bfloat16
    assert np.abs(found.double().numpy() - wanted).max() < 0.01


def test_only_a_fused_model_is_changed(checkpoint):  # noqa: F811
    model = AutoModelForCausalLM.from_pretrained(checkpoint("llama"), dtype=torch.float32)
    ids = torch.randint(0, 50, (2, 9), generator=torch.Generator().manual_seed(1))
    before = model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0)
    model.set_attn_implementation("eager")
    use_plain_products(model)
    assert model.config._attn_implementation == "eager"
    model.set_attn_implementation(FUSED)
    use_plain_products(model)
    assert model.config._attn_implementation == NAME
    assert torch.equal(model.generate(ids, max_new_tokens=5, do_sample=False, pad_token_id=0), before)
