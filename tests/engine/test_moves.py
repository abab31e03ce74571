"""Moves keep the function of a block, whatever the family, and statistics can be followed through them."""

from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor

from subeight.engine.lane import UNLIMITED
from subeight.engine.moves import joined, move_block, moving
from subeight.models.block import Block
from subeight.models.calls import Call
from subeight.models.folds import ModelFolds
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.stats import GATHERED, Stats
from subeight.models.structure import InputGroup
from subeight.models.tap import gather
from subeight.recipes import Plan
from tests.engine.tiny import calibration, plan_of
from tests.models.families import FAMILIES

Find = Callable[..., Path]
AWQ = "{weights: 'int4:g32', methods: [awq, rtn]}"
BOTH = "{weights: 'int4:g32', methods: [smooth, awq, rtn]}"


class Opened:
    """Block 1 of a tiny model with the inputs that the model gives it."""

    def __init__(self, source: Path, recipe: str) -> None:
        self.model = Model(source)
        self.plan: Plan = plan_of(self.model, recipe)
        ids = calibration(vocabulary=128)
        shell = Shell(self.model, torch.float32)
        self.call: Call = shell.call(tuple(ids.shape), 1)
        self.hidden: Tensor = Block(self.model, 0, torch.float32)(shell.embed(ids), shell.call(tuple(ids.shape), 0))
        self.block = Block(self.model, 1, torch.float32, keep=True)

    def output(self) -> Tensor:
        return self.block(self.hidden, self.call)

    def tap(self, groups: Sequence[InputGroup], wanted: frozenset[str]) -> dict[str, Stats]:
        return gather(self.block, groups, [(self.hidden, self.call)], wanted)

    def move(self, limit: int = UNLIMITED) -> dict[str, Tensor]:
        folds = ModelFolds(self.model)[1]
        return move_block(self.block, folds, self.plan, self.tap, limit)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("recipe", [AWQ, BOTH], ids=["awq", "smooth+awq"])
def test_a_move_keeps_the_function(checkpoint: Find, family: str, recipe: str) -> None:
    opened = Opened(checkpoint(family), recipe)
    before = opened.output()
    weights = {name: value.clone() for name, value in opened.block.stored.items()}
    columns = opened.move()
    assert set(columns) >= set(moving(opened.plan, opened.block))
    changed = [name for name, value in opened.block.stored.items() if not torch.equal(value, weights[name])]
    assert len(changed) >= 2
    for name in changed:  # the block computes with what will be written
        assert torch.equal(opened.block.parameter(name), opened.block.stored[name])
    assert float((opened.output() - before).abs().max()) < 1e-4 * float(before.abs().max())


@pytest.mark.parametrize("family", ["llama", "gemma2", "mixtral", "gpt2"])
def test_rescaled_statistics_are_those_of_a_new_tap(
    checkpoint: Find, family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # tokens count what they did before the move
    monkeypatch.setattr("subeight.models.tap.token_counts", lambda x: torch.ones(len(x), 1))
    opened = Opened(checkpoint(family), AWQ)
    groups = opened.block.structure.groups
    before = opened.tap(groups, GATHERED)
    columns = opened.move()
    after = opened.tap(groups, GATHERED)
    assert any(float(c.max() / c.min()) > 1.05 for c in columns.values())
    for name, new in after.items():
        old = before[name].rescaled(columns[name]) if name in columns else before[name]
        assert new.count == old.count
        for one, other in ((old.hessian, new.hessian), (old.absmax, new.absmax), (old.absmean, new.absmean)):
            assert one is not None and other is not None
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * float(other.abs().max()) + 1e-12)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_chunks_do_not_change_a_move(checkpoint: Find, family: str) -> None:
    found = []
    for limit in (UNLIMITED, 1):
        opened = Opened(checkpoint(family), BOTH)
        opened.move(limit)
        found.append(opened.block.stored)
    assert all(torch.equal(found[0][name], value) for name, value in found[1].items())


def test_experts_that_read_one_norm_are_moved_by_what_all_of_them_read(checkpoint: Find) -> None:
    opened = Opened(checkpoint("mixtral"), AWQ)
    experts = [group for group in opened.block.structure.groups if group.is_expert and group.norm is not None]
    router = next(group for group in opened.block.structure.groups if group.linears[0].info.kind == "router")
    stats = opened.tap([*experts, router], GATHERED)
    whole = stats[experts[0].name]
    for group in experts[1:]:
        whole = joined(whole, stats[group.name])
    every = stats[router.name]  # reads each token once, where two experts do
    assert whole.count == 2 * every.count
    torch.testing.assert_close(whole.hessian, every.hessian, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(whole.absmean, every.absmean, rtol=1e-4, atol=1e-5)
    assert torch.equal(whole.absmax, every.absmax)


def test_joined_statistics_are_those_of_all_tokens() -> None:
    x = torch.randn(70, 12, generator=torch.Generator().manual_seed(0))
    unfed = Stats(0, torch.zeros(12, 12), torch.zeros(12), torch.zeros(12))
    parts = [unfed, Stats.from_inputs(x[:20]), unfed, Stats.from_inputs(x[20:])]
    kept = parts[1].hessian.clone()
    found = joined(joined(joined(unfed, parts[1]), unfed), parts[3])
    whole = Stats.from_inputs(x)
    assert found.count == whole.count
    torch.testing.assert_close(found.hessian, whole.hessian)
    torch.testing.assert_close(found.absmean, whole.absmean)
    torch.testing.assert_close(found.absmax, whole.absmax)
    assert torch.equal(parts[1].hessian, kept)
