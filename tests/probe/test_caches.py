import pytest
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from subeight.kv.cache import KVCache
from subeight.kv.policy import KVPolicy
from subeight.probe import caches
from subeight.text.needles import Needle
from tests.models.families import COMMON

CONFIG = LlamaConfig(**COMMON)


@pytest.fixture(scope="module")
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(CONFIG).eval()


def ids_of(length: int) -> torch.Tensor:
    return torch.randint(0, 128, (length,), generator=torch.Generator().manual_seed(3))


def test_states_in_chunks_are_those_of_one_pass(model):
    ids = ids_of(70)
    whole = model.model(input_ids=ids[None], use_cache=False).last_hidden_state[0]
    for size in (7, 70, 200):
        found = caches.final_states(model, "model", ids, DynamicCache(config=CONFIG), size)
        assert torch.allclose(found, whole, atol=1e-5)


def test_a_chunk_sees_itself_in_full_and_the_rest_as_stored(model):
    ids, policy = ids_of(96), KVPolicy.parse("int2:g16,window=0,sinks=0")
    exact = caches.final_states(model, "model", ids, DynamicCache(config=CONFIG), 32)
    rounded = caches.final_states(model, "model", ids, KVCache(model, policy), 32)
    assert torch.allclose(rounded[:32], exact[:32], atol=1e-6)
    assert not torch.allclose(rounded[32:64], exact[32:64], atol=1e-3)


@pytest.mark.parametrize("length", [1, 3])
def test_a_needle_is_found_where_the_model_would_say_it(model, length):
    story = ids_of(40)
    said = caches.greedy(model, story, length, DynamicCache(config=CONFIG), 16)
    plain = model.generate(story[None], max_new_tokens=length, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert said == plain[0, 40:].tolist()
    right = Needle((*story.tolist(), *said), 40, 64, 0.5, 1)
    assert caches.finds(model, right, DynamicCache(config=CONFIG), 16)
    wrong = Needle((*story.tolist(), *said[:-1], (said[-1] + 1) % 128), 40, 64, 0.5, 1)
    assert not caches.finds(model, wrong, DynamicCache(config=CONFIG), 16)


def test_agreement_ends_at_the_first_difference():
    assert caches.agreement([1, 2, 3, 4], [1, 2, 9, 4]) == 0.5
    assert caches.agreement([1, 2], [1, 2]) == 1.0
