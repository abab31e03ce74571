"""Routing and errors inside a mixture: nothing where nothing was changed, the planted place where something was."""

import copy

import numpy as np
import pytest
import torch

from subeight.evals.experts import expert_numbers
from subeight.evals.passes import Computing, Sequences
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.routing import run_routed
from subeight.models.shell import Shell
from subeight.text import EvaluationSet, Sample
from tests.engine.tiny import quantize as rounded
from tests.models.families import FAMILIES, build, save
from tests.oracles import experts as oracle

PLAIN = Computing(torch.float32, torch.device("cpu"), quiet=True)
EXPERTS = "model.layers.1.block_sparse_moe.experts"


@pytest.fixture(scope="module")
def made():
    return build(FAMILIES["mixtral"].config)


@pytest.fixture(scope="module")
def base(made, tmp_path_factory):
    return Model(save(made, tmp_path_factory.mktemp("base")))


@pytest.fixture(scope="module")
def sequences():
    generator = torch.Generator().manual_seed(3)
    samples = []
    for number, length in enumerate((40, 39, 31, 24, 40, 36)):  # of several lengths, so that there is padding
        ids = tuple(torch.randint(0, 128, (length,), generator=generator).tolist())
        samples.append(Sample(ids, (False, *(True for _ in ids[1:])), "x", f"doc{number}"))
    return Sequences.of(EvaluationSet(tuple(samples), "x"))


def changed(made, directory, change):
    other = copy.deepcopy(made)
    with torch.no_grad():
        change(other)
    return Model(save(other, directory))


def numbers(base, candidate, sequences):
    return expert_numbers(base, candidate, sequences, PLAIN)


def test_the_same_model_loses_and_shifts_nothing(base, sequences):
    found = numbers(base, base, sequences)
    assert (found["changed"], found["replaced"], found["kl"]) == (0.0, 0.0, 0.0)
    assert all(row["output_error"] == 0 for row in found["rows"]) and found["worst_over_median"] is None
    for block in (0, 1):
        assert sum(row["tokens"] for row in found["rows"] if row["block"] == block) == 2 * 210
        assert sum(row["weight"] for row in found["rows"] if row["block"] == block) == pytest.approx(1)


def test_one_damaged_expert_is_the_worst_by_what_it_lost(base, made, sequences, tmp_path):
    def damage(other):
        other.model.layers[1].mlp.experts.gate_up_proj.mul_(1.001)
        other.model.layers[1].mlp.experts.down_proj[2].mul_(1.2)

    found = numbers(base, changed(made, tmp_path / "c", damage), sequences)
    rows = {row["expert"]: row for row in found["rows"]}
    assert found["worst"] == f"{EXPERTS}.2" and found["worst_over_median"] > 100
    assert rows[f"{EXPERTS}.2"]["output_error"] == pytest.approx(0.04, rel=0.1)
    assert found["changed"] == 0.0, "the last block's experts change no router"


def test_a_router_that_chooses_otherwise_is_measured(base, made, sequences, tmp_path):
    def turn(other):
        gate = other.model.layers[1].mlp.gate.weight
        gate.add_(0.1 * torch.randn(gate.shape, generator=torch.Generator().manual_seed(5)))

    candidate = changed(made, tmp_path / "c", turn)
    found = numbers(base, candidate, sequences)
    first, second = found["routing"]
    assert first["changed"] == 0.0 and first["kl"] == 0.0
    moved, replaced, divergences = [], [], []
    for sample in sequences.samples:
        ours, theirs = (_routed(model, sample.ids) for model in (base, candidate))
        for a, b, p, q in zip(ours.chosen, theirs.chosen, ours.logits, theirs.logits, strict=True):
            common = len(set(a.tolist()) & set(b.tolist()))
            moved.append(common < 2)
            replaced.append(1 - common / 2)
            divergences.append(oracle.divergence(p, q))
    assert 0 < np.mean(moved) < 1
    assert second["changed"] == pytest.approx(np.mean(moved))
    assert second["replaced"] == pytest.approx(np.mean(replaced))
    assert second["kl"] == pytest.approx(np.mean(divergences), rel=1e-3)
    assert second["changed_ci"][0] < second["changed"] < second["changed_ci"][1]
    assert found["changed"] == pytest.approx(second["changed"] / 2)


def _routed(model, ids):
    shell = Shell(model, torch.float32)
    hidden = shell.embed(torch.tensor(ids)[None])
    routing = None
    for index in range(2):
        hidden, routing = run_routed(Block(model, index, torch.float32), hidden, shell.call((1, len(ids)), index))
    return routing


def test_an_error_is_the_oracles(base, made, sequences, tmp_path):
    def damage(other):
        down = other.model.layers[0].mlp.experts.down_proj
        down.add_(0.05 * torch.randn(down.shape, generator=torch.Generator().manual_seed(1)))

    candidate = changed(made, tmp_path / "c", damage)
    found = numbers(base, candidate, sequences)
    weights = [_parts(model) for model in (base, candidate)]
    for expert in range(4):
        lost = whole = 0.0
        for sample in sequences.samples:
            shell = Shell(base, torch.float32)
            hidden = shell.embed(torch.tensor(sample.ids)[None])
            _, routing = run_routed(Block(base, 0, torch.float32), hidden, shell.call((1, len(sample.ids)), 0))
            for token in routing.inputs[(routing.chosen == expert).any(1)]:
                exact, rounded = (oracle.expert(token, *parts[expert]) for parts in weights)
                lost += float((rounded - exact).square().sum())
                whole += float(exact.square().sum())
        assert found["rows"][expert]["output_error"] == pytest.approx(lost / whole, rel=1e-3)


def _parts(model):
    names = ("w1", "w3", "w2")
    prefix = "model.layers.0.block_sparse_moe.experts"
    block = Block(model, 0, torch.float32)
    views = {view.info.name: block.weight(view) for view in block.structure.linears()}
    return [[views[f"{prefix}.{expert}.{name}"] for name in names] for expert in range(4)]


def test_scales_that_only_moved_are_no_error(base, made, sequences, tmp_path):
    """The norm in front of the experts and their up and down in another gauge: the same function."""

    def move(other):
        generator = torch.Generator().manual_seed(0)
        for layer in other.model.layers:
            s = torch.exp(0.4 * torch.randn(64, generator=generator))
            layer.post_attention_layernorm.weight.div_(s)
            layer.mlp.gate.weight.mul_(s)
            layer.mlp.experts.gate_up_proj.mul_(s)

    found = numbers(base, changed(made, tmp_path / "c", move), sequences)
    assert all(row["output_error"] < 1e-6 for row in found["rows"])
    assert found["changed"] < 0.01


def test_plain_rounding_is_no_worse_than_itself(base, sequences, tmp_path):
    """A candidate that was rounded to nearest loses what plain rounding in its format loses."""
    directory = tmp_path / "rtn"
    rounded(base.directory, "{weights: 'int4:g32', methods: [rtn]}", directory, None)
    found = numbers(base, Model(directory), sequences)
    assert all(row["plain_error"] == pytest.approx(row["output_error"], rel=0.02) for row in found["rows"])
    assert all(0.001 < row["plain_error"] < 0.1 for row in found["rows"])
    unknown = numbers(base, base, sequences)
    assert unknown["worse_than_plain"] is None and unknown["rows"][0]["plain_error"] is None
