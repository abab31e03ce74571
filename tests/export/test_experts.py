"""Mixtures as compressed-tensors: the names under which vLLM looks for experts, and what transformers computes."""

import json
from pathlib import Path

import pytest
import torch
import transformers as hf
from torch import Tensor

from subeight.export.packed import Checkpoint, PackedRunner
from subeight.models.model import Model
from tests.engine.tiny import calibration, quantize
from tests.models.conftest import streamed
from tests.models.families import COMMON, FAMILIES, MOE, build, save

CONFIGS = {
    "mixtral": FAMILIES["mixtral"].config,
    "qwen3_moe": FAMILIES["qwen3_moe"].config,
    "qwen2_moe": hf.Qwen2MoeConfig(**COMMON, **MOE, shared_expert_intermediate_size=32),
    "olmoe": hf.OlmoeConfig(**COMMON, num_experts=4, num_experts_per_tok=2, eos_token_id=1, pad_token_id=0),
}
PARTS = ("weight_packed", "weight_scale", "weight_shape")
QWEN = tuple(f"mlp.experts.{e}.{name}_proj" for e in range(4) for name in ("gate", "up", "down"))
PACKED = {
    "mixtral": tuple(f"block_sparse_moe.experts.{e}.w{number}" for e in range(4) for number in (1, 2, 3)),
    "qwen3_moe": QWEN,
    "qwen2_moe": (*QWEN, *(f"mlp.shared_expert.{name}_proj" for name in ("gate", "up", "down"))),
    "olmoe": QWEN,
}
KEPT = {
    "mixtral": ("block_sparse_moe.gate",),
    "qwen3_moe": ("mlp.gate",),
    "qwen2_moe": ("mlp.gate", "mlp.shared_expert_gate"),
    "olmoe": ("mlp.gate",),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("experts")
    for name, config in CONFIGS.items():
        base = save(build(config).to(torch.bfloat16), root / f"{name}-base")
        quantize(base, "{weights: 'int4:g32', methods: [gptq]}", root / name, calibration())
    return {name: root / name for name in CONFIGS}


@pytest.mark.parametrize("family", CONFIGS)
def test_names_are_those_that_vllm_fuses(family: str, written: dict[str, Path]) -> None:
    index = json.loads((written[family] / "model.safetensors.index.json").read_text())["weight_map"]
    prefix = "model.layers.1."
    inside = {name.removeprefix(prefix) for name in index if name.startswith((f"{prefix}mlp", f"{prefix}block"))}
    expected = {f"{linear}.{part}" for linear in PACKED[family] for part in PARTS}
    assert inside == expected | {f"{linear}.weight" for linear in KEPT[family]}
    config = json.loads((written[family] / "config.json").read_text())["quantization_config"]
    ignored = set(config["ignore"])
    for linear in KEPT[family]:
        assert f"{prefix}{linear}" in ignored
    assert not any("experts." in name for name in ignored)


@pytest.fixture(scope="module")
def loaded(written: dict[str, Path]) -> dict[str, Tensor]:
    """Logits of plain transformers in a fresh process."""
    ids = torch.arange(48).reshape(2, 24)
    found = {}
    with PackedRunner(isolated=True) as runner:
        for name, directory in written.items():
            report = runner.load(Checkpoint(directory), threads=1)
            assert not any(report.values()), (name, report)
            found[name] = torch.stack(runner.logits(list(ids), [torch.arange(24)] * 2))
    return found


@pytest.mark.parametrize("family", CONFIGS)
def test_plain_transformers_computes_what_our_reader_does(
    family: str, written: dict[str, Path], loaded: dict[str, Tensor]
) -> None:
    ours = streamed(Model(written[family]), torch.arange(48).reshape(2, 24))
    assert ours.std() > 0.1
    assert float((loaded[family] - ours).abs().max()) < 0.02 * float(ours.std())
