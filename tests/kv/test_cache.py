"""The cache against an oracle that keeps everything, and inside transformers' own models and generate."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import DynamicCache, Gemma2Config, Gemma2ForCausalLM, LlamaConfig, LlamaForCausalLM

from subeight.errors import KernelError
from subeight.kv.cache import KVCache, KVLayer
from subeight.kv.policy import KVPolicy
from tests.models.families import COMMON
from tests.oracles import kv_cache as oracle

SMALL = {**COMMON, "head_dim": 16}


def llama(**changed: object) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SMALL, **changed)).eval()


def gemma() -> Gemma2ForCausalLM:
    torch.manual_seed(0)
    return Gemma2ForCausalLM(Gemma2Config(**SMALL, sliding_window=24)).eval()


def ids_of(batch: int, length: int) -> torch.Tensor:
    return torch.randint(0, 128, (batch, length), generator=torch.Generator().manual_seed(1))


def in_chunks(model: torch.nn.Module, ids: torch.Tensor, cache: object, size: int) -> torch.Tensor:
    with torch.no_grad():
        parts = [model(input_ids=part, past_key_values=cache, use_cache=True).logits for part in ids.split(size, dim=1)]
    return torch.cat(parts, 1)


@settings(max_examples=20, deadline=None)
@given(
    bits=st.sampled_from([2, 3, 4, 8]),
    axis=st.sampled_from(["channel", "token"]),
    window=st.sampled_from([0, 5, 40]),
    sinks=st.sampled_from([0, 3]),
    steps=st.lists(st.sampled_from([1, 2, 31, 50]), min_size=1, max_size=6),
)
def test_gives_back_what_the_oracle_does(bits, axis, window, sinks, steps):
    policy = KVPolicy.parse(f"int{bits}:g32,axis={axis},window={window},sinks={sinks}")
    layer = KVLayer(policy, policy.of_layer(0))
    line = oracle.symmetric(bits)
    along = axis == "channel"
    keys = oracle.Side(line, 32 if along else 1, along, 32, window, sinks)
    values = oracle.Side(line, 1, False, 32, window, sinks)
    draw = torch.Generator().manual_seed(0)
    for count in steps:
        k, v = (torch.randn(2, 2, count, 32, generator=draw) for _ in range(2))
        found = layer.update(k, v)
        for side, states, got in ((keys, k, found[0]), (values, v, found[1])):
            assert np.allclose(got.numpy(), side.update(states.double().numpy()), atol=1e-5)
    assert layer.get_seq_length() == sum(steps)


@pytest.mark.parametrize("text", ["none", "keys=none,values=none,window=8"])
@pytest.mark.parametrize("make", [llama, gemma])
def test_full_precision_is_transformers_own_cache(make, text):
    model, ids = make(), ids_of(2, 70)
    policy = KVPolicy.parse(text)
    plain = in_chunks(model, ids, DynamicCache(config=model.config), 13)
    assert torch.allclose(in_chunks(model, ids, KVCache(model, policy), 13), plain, atol=1e-5)


@pytest.mark.parametrize("text", ["int8:g16", "int8:g16,axis=token", "int8:g16,rotate", "int8:g16,rope=before"])
@pytest.mark.parametrize("make", [llama, gemma])
def test_eight_bits_are_near_it(make, text):
    model, ids = make(), ids_of(2, 90)
    plain = in_chunks(model, ids, DynamicCache(config=model.config), 13)
    found = in_chunks(model, ids, KVCache(model, KVPolicy.parse(f"{text},window=8,sinks=2")), 13)
    assert 0 < (found - plain).norm() < 0.02 * plain.norm()


def test_a_window_that_holds_all_changes_nothing():
    model, ids = llama(), ids_of(1, 40)
    plain = in_chunks(model, ids, DynamicCache(config=model.config), 7)
    assert torch.equal(in_chunks(model, ids, KVCache(model, KVPolicy.parse("int2:g32,window=64")), 7), plain)


@pytest.mark.parametrize(
    "options", [{"num_beams": 3}, {"do_sample": False}, {"num_beams": 2, "num_return_sequences": 2}]
)
def test_generate_with_beams_as_with_the_plain_cache(options):
    model, ids = llama(), ids_of(2, 20)
    given = {"max_new_tokens": 12, "pad_token_id": 0, **options}
    plain = model.generate(ids, **given)
    assert torch.equal(model.generate(ids, past_key_values=KVCache(model, KVPolicy()), **given), plain)
    rounded = model.generate(ids, past_key_values=KVCache(model, KVPolicy.parse("int8:g16,window=4,sinks=1")), **given)
    assert rounded.shape == plain.shape


@pytest.mark.parametrize("axis", ["channel", "token"])
@pytest.mark.parametrize("removed", [1, 10, 33, 60])
def test_cropped_and_continued(axis, removed):
    policy = KVPolicy.parse(f"int8:g16,axis={axis},window=8,sinks=2")
    model, ids = llama(), ids_of(1, 70)
    cache = KVCache(model, policy)
    in_chunks(model, ids, cache, 10)
    cache.crop(-removed)
    assert cache.get_seq_length() == 70 - removed
    found = in_chunks(model, ids[:, 70 - removed :], cache, 10)
    plain = in_chunks(model, ids, DynamicCache(config=model.config), 10)[:, 70 - removed :]
    assert (found - plain).norm() < 0.03 * plain.norm()


def test_selected_repeated_and_reset():
    model, ids = llama(), ids_of(3, 50)
    cache = KVCache(model, KVPolicy.parse("int4:g16,window=8"))
    in_chunks(model, ids, cache, 10)
    before = cache.layers[0]._keys.states(torch.float32)
    cache.batch_select_indices(torch.tensor([2, 0]))
    cache.batch_repeat_interleave(2)
    assert torch.equal(cache.layers[0]._keys.states(torch.float32), before[[2, 2, 0, 0]])
    cache.reset()
    assert cache.get_seq_length() == 0 and cache.nbytes == 0


@pytest.mark.parametrize(
    "text, share", [("int4:g64", 4.25 / 16), ("int3:g64", 3.25 / 16), ("int2:g64:asym", 2.375 / 16)]
)
def test_memory_is_that_of_codes(text, share):
    policy = KVPolicy.parse(f"{text},window=0,sinks=0")
    layer = KVLayer(policy, policy.of_layer(0))
    states = torch.randn(2, 3, 128, 64, generator=torch.Generator().manual_seed(0)).bfloat16()
    layer.update(states, states)
    assert layer.nbytes == 2 * states.nbytes * share
    assert policy.bits(64) == (16 * share, 16 * share)


def test_what_no_policy_holds_is_refused():
    model = llama()
    model.config.layer_types = ["linear_attention", "full_attention"]
    with pytest.raises(KernelError, match="linear_attention"):
        KVCache(model, KVPolicy.parse("int4:g64"))
    half = LlamaForCausalLM(LlamaConfig(**SMALL))
    del half.model.rotary_emb
    with pytest.raises(KernelError, match="leave out rope=before"):
        KVCache(half, KVPolicy.parse("int4:g64,rope=before"))
