"""A packed base computes what the dequantized checkpoint does, and gradients reach its inputs through every block."""

import pytest
import torch
from transformers import LlamaConfig

from subeight.models.model import Model
from subeight.models.whole import Whole
from subeight.train.manifest import manifest
from subeight.train.merging import stored_bytes
from subeight.train.qlora_base import load_base
from tests.engine.tiny import quantize
from tests.models.families import COMMON, FAMILIES, build, save

ENDS = "rules: [{match: model.embed_tokens, weights: 'int8:channel'}, {match: lm_head, weights: 'int8:channel'}]"
TIED = "rules: [{match: model.embed_tokens, weights: 'int8:channel'}]"
CASES = {
    "llama": (FAMILIES["llama"].config, "{weights: 'nf4:g32', methods: [rtn]}", 14),
    "ends": (FAMILIES["llama"].config, f"weights: 'nf4:g32'\nmethods: [rtn]\n{ENDS}\n", 16),
    "tied": (LlamaConfig(**COMMON, tie_word_embeddings=True), f"weights: 'nf4:g32'\nmethods: [rtn]\n{TIED}\n", 15),
    "tied in 16 bits": (LlamaConfig(**COMMON, tie_word_embeddings=True), "{weights: 'nf4:g32', methods: [rtn]}", 14),
    "inputs": (FAMILIES["llama"].config, "{weights: 'int8:channel', inputs: 'int8:token', methods: [rtn]}", 14),
    "experts": (FAMILIES["qwen3_moe"].config, "{weights: 'int3:g32', methods: [rtn]}", 32),
    "scaled embeddings": (FAMILIES["gemma3"].config, f"weights: 'nf4:g32'\nmethods: [rtn]\n{TIED}\n", 14),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    config, recipe, packed = CASES[request.param]
    folder = tmp_path_factory.mktemp("base")
    quantize(save(build(config), folder / "plain"), recipe, folder / "base", None, to="subeight")
    model = Model(folder / "base")
    return request.param, model, load_base(model, torch.float32), packed


def test_it_computes_what_the_dequantized_checkpoint_does(case):
    _, model, base, _ = case
    ids = torch.randint(0, 128, (2, 9), generator=torch.Generator().manual_seed(0))
    whole = Whole(model, torch.float32)
    with torch.no_grad(), whole._rounding():
        expected = whole.module(ids).logits
    with torch.no_grad():
        found = base.module(ids).logits
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_what_has_codes_is_packed_or_says_why_not(case):
    name, model, base, packed = case
    assert len(base.packed) == packed
    assert set(model.codes.names) == base.packed.keys() | base.dense.keys()
    assert list(base.dense) == (["model.embed_tokens"] if name == "scaled embeddings" else [])
    unpacked = sum(
        4 * linear.count - model.codes.nbytes(linear.name) for linear in model.linears if linear.name in base.dense
    )
    assert base.nbytes == stored_bytes(model, torch.float32) + unpacked


def test_the_manifest_counts_what_is_held_and_what_is_tied_once(case):
    _, model, base, _ = case
    listed = manifest(base, model, {}, base.module)
    assert listed.totals()["all"]["bytes"] == base.nbytes
    held = {value.data_ptr() for value in base.module.parameters()}
    assert len(listed.of("frozen")) == len(held)


def test_gradients_reach_the_first_block_and_nothing_of_the_base_trains(case):
    _, model, base, _ = case
    assert not any(value.requires_grad for value in base.module.parameters())
    hidden = torch.randn(1, 6, model.skeleton.width, generator=torch.Generator().manual_seed(1)).requires_grad_()
    base.module(inputs_embeds=hidden).logits.square().mean().backward()
    assert hidden.grad.abs().sum() > 0 and torch.isfinite(hidden.grad).all()
