"""Our own method: all that a plan can say is written, read back, and loaded by transformers after `import subeight`."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from subeight.errors import ModelError, OutputError
from subeight.export import check, exporter_for
from subeight.models.model import Model
from tests.engine.conftest import checkpoint  # noqa: F401 - a fixture
from tests.engine.tiny import calibration, plan_of, quantize

Find = Callable[..., Path]
APART = "[{outliers: {percent: 2}}, gptq, {lowrank: {rank: 3}}]"
RECIPES = {
    "codebook": "{weights: 'nf4:g32', methods: [rtn]}",
    "short groups": "{weights: 'int3:g24:asym', methods: [gptq]}",
    "mx": "{weights: mxfp4, methods: [rtn]}",
    "nv": "{weights: nvfp4, methods: [rtn]}",
    "apart": f"{{weights: 'int2:g32:sym', methods: {APART}}}",
    "apart and inputs": f"{{weights: 'int4:g32:asym', inputs: 'int8:token', methods: {APART}}}",
    "rotated": "{weights: 'int4:g32:asym:had', inputs: 'int4:token:had', methods: [{signround: {steps: 3}}, distil]}",
    "static inputs": "{weights: 'nf4:g32', inputs: 'int8:tensor', methods: [rtn]}",
    "embeddings": "{weights: 'int4:g32:sym', methods: [rtn], rules: [{match: '*embed*', weights: 'int4:g24:sym'}]}",
}


def logits(path: Path, ids: torch.Tensor) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_transformers_computes_what_was_measured(checkpoint: Find, tmp_path: Path, recipe: str) -> None:  # noqa: F811
    lane = quantize(checkpoint("llama"), recipe, tmp_path / "out", calibration(), "subeight")
    opened = Model(tmp_path / "out")
    assert opened.codes is not None
    for site in lane.plan.quantized:
        weight = opened.codes.read(site.linear.name)
        assert weight.format == site.weights
        assert weight.nbytes == opened.codes.nbytes(site.linear.name) <= site.bytes
        assert (weight.sparse is not None) == (weight.thin is not None) == site.apart
    ids = calibration(2, 16, seed=5)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32)
    for name in ("model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"):
        stored = opened.weights.read(f"{name}.weight")
        assert torch.equal(loaded.get_submodule(name).weight, stored.float())
    with torch.no_grad():
        expected = loaded(input_ids=ids, use_cache=False).logits
    assert check(tmp_path / "out", ids, expected, 1e-5).max_abs <= 1e-5  # in a process of its own


@pytest.mark.parametrize("family", ["gpt2", "gemma2", "phi3", "opt", "qwen3"])
def test_other_families_too(checkpoint: Find, tmp_path: Path, family: str) -> None:  # noqa: F811
    recipe = f"{{weights: 'int4:g24:asym', methods: {APART}}}"
    quantize(checkpoint(family), recipe, tmp_path / "own", calibration(), "subeight")
    quantize(checkpoint(family), recipe, tmp_path / "dense", calibration(), "dense")
    ids = calibration(2, 16, seed=5)
    assert torch.allclose(logits(tmp_path / "own", ids), logits(tmp_path / "dense", ids), atol=1e-5)


def test_inputs_are_rounded_after_loading(checkpoint: Find, tmp_path: Path) -> None:  # noqa: F811
    ids = calibration(2, 16, seed=5)
    for name, inputs in (("with", "int4:token"), ("without", "null")):
        recipe = f"{{weights: 'nf4:g32', inputs: {inputs!r}, methods: [rtn]}}".replace("'null'", "null")
        quantize(checkpoint("llama"), recipe, tmp_path / name, calibration(), "subeight")
    assert not torch.allclose(logits(tmp_path / "with", ids), logits(tmp_path / "without", ids), atol=1e-3)


def test_plain_transformers_refuses_it_by_name(checkpoint: Find, tmp_path: Path) -> None:  # noqa: F811
    quantize(checkpoint("llama"), RECIPES["codebook"], tmp_path / "out", None, "subeight")
    program = f"from transformers import AutoModelForCausalLM as A; A.from_pretrained({str(tmp_path / 'out')!r})"
    done = subprocess.run([sys.executable, "-I", "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "model type `subeight`" in done.stderr
    after = subprocess.run(
        [sys.executable, "-c", f"import subeight; {program}"], capture_output=True, text=True, check=False
    )
    assert after.returncode == 0, after.stderr[-500:]


def test_the_same_recipe_gives_the_same_bytes_and_they_are_the_parts(checkpoint: Find, tmp_path: Path) -> None:  # noqa: F811
    for name in ("one", "two"):
        quantize(checkpoint("llama"), RECIPES["apart"], tmp_path / name, calibration(), "subeight")
    shards = sorted((tmp_path / "one").glob("*.safetensors"))
    assert all(shard.read_bytes() == (tmp_path / "two" / shard.name).read_bytes() for shard in shards)
    with safe_open(shards[0], framework="pt") as shard:
        parts = {name.rpartition(".")[2] for name in shard.keys() if "q_proj" in name}  # noqa: SIM118 - it is no dict
    words = ("codes", "scales", "pointers", "columns", "values", "left", "right")
    assert parts == {f"weight_{word}" for word in words}


def test_compressed_tensors_refuses_what_is_apart_before_anything_is_done(checkpoint: Find) -> None:  # noqa: F811
    plan = plan_of(Model(checkpoint("llama")), RECIPES["apart"])
    assert all(site.runs_in == ("subeight",) for site in plan.quantized)
    with pytest.raises(OutputError, match=r"cannot hold what .* sets apart; export `--to subeight`"):
        exporter_for("compressed-tensors").require(plan.sites)


def test_another_version_is_refused(checkpoint: Find, tmp_path: Path) -> None:  # noqa: F811
    quantize(checkpoint("llama"), RECIPES["codebook"], tmp_path / "out", None, "subeight")
    path = tmp_path / "out" / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["version"] = 2
    path.write_text(json.dumps(config))
    with pytest.raises(ModelError, match="version 2 of the format subeight"):
        Model(tmp_path / "out").weights.read("model.layers.0.self_attn.q_proj.weight")
