"""Mixtures of experts of every kind of checkpoint: the names that vLLM loads, and what is read back of them.

The names are those of vLLM's loaders (`FusedMoE.make_expert_params_mapping` of each family's model file): w1, w3, w2
for Mixtral and Granite, gate_proj, up_proj, down_proj for the others, each under `experts.N`; of gpt-oss, gate and up
are the even and odd columns, and have biases, as llm-compressor writes them.
"""

from pathlib import Path

import pytest
import torch
import transformers as hf
from safetensors.torch import load_file
from torch import Tensor

from subeight.errors import ModelError, OutputError
from subeight.formats import Format
from subeight.formats import quantize as round_to
from subeight.models.model import Model
from subeight.recipes import Plan
from tests.engine.test_families import plain_logits, streamed_logits
from tests.engine.tiny import calibration, quantize
from tests.models.families import COMMON, FAMILIES, MOE, build, save

PACKED = ("weight_packed", "weight_scale", "weight_shape")
SHARED = {"shared_expert_intermediate_size": 64}
DEEPSEEK = {
    **COMMON, "num_key_value_heads": 4, "n_routed_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32,
    "n_shared_experts": 1, "n_group": 2, "topk_group": 1, "first_k_dense_replace": 1, "q_lora_rank": 32,
    "kv_lora_rank": 32, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16,
}  # fmt: skip
CONFIGS = {
    "mixtral": FAMILIES["mixtral"].config,
    "qwen3_moe": FAMILIES["qwen3_moe"].config,
    "qwen2_moe": hf.Qwen2MoeConfig(**COMMON, **MOE, **SHARED),
    "deepseek_v3": hf.DeepseekV3Config(**DEEPSEEK),
    "gpt_oss": hf.GptOssConfig(
        **COMMON, head_dim=16, num_local_experts=4, num_experts_per_tok=2, layer_types=["full_attention"] * 2
    ),
    "granitemoe": hf.GraniteMoeConfig(**COMMON, num_local_experts=4, num_experts_per_tok=2),
}
WHOLE = ("gpt_oss", "granitemoe")
# What stands under model.layers.1 for expert 2, for shared experts and for the router.
EXPERTS = {
    "mixtral": [f"block_sparse_moe.experts.2.{name}" for name in ("w1", "w2", "w3")],
    "granitemoe": [f"block_sparse_moe.experts.2.{name}" for name in ("w1", "w2", "w3")],
    **{
        name: [f"mlp.experts.2.{tail}" for tail in ("down_proj", "gate_proj", "up_proj")]
        for name in ("qwen3_moe", "qwen2_moe", "deepseek_v3", "gpt_oss")
    },
}
OTHERS = {
    "mixtral": ["block_sparse_moe.gate.weight"],
    "granitemoe": ["block_sparse_moe.router.layer.weight"],
    "qwen3_moe": ["mlp.gate.weight"],
    "qwen2_moe": [
        "mlp.gate.weight",
        "mlp.shared_expert_gate.weight",
        *(f"mlp.shared_expert.{tail}.weight_packed" for tail in ("down_proj", "gate_proj", "up_proj")),
    ],
    "deepseek_v3": [
        "mlp.gate.e_score_correction_bias",
        "mlp.gate.weight",
        *(f"mlp.shared_experts.{tail}.weight_packed" for tail in ("down_proj", "gate_proj", "up_proj")),
    ],
    "gpt_oss": [
        "mlp.router.bias",
        "mlp.router.weight",
        *(f"mlp.experts.2.{tail}.bias" for tail in ("down_proj", "gate_proj", "up_proj")),
    ],
}
RECIPES = {"gptq": "{weights: 'int4:g32', methods: [gptq]}", "rtn": "{weights: 'int4:g32:fp32', methods: [rtn]}"}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder, found = tmp_path_factory.mktemp("bases"), {}
    for name, config in CONFIGS.items():
        model = build(config)
        for key, buffer in model.named_buffers():
            if key.endswith("e_score_correction_bias"):  # large enough to choose other experts
                buffer.copy_(0.3 * torch.randn(buffer.shape, generator=torch.Generator().manual_seed(1)))
        found[name] = save(model, folder / name)
    return found


@pytest.fixture(scope="module")
def written(bases: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Plan]]:
    """Each family by GPTQ, as compressed-tensors."""
    folder, found = tmp_path_factory.mktemp("written"), {}
    for name, base in bases.items():
        lane = quantize(base, RECIPES["gptq"], folder / name, calibration())
        found[name] = folder / name, lane.plan
    return found


def tensors_of(directory: Path) -> dict[str, Tensor]:
    return {key: value for path in sorted(directory.glob("*.safetensors")) for key, value in load_file(path).items()}


@pytest.mark.parametrize("family", CONFIGS)
def test_experts_have_the_names_that_vllm_loads(family: str, written: dict[str, tuple[Path, Plan]]) -> None:
    prefix = "model.layers.1."
    names = [key.removeprefix(prefix) for key in tensors_of(written[family][0]) if key.startswith(prefix)]
    packed = [f"{expert}.{part}" for expert in EXPERTS[family] for part in PACKED]
    assert sorted(n for n in names if ".experts.2." in n and not n.endswith(".bias")) == sorted(packed)
    inside = [n for n in names if not n.startswith(("self_attn.", "input_layernorm", "post_attention_layernorm"))]
    others = [n for n in inside if ".experts." not in n or (".experts.2." in n and n.endswith(".bias"))]
    assert sorted(n for n in others if not n.endswith(("_scale", "_shape"))) == sorted(OTHERS[family])


