import pytest
import torch

from subeight.errors import ModelError
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.routing import expert_outputs, experts_module, experts_of, run_routed, shown_to_all
from subeight.models.shell import Shell
from subeight.models.tap import gather
from tests.oracles import experts as oracle

MIXTURES = ["mixtral", "qwen3_moe"]


@pytest.fixture
def opened(checkpoint):
    def find(family):
        model = Model(checkpoint(family))
        block = Block(model, 1, torch.float32)
        hidden = torch.randn(2, 17, 64, generator=torch.Generator().manual_seed(4))
        return block, hidden, Shell(model, torch.float32, weights=False).call((2, 17), 1)

    return find


def linears_of(block, number):
    """gate, up and down of an expert, whatever the checkpoint calls them."""
    views = [view for view in block.structure.linears() if view.expert == number]
    tails = {view.info.name.rpartition(".")[2]: block.weight(view) for view in views}
    names = ("w1", "w3", "w2") if "w1" in tails else ("gate_proj", "up_proj", "down_proj")
    return [tails[name] for name in names]


@pytest.mark.parametrize("family", MIXTURES)
def test_choices_weights_and_logits_are_the_oracles(family, opened):
    block, hidden, call = opened(family)
    plain = block(hidden, call)
    output, routing = run_routed(block, hidden, call)
    assert torch.equal(output, plain)
    gate = next(view for view in block.structure.linears() if view.info.kind == "router")
    router = block.weight(gate)
    chosen, weights = oracle.routed(routing.inputs, router, 2)
    assert [sorted(row) for row in routing.chosen.tolist()] == [sorted(row) for row in chosen]
    if family == "mixtral":  # Qwen3's are not renormed by default
        torch.testing.assert_close(routing.weights.double(), torch.tensor(weights).double(), rtol=1e-5, atol=1e-6)
    expected = routing.inputs.double() @ router.double().T
    torch.testing.assert_close(routing.logits.double(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("family", MIXTURES)
def test_an_expert_alone_is_the_oracles(family, opened):
    block, _, _ = opened(family)
    inputs = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    for number in range(4):
        expected = torch.stack([oracle.expert(token, *linears_of(block, number)) for token in inputs])
        found = expert_outputs(block, inputs, number).double()
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_experts_are_named_in_their_order(opened):
    block, _, _ = opened("mixtral")
    assert experts_of(block.structure) == [f"model.layers.1.block_sparse_moe.experts.{e}" for e in range(4)]


def test_a_dense_block_routes_nothing(checkpoint):
    model = Model(checkpoint("llama"))
    block = Block(model, 0, torch.float32)
    call = Shell(model, torch.float32, weights=False).call((1, 5), 0)
    hidden = torch.randn(1, 5, 64)
    output, routing = run_routed(block, hidden, call)
    assert routing is None and torch.equal(output, block(hidden, call))


def test_all_tokens_are_shown_to_all_and_the_output_stays(opened):
    block, hidden, call = opened("mixtral")
    plain = block(hidden, call)
    with shown_to_all(block):
        assert torch.equal(block(hidden, call), plain)
    groups = [group for group in block.structure.groups if group.is_expert]
    natural = gather(block, groups, [(hidden, call)], {"hessian"})
    forced = gather(block, groups, [(hidden, call)], {"hessian"}, forced=True)
    assert {stats.count for stats in forced.values()} == {34}
    assert sum(natural[group.name].count for group in groups) == 2 * 2 * 34
    assert "forward" not in vars(experts_module(block))


def test_experts_that_are_called_otherwise_are_refused(opened):
    block, hidden, call = opened("mixtral")
    experts = experts_module(block)
    moe = next(module for module in block.module.modules() if experts in list(module.children()))
    moe.forward = lambda given: experts(given.reshape(-1, 64), torch.zeros(34, 2, dtype=torch.long), torch.ones(34))
    with pytest.raises(ModelError, match="how it routes cannot be watched"):
        run_routed(block, hidden, call)
