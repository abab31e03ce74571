import pytest
import torch
from transformers import AutoModelForCausalLM

from subeight.models.block import Block
from subeight.models.folds import ModelFolds, apply
from subeight.models.model import Model
from subeight.models.shell import Shell
from tests.models.conftest import plain, streamed
from tests.models.families import FAMILIES

every_family = pytest.mark.parametrize("family", FAMILIES)


def drawn(producer, groups, prefix):
    readers = ", ".join(dict.fromkeys(name.removeprefix(prefix) for name in groups))
    return f"{producer.removeprefix(prefix)} -> {readers}" if producer else readers


@every_family
def test_streamed_logits_are_those_of_transformers(family, checkpoint, ids):
    directory = checkpoint(family)
    made = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    assert torch.equal(streamed(Model(directory), ids), plain(made, ids))


@every_family
def test_groups_and_the_norms_that_feed_them(family, checkpoint):
    model = Model(checkpoint(family))
    for index in range(2):
        structure, prefix = model.structures[index], f"{model.skeleton.block_name(index)}."
        seen = [drawn(group.norm, [group.name], prefix) for group in structure.groups]
        assert sorted(seen) == sorted(FAMILIES[family].groups)
        assert all(view.info.block == index for view in structure.linears())


@every_family
def test_stages_are_in_data_order(family, checkpoint):
    model = Model(checkpoint(family))
    stages = [[group.name.rpartition(".")[2] for group in stage] for stage in model.structures[1].stages]
    expected = [group.rpartition(" -> ")[2].rpartition(".")[2] for group in FAMILIES[family].groups]
    assert len(stages) == FAMILIES[family].stages
    assert [name for stage in stages for name in stage] == expected


@every_family
def test_folds_are_those_of_the_architecture(family, checkpoint):
    model = Model(checkpoint(family))
    block = Block(model, 1, torch.float32)
    folds = ModelFolds(model)[1]
    seen = [drawn(fold.producer, [v.info.group for v in fold.readers], f"{block.prefix}.") for fold in folds]
    assert sorted(seen) == sorted(FAMILIES[family].folds)
    assert {fold.offset for fold in folds if fold.is_norm} <= {FAMILIES[family].offset}


@every_family
@pytest.mark.parametrize("keep", [False, True])
def test_every_fold_keeps_the_function(family, keep, checkpoint):
    model = Model(checkpoint(family))
    generator = torch.Generator().manual_seed(3)
    call = Shell(model, torch.float32, weights=False).call((2, 17), 1)
    hidden = torch.randn(2, 17, 64, generator=generator)
    folds = ModelFolds(model)[1]
    block = Block(model, 1, torch.float32, keep=keep)
    before, weights = block(hidden, call), {name: block.parameter(name).clone() for name in block.parameters()}
    for fold in folds:
        apply(block, fold, torch.exp(0.5 * torch.randn(fold.count, generator=generator)))
    torch.testing.assert_close(block(hidden, call), before, rtol=1e-4, atol=1e-4)
    changed = [name for name, value in weights.items() if not torch.equal(block.parameter(name), value)]
    assert {view.parameter for fold in folds for view in fold.readers} <= set(changed)
    if keep:
        assert all(torch.equal(block.stored[name], block.parameter(name)) for name in weights)


@every_family
def test_linears_cover_every_matrix_of_the_blocks(family, checkpoint):
    model = Model(checkpoint(family))
    inside = sum(p.numel() for p in model.skeleton.blocks.parameters() if p.dim() >= 2)
    linears = [linear for linear in model.linears if linear.block is not None]
    assert sum(linear.count for linear in linears) == inside
    assert len({linear.name for linear in linears}) == len(linears)
    outside = {linear.kind for linear in model.linears if linear.block is None}
    assert outside == {"embedding", "tied" if model.skeleton.tied else "head"}
