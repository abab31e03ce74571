import copy

import pytest
import torch

import subeight.models.align
from subeight.models import folds
from subeight.models.align import align
from subeight.models.block import Block
from subeight.models.fits import Fit
from subeight.models.folds import ModelFolds, apply
from subeight.models.model import Model
from subeight.models.shell import Shell
from tests.models.conftest import plain, streamed
from tests.models.families import FAMILIES, build, save
from tests.models.moves import close, factors, move_scales, orthogonal, pair, rotate_by_hand, round_linears

llamas = pytest.mark.parametrize("family", ["llama", "qwen2", "qwen3"])


@llamas
def test_planted_scales_are_found(family, checkpoint, tmp_path, ids):
    baseline, candidate, made = pair(checkpoint, tmp_path, family, move_scales)
    assert close(plain(made, ids), streamed(baseline, ids))  # what was planted kept the function
    gauge = align(baseline, candidate)
    assert gauge.findings == {}
    assert gauge.is_moved
    assert gauge.rotation is None
    assert max(gauge.differences.values()) < 1e-5
    assert close(streamed(baseline, ids, gauge=gauge), streamed(baseline, ids))


@llamas
def test_planted_scales_are_found_under_int4_rounding(family, checkpoint, tmp_path, ids):
    def change(made):
        move_scales(made)
        round_linears(made)

    baseline, candidate, _ = pair(checkpoint, tmp_path, family, change)
    gauge = align(baseline, candidate)
    assert gauge.findings == {}
    assert close(streamed(baseline, ids, gauge=gauge), streamed(baseline, ids))
    moved = build(FAMILIES[family].config).requires_grad_(False)
    move_scales(moved)
    for index in range(2):
        block = Block(baseline, index, torch.float32)
        gauge.apply(block)
        for view in block.structure.linears():
            fit = Fit.of([(moved.get_parameter(view.parameter), block.weight(view))])
            assert fit.difference < 0.02  # the rounding itself is 0.08


@llamas
@pytest.mark.parametrize("rounded", [False, True])
def test_a_planted_rotation_is_found(family, rounded, checkpoint, tmp_path, ids):
    rotation = orthogonal()

    def change(made):
        rotate_by_hand(made, rotation)
        if rounded:
            move_scales(made)  # as recipes do: rotation first
            round_linears(made)

    baseline, candidate, made = pair(checkpoint, tmp_path, family, change)
    if not rounded:
        assert close(plain(made, ids), streamed(baseline, ids))
    gauge = align(baseline, candidate)
    assert gauge.findings == {}
    assert torch.allclose(gauge.rotation, rotation, atol=1e-5)
    assert close(streamed(baseline, ids, gauge=gauge), streamed(baseline, ids))
    assert max(gauge.differences.values()) < (0.15 if rounded else 1e-4)


def test_tied_embeddings_are_untied_by_a_rotation(tmp_path, ids):
    config = copy.deepcopy(FAMILIES["llama"].config)
    config.tie_word_embeddings = True
    baseline = Model(save(build(config), tmp_path / "baseline"))
    made = build(config)
    rotate_by_hand(made, orthogonal())
    candidate = Model(save(made, tmp_path / "candidate"))
    assert baseline.skeleton.tied
    assert not candidate.skeleton.tied
    gauge = align(baseline, candidate)
    assert gauge.findings == {}
    assert close(streamed(baseline, ids, gauge=gauge), streamed(baseline, ids))
    assert close(streamed(candidate, ids), streamed(baseline, ids))


def test_a_last_norm_folded_into_the_head(checkpoint, tmp_path, ids):
    @torch.no_grad()
    def change(made):
        made.lm_head.weight.mul_(made.model.norm.weight)
        made.model.norm.weight.fill_(1)

    baseline, candidate, _ = pair(checkpoint, tmp_path, "llama", change)
    gauge = align(baseline, candidate)
    assert gauge.findings == {}
    assert gauge.final is not None
    assert max(gauge.differences.values()) < 1e-5
    assert close(streamed(baseline, ids, gauge=gauge), streamed(baseline, ids))


@pytest.mark.parametrize("family", ["gemma2", "phi3", "opt", "gpt2", "mixtral", "qwen3_moe", "olmo2"])
def test_scales_of_every_fold_are_found_in_other_families(family, checkpoint, tmp_path, ids):
    baseline = Model(checkpoint(family))
    made = build(FAMILIES[family].config)
    for index in range(2):
        block = Block(baseline, index, torch.float32)
        for number, fold in enumerate(ModelFolds(baseline)[block.index]):
            apply(block, fold, factors(fold.count, number))
        for name in block.parameters():
            made.get_parameter(name).data.copy_(block.parameter(name))
    candidate = Model(save(made, tmp_path / "candidate"))
    gauge = align(baseline, candidate)
    assert gauge.findings == {}
    assert gauge.is_moved
    assert max(gauge.differences.values()) < 1e-4
    assert close(streamed(baseline, ids, gauge=gauge), streamed(baseline, ids))


def test_experts_that_no_token_of_the_trial_reaches_are_aligned_too(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(folds, "PROBE_TOKENS", 1)  # reaches two of four
    monkeypatch.setattr(subeight.models.align, "PROBE_TOKENS", 1)
    baseline = Model(checkpoint("mixtral"))
    call = Shell(baseline, torch.float32, weights=False).call((1, 1), 0)
    block = Block(baseline, 0, torch.float32)
    tried = folds.find_folds(block, call, baseline.skeleton.width, head_dim=baseline.skeleton.head_dim)
    assert sum(fold.readers[0].expert is not None for fold in tried if not fold.is_norm) == 2
    every = ModelFolds(baseline)[0]
    assert sum(fold.readers[0].expert is not None for fold in every if not fold.is_norm) == 4
    made = build(FAMILIES["mixtral"].config)
    experts = made.get_submodule("model.layers.0.mlp.experts")
    with torch.no_grad():
        for expert in range(4):
            s = factors(96, expert)
            experts.gate_up_proj[expert, 96:].div_(s[:, None])
            experts.down_proj[expert].mul_(s)
    gauge = align(baseline, Model(save(made, tmp_path / "candidate")))
    assert gauge.findings == {}
    assert max(gauge.differences.values()) < 1e-5


def test_blocks_that_keep_their_stored_weights_follow(checkpoint, tmp_path):
    def change(made):
        rotate_by_hand(made, orthogonal())
        move_scales(made)

    baseline, candidate, _ = pair(checkpoint, tmp_path, "llama", change)
    gauge = align(baseline, candidate)
    plainly, kept = Block(baseline, 1, torch.float32), Block(baseline, 1, torch.float32, keep=True)
    gauge.apply(plainly)
    gauge.apply(kept)
    for name in plainly.parameters():
        assert torch.equal(plainly.parameter(name), kept.parameter(name))
        assert torch.equal(kept.stored[name], kept.parameter(name))


def test_a_shell_in_an_unmoved_gauge_is_left_alone(checkpoint):
    model = Model(checkpoint("llama"))
    shell = Shell(model, torch.float32)
    align(model, model).shell(shell)
    for name in model.skeleton.shell_parameters():
        assert torch.equal(shell.parameter(name), model.weights.read(name))
