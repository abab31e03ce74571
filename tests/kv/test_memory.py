import pytest
import torch
from transformers import Gemma2Config, LlamaConfig

from subeight.kv.cache import KVLayer
from subeight.kv.memory import Shape, cache_bytes, crossing
from subeight.kv.policy import KVPolicy

SHAPE = Shape(heads=3, head_dim=64, sliding=(None,) * 2)
POLICIES = ["none", "int4:g64", "int2:g32:asym,window=0,sinks=0", "keys=int8:token,values=int4:g64,axis=token,window=7"]


@pytest.mark.parametrize("context", [1, 100, 131, 132, 133, 500])
@pytest.mark.parametrize("text", POLICIES)
def test_what_is_foretold_is_what_is_held(text, context):
    policy = KVPolicy.parse(text)
    held = 0
    for index in range(2):
        layer = KVLayer(policy, policy.of_layer(index))
        states = torch.randn(2, 3, context, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
        layer.update(states, states)
        held += layer.nbytes
    assert cache_bytes(SHAPE, policy, context, 2) == held


def test_shapes_of_configs():
    plain = LlamaConfig(hidden_size=64, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2)
    assert Shape.of(plain) == Shape(2, 16, (None,) * 3)
    gemma = Gemma2Config(
        num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2, head_dim=8, sliding_window=24
    )
    assert sorted(map(str, Shape.of(gemma).sliding)) == ["24", "None"]


@pytest.mark.parametrize("text", POLICIES)
def test_where_keys_and_values_outweigh_the_weights(text):
    policy = KVPolicy.parse(text)
    at = crossing(SHAPE, policy, 10**6, batch=3)
    assert at is not None
    assert cache_bytes(SHAPE, policy, at, 3) > 10**6 >= cache_bytes(SHAPE, policy, at - 1, 3)
    assert crossing(SHAPE, policy, 10**15) is None