@pytest.mark.parametrize("family", CONFIGS)
def test_routers_and_the_gates_of_shared_experts_stay_as_they_are(
    family: str, written: dict[str, tuple[Path, Plan]]
) -> None:
    directory, plan = written[family]
    routers = [site for site in plan.sites if site.linear.kind == "router"]
    assert routers and all(site.weights is None and "router" in site.reason for site in routers)
    ignored = Model(directory).quantization["ignore"]
    assert {site.linear.name for site in routers} <= set(ignored)


@pytest.mark.parametrize("family", [name for name in CONFIGS if name not in WHOLE])
def test_plain_transformers_loads_experts_that_its_checkpoints_store_one_by_one(
    family: str, written: dict[str, tuple[Path, Plan]]
) -> None:
    directory, plan = written[family]
    assert all("transformers" in site.runs_in and "vllm" in site.runs_in for site in plan.quantized)
    ids = calibration(2, 20, seed=9)
    found = streamed_logits(directory, ids)
    assert float((found - plain_logits(directory, ids)).abs().max()) < 2e-3 * float(found.std())


def test_what_corrects_a_routers_scores_is_read_and_written(
    bases: dict[str, Path], written: dict[str, tuple[Path, Plan]]
) -> None:
    name, ids = "model.layers.1.mlp.gate.e_score_correction_bias", calibration(2, 20, seed=9)
    before, after = (tensors_of(path)[name] for path in (bases["deepseek_v3"], written["deepseek_v3"][0]))
    assert torch.equal(before, after) and float(before.abs().min()) > 0
    whole = plain_logits(bases["deepseek_v3"], ids)
    assert float((streamed_logits(bases["deepseek_v3"], ids) - whole).abs().max()) < 1e-4 * float(whole.std())


@pytest.mark.parametrize("family", WHOLE)
def test_experts_of_one_tensor_are_read_back_from_their_own(
    family: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    """The split checkpoint computes what the dense one of the same codes does in plain transformers."""
    lanes = {
        to: quantize(bases[family], RECIPES["rtn"], tmp_path / to, calibration(), to)
        for to in ("compressed-tensors", "dense")
    }
    experts = [site for site in lanes["dense"].plan.quantized if site.linear.kind == "expert"]
    assert len(experts) == 2 * 4 * 3 and all("transformers" not in site.runs_in for site in experts)
    ids = calibration(2, 20, seed=9)
    before, dense = plain_logits(bases[family], ids), plain_logits(tmp_path / "dense", ids)
    split = streamed_logits(tmp_path / "compressed-tensors", ids)
    spread = float(before.std())
    assert float((dense - before).std()) > 0.02 * spread  # it was rounded
    assert float((split - dense).abs().max()) < 2e-3 * spread


def test_gate_and_up_of_gpt_oss_are_the_even_and_odd_columns(bases: dict[str, Path], tmp_path: Path) -> None:
    quantize(bases["gpt_oss"], RECIPES["rtn"], tmp_path / "out", None)
    stored, codes = tensors_of(bases["gpt_oss"]), Model(tmp_path / "out").codes
    assert codes is not None
    place = "model.layers.0.mlp.experts"
    whole, biases = stored[f"{place}.gate_up_proj"], stored[f"{place}.gate_up_proj_bias"]
    written = tensors_of(tmp_path / "out")
    for expert in range(4):
        for start, tail in enumerate(("gate_proj", "up_proj")):
            name = f"{place}.{expert}.{tail}"
            expected = round_to(whole[expert, :, start::2].T.contiguous(), Format.parse("int4:g32:fp32"))
            assert torch.equal(codes.read(name).codes, expected.codes)
            assert torch.equal(written[f"{name}.bias"], biases[expert, start::2])
        down = round_to(stored[f"{place}.down_proj"][expert].T.contiguous(), Format.parse("int4:g32:fp32"))
        assert torch.equal(codes.read(f"{place}.{expert}.down_proj").codes, down.codes)


@pytest.mark.parametrize("family", WHOLE)
def test_what_nobody_can_hold_is_refused(family: str, bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="as one tensor, which subeight cannot hold quantized"):
        quantize(bases[family], RECIPES["rtn"], tmp_path / "out", None, "subeight")


def test_experts_with_biases_are_not_rotated(bases: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="expert with a bias"):
        quantize(bases["gpt_oss"], "{weights: 'int4:g32', methods: [rotate, rtn]}", tmp_path / "out", None)


def test_a_lost_expert_is_named(bases: dict[str, Path], tmp_path: Path) -> None:
    from safetensors.torch import save_file

    quantize(bases["granitemoe"], RECIPES["rtn"], tmp_path / "out", None)
    path = next(p for p in sorted((tmp_path / "out").glob("*.safetensors")) if "layers.1" in str(sorted(load_file(p))))
    kept = {key: value for key, value in load_file(path).items() if ".experts.3.w2." not in key}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lacks the tensor .*experts\.3\.w2\.weight"):
        streamed_logits(tmp_path / "out", calibration(1, 8))


def test_experts_that_all_run_at_once_are_refused(tmp_path: Path) -> None:
    config = hf.Llama4TextConfig(
        **COMMON, head_dim=16, intermediate_size_mlp=96, num_local_experts=4, num_experts_per_tok=1
    )
    with pytest.raises(ModelError, match="experts that all run at once are not understood"):
        Model(save(build(config), tmp_path / "llama4")).linears  # noqa: B018
