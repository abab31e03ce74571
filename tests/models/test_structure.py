import pytest
import torch
from safetensors.torch import load_file

from subeight.errors import ModelError
from subeight.models.model import Model
from subeight.models.skeleton import Skeleton
from subeight.models.structure import Structures
from tests.models.families import FAMILIES, build


@pytest.mark.parametrize(("family", "tails"), [("mixtral", ("w1", "w3", "w2")), ("qwen3_moe", None)])
def test_experts_are_views_of_the_fused_parameters(family, tails, checkpoint):
    model = Model(checkpoint(family))
    stored = load_file(checkpoint(family) / "model.safetensors")
    experts = [view for view in model.structures[1].linears() if view.info.kind == "expert"]
    assert len(experts) == 3 * 4
    assert {view.info.name.rpartition(".")[2] for view in experts} == set(
        tails or ("gate_proj", "up_proj", "down_proj")
    )
    for view in experts:
        parameter = model.weights.read(view.parameter)
        assert parameter.dim() == 3
        assert torch.equal(view.of(parameter), stored[f"{view.info.name}.weight"])
        assert tuple(view.of(parameter).shape) == view.info.shape
        view.of(parameter).fill_(7.0)
        assert int((parameter == 7).sum()) == view.info.count


@pytest.mark.parametrize(("family", "kind"), [("mixtral", "router"), ("qwen3_moe", "router"), ("gpt2", "conv1d")])
def test_kinds(family, kind, checkpoint):
    assert kind in {linear.kind for linear in Model(checkpoint(family)).linears}


def test_what_engines_fuse_shares_a_fusion(checkpoint):
    by_name = {linear.name: linear.fusion for linear in Model(checkpoint("llama")).linears}
    prefix = "model.layers.0"
    fused = {by_name[f"{prefix}.self_attn.{tail}"] for tail in ("q_proj", "k_proj", "v_proj")}
    assert fused == {f"{prefix}.self_attn.k_proj+q_proj+v_proj"}
    assert by_name[f"{prefix}.mlp.gate_proj"] == by_name[f"{prefix}.mlp.up_proj"]
    assert by_name[f"{prefix}.self_attn.o_proj"] is None


def test_blocks_that_differ_are_watched_each():
    config = FAMILIES["qwen3_moe"].config.__class__.from_dict(FAMILIES["qwen3_moe"].config.to_dict())
    config.mlp_only_layers = [0]
    structures = Structures(Skeleton(config))
    assert {view.info.kind for view in structures[0].linears()} == {"linear"}
    assert "expert" in {view.info.kind for view in structures[1].linears()}


def test_a_matrix_that_no_product_uses_is_refused(monkeypatch):
    skeleton = Skeleton(FAMILIES["llama"].config)
    for block in skeleton.blocks:
        block.register_parameter("strange", torch.nn.Parameter(torch.empty(64, 64, device="meta")))
    with pytest.raises(ModelError, match="weight matrices that no watched product used"):
        Structures(skeleton)[0]


def test_the_skeleton_holds_no_weights():
    skeleton = Skeleton(FAMILIES["llama"].config)
    assert all(parameter.is_meta for parameter in skeleton.model.parameters())
    assert not any(buffer.is_meta for buffer in skeleton.model.buffers())
    assert sorted(
        [*skeleton.shell_parameters(), *skeleton.block_parameters(0), *skeleton.block_parameters(1)]
    ) == sorted(name for name, _ in build(FAMILIES["llama"].config).named_parameters())
    assert skeleton.width == 64
    assert skeleton.head_dim == 16
