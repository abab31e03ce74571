import copy

import pytest
import torch

from subeight.errors import ModelError
from subeight.formats import Format, quantize
from subeight.models.align import align
from subeight.models.model import Model
from tests.models.conftest import streamed
from tests.models.families import FAMILIES, build, save
from tests.models.moves import close, move_scales, orthogonal, pair, rotate_by_hand, round_linears

ATTENTION = "model.layers.1.self_attn"
MLP = "model.layers.0.mlp"


def test_the_same_model_is_not_moved(checkpoint):
    gauge = align(Model(checkpoint("llama")), Model(checkpoint("llama")))
    assert not gauge.is_moved
    assert gauge.findings == {}
    assert set(gauge.differences.values()) == {0.0}


@pytest.mark.parametrize("text", ["int8:channel", "int4:g32", "int3:g32", "int2:g32", "int2:g32:asym"])
def test_rounding_alone_is_neither_a_move_nor_a_finding(text, checkpoint, tmp_path):
    @torch.no_grad()
    def change(made):
        for module in made.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.weight.copy_(quantize(module.weight, Format.parse(text)).dequantize())

    baseline, candidate, _ = pair(checkpoint, tmp_path, "llama", change)
    gauge = align(baseline, candidate)
    assert not gauge.is_moved
    assert gauge.findings == {}


@pytest.mark.parametrize("rounded", [False, True])
@pytest.mark.parametrize(
    ("place", "change"),
    [
        (f"{ATTENTION}.q_proj", lambda w: torch.randn(w.shape, generator=torch.Generator().manual_seed(9))),
        (f"{ATTENTION}.v_proj", lambda w: torch.randn(w.shape, generator=torch.Generator().manual_seed(9))),
        (f"{MLP}.down_proj", lambda w: w.flip(0)),
        (f"{MLP}.gate_proj", lambda w: 1.5 * w),
        (f"{MLP}.up_proj", lambda w: -w),
        ("lm_head", lambda w: w.roll(1, 0)),
        ("model.embed_tokens", lambda w: w.roll(1, 0)),
    ],
)
def test_a_planted_different_weight_is_a_finding(place, change, rounded, checkpoint, tmp_path, ids):
    @torch.no_grad()
    def plant(made):
        move_scales(made)
        weight = made.get_submodule(place).weight
        weight.copy_(change(weight))
        if rounded:
            round_linears(made)

    baseline, candidate, _ = pair(checkpoint, tmp_path, "llama", plant)
    gauge = align(baseline, candidate)
    assert set(gauge.findings) == {place}
    assert place in gauge.findings[place]
    assert gauge.differences[place] > 0.3
    assert close(streamed(baseline, ids, gauge=gauge), streamed(baseline, ids))


def test_a_norm_that_nobody_took_up_is_a_finding(checkpoint, tmp_path):
    @torch.no_grad()
    def plant(made):
        made.model.layers[0].input_layernorm.weight.mul_(1.3)

    baseline, candidate, _ = pair(checkpoint, tmp_path, "llama", plant)
    gauge = align(baseline, candidate)
    assert list(gauge.findings) == ["model.layers.0.input_layernorm.weight"]
    assert not gauge.is_moved


def test_a_rotation_that_the_architecture_cannot_follow_is_a_finding(checkpoint, tmp_path, ids):
    @torch.no_grad()
    def plant(made):
        made.get_input_embeddings().weight.copy_(made.get_input_embeddings().weight @ orthogonal())

    baseline, candidate, _ = pair(checkpoint, tmp_path, "gemma2", plant)
    gauge = align(baseline, candidate)
    assert gauge.rotation is None
    assert "cannot follow" in gauge.findings["model.embed_tokens"]


def test_embeddings_that_do_not_determine_the_rotation(tmp_path):
    config = copy.deepcopy(FAMILIES["llama"].config)
    config.vocab_size = 32  # fewer tokens than channels
    baseline = Model(save(build(config), tmp_path / "baseline"))
    made = build(config)
    rotate_by_hand(made, orthogonal())
    gauge = align(baseline, Model(save(made, tmp_path / "candidate")))
    assert gauge.rotation is None
    assert "does not determine" in gauge.findings["model.embed_tokens"]


def test_blocks_are_shown_aligned(checkpoint, tmp_path):
    baseline, candidate, _ = pair(checkpoint, tmp_path, "llama", move_scales)
    seen = []

    def look(block, other):
        seen.append((block.index, max(close_to(block, other))))

    align(baseline, candidate, look=look)
    assert [index for index, _ in seen] == [0, 1]
    assert max(difference for _, difference in seen) < 1e-5


def close_to(block, other):
    for name in block.parameters():
        yield float((block.parameter(name) - other.parameter(name)).norm() / other.parameter(name).norm())


def test_two_architectures_are_refused(checkpoint):
    with pytest.raises(ModelError, match="not two versions of one model"):
        align(Model(checkpoint("llama")), Model(checkpoint("qwen2")))
