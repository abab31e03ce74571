import pytest
import torch

from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.stats import GATHERED
from subeight.models.tap import chunks, gather
from tests.models.families import FAMILIES
from tests.oracles.models_hessian import expert_inputs, hessian, inputs_of


def loaded(directory, dtype=torch.float32, batches=3):
    model = Model(directory)
    block = Block(model, 1, dtype)
    call = Shell(model, dtype, weights=False).call((2, 17), 1)
    generator = torch.Generator().manual_seed(4)
    return block, [(torch.randn(2, 17, 64, generator=generator).to(dtype), call) for _ in range(batches)]


def near(got, expected):
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5 * float(expected.abs().max()))


def module_of(block, view):
    return block.module.get_submodule(view.parameter.removeprefix(f"{block.prefix}.").removesuffix(".weight"))


@pytest.mark.parametrize("family", [name for name in FAMILIES if name not in ("mixtral", "qwen3_moe")])
def test_statistics_are_the_oracles(family, checkpoint):
    block, batches = loaded(checkpoint(family))
    runs = [(hidden, *call) for hidden, call in batches]
    found = gather(block, block.structure.groups, batches, GATHERED)
    for group in block.structure.groups:
        stats = found[group.name]
        inputs = inputs_of(block.module, module_of(block, group.linears[0]), runs)
        assert stats.count == len(inputs) == 3 * 34
        near(stats.hessian, hessian(inputs))
        assert torch.equal(stats.absmax, inputs.abs().amax(0))
        near(stats.absmean, inputs.double().abs().mean(0))


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_statistics_of_each_expert_are_the_oracles(family, checkpoint):
    block, batches = loaded(checkpoint(family))
    runs = [(hidden, *call) for hidden, call in batches]
    groups = block.structure.groups
    found = gather(block, groups, batches, {"hessian"})
    gate = next(group.linears[0] for group in groups if group.linears[0].info.kind == "router")
    hidden = inputs_of(block.module, block.module.mlp, runs)
    reached = 0
    for expert in range(4):
        first, second = (group for group in groups if group.is_expert and group.linears[0].expert == expert)
        gate_up = torch.cat([block.weight(view) for view in first.linears])
        ours, inside = expert_inputs(block.weight(gate), 2, hidden, gate_up, expert)
        for group, inputs in ((first, ours), (second, inside)):
            assert found[group.name].count == len(inputs)
            near(found[group.name].hessian, hessian(inputs))
        reached += len(ours)
    assert reached == 2 * len(hidden)


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_chunks_under_a_memory_limit_give_the_same(family, checkpoint):
    block, batches = loaded(checkpoint(family))
    groups = block.structure.groups
    whole = gather(block, groups, batches, GATHERED)
    limit = 2 * 4 * 64**2
    parts = chunks(groups, limit, GATHERED)
    assert len(parts) > 1
    assert [group for part in parts for group in part] == list(groups)
    assert all(len(part) == 1 or sum(4 * group.width**2 for group in part) <= limit for part in parts)
    for part in parts:
        for name, stats in gather(block, part, batches, GATHERED).items():
            for field in GATHERED - {"drift"}:
                assert torch.equal(getattr(stats, field), getattr(whole[name], field))


def test_without_hessians_nothing_is_split(checkpoint):
    groups = Model(checkpoint("llama")).structures[0].groups
    assert chunks(groups, 1, {"absmax"}) == [list(groups)]


def test_a_tap_stops_where_nothing_more_is_wanted(checkpoint):
    block, batches = loaded(checkpoint("llama"))
    ran = []
    for name in ("self_attn", "mlp", "mlp.gate_proj", "mlp.down_proj"):
        block.module.get_submodule(name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    first, _, third, _ = block.structure.groups
    gather(block, [first], batches[:1], {"absmax"})
    assert ran == ["self_attn"]
    ran.clear()
    gather(block, [third], batches[:1], {"absmax"})
    assert ran == ["self_attn", "mlp", "mlp.gate_proj"]


def test_an_expert_without_tokens_counts_none(checkpoint):
    model = Model(checkpoint("mixtral"))
    block = Block(model, 1, torch.float32)
    one_token = (torch.randn(1, 1, 64), Shell(model, torch.float32, weights=False).call((1, 1), 1))
    experts = [group for group in block.structure.groups if group.is_expert]
    found = gather(block, experts, [one_token], GATHERED)
    assert sorted(found[group.name].count for group in experts) == [0] * 4 + [1] * 4  # two of four are chosen
    for stats in found.values():
        assert bool(stats.hessian.any()) is (stats.count == 1)
        assert bool(torch.isfinite(stats.absmean).all())


def test_bf16_inputs_give_exact_products(checkpoint):
    block, batches = loaded(checkpoint("llama"), torch.bfloat16)
    runs = [(hidden, *call) for hidden, call in batches]
    group = block.structure.groups[0]
    stats = gather(block, [group], batches, {"hessian"})[group.name]
    near(stats.hessian, hessian(inputs_of(block.module, module_of(block, group.linears[0]), runs)))


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_drift_is_how_far_the_baselines_inputs_are(family, checkpoint):
    block, batches = loaded(checkpoint(family))
    baseline, _ = loaded(checkpoint(family))
    generator = torch.Generator().manual_seed(9)
    others = [(hidden + 0.1 * torch.randn(hidden.shape, generator=generator), call) for hidden, call in batches]
    found = gather(block, block.structure.groups, batches, GATHERED, (baseline, others))
    for group in block.structure.groups:
        x, exact = (
            inputs_of(b.module, module_of(b, group.linears[0]), [(hidden, *call) for hidden, call in runs]).double()
            for b, runs in ((block, batches), (baseline, others))
        )
        assert float((exact - x).abs().max()) > 0
        near(found[group.name].drift, hessian(x, exact - x))
        near(found[group.name].hessian, hessian(x.float()))
    assert all(stats.drift is None for stats in gather(block, block.structure.groups, batches, GATHERED).values())
