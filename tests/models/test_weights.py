import copy
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.weights import natural, saved_as
from tests.models.conftest import plain, streamed
from tests.models.families import FAMILIES, build, save


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_a_sharded_checkpoint_is_read_as_one(family, checkpoint, tmp_path, ids):
    directory = save(build(FAMILIES[family].config), tmp_path, max_shard_size="100KB")
    assert len(list(directory.glob("*.safetensors"))) > 2
    assert torch.equal(streamed(Model(directory), ids), streamed(Model(checkpoint(family)), ids))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_parameter_is_the_one_that_transformers_loads(family, checkpoint):
    model = Model(checkpoint(family))
    made = AutoModelForCausalLM.from_pretrained(checkpoint(family), dtype=torch.float32)
    for name, parameter in made.named_parameters():
        assert torch.equal(model.weights.read(name), parameter)
        assert model.weights.dtype(name) is torch.float32


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_and_shell_are_saved_as_the_checkpoint_was(family, checkpoint):
    model = Model(checkpoint(family))
    stored = load_file(checkpoint(family) / "model.safetensors")
    parameters = [name for index in range(2) for name in model.skeleton.block_parameters(index)]
    parameters += [name for name in model.skeleton.shell_parameters() if name not in model.skeleton.tied_names]
    written = saved_as(model.skeleton.model, {name: model.weights.read(name) for name in parameters})
    assert written.keys() == stored.keys()
    assert all(torch.equal(written[name], stored[name]) for name in stored)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_come_in_the_dtype_that_is_stored(dtype, tmp_path, ids):
    model = Model(save(build(FAMILIES["llama"].config).to(dtype), tmp_path))
    assert model.stored_dtype is dtype
    assert {linear.dtype for linear in model.linears} == {dtype}
    block = Block(model, 0, torch.float32, keep=True)
    assert {value.dtype for value in block.stored.values()} == {dtype}
    made = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    assert torch.equal(streamed(model, ids), plain(made, ids))


@pytest.mark.parametrize("family", ["llama", "gpt2", "gemma2", "opt"])
def test_tied_embeddings_stay_tied(family, tmp_path, ids):
    config = copy.deepcopy(FAMILIES[family].config)
    config.tie_word_embeddings = True
    made = build(config)
    model = Model(save(made, tmp_path))
    assert model.skeleton.tied
    head = next(linear for linear in model.linears if linear.kind == "tied")
    shell = Shell(model, torch.float32)
    embedding = next(linear for linear in model.linears if linear.kind == "embedding")
    assert shell.parameter(f"{head.name}.weight") is shell.parameter(f"{embedding.name}.weight")
    assert f"{head.name}.weight" not in load_file(tmp_path / "model.safetensors")
    assert torch.equal(streamed(model, ids), plain(made, ids))


def test_a_checkpoint_without_the_trunks_prefix(checkpoint, tmp_path, ids):
    stored = load_file(checkpoint("gpt2") / "model.safetensors")
    bare = {name.removeprefix("transformer."): value for name, value in stored.items()}
    assert bare.keys() != stored.keys()
    save_file(bare, tmp_path / "model.safetensors", metadata={"format": "pt"})
    (tmp_path / "config.json").write_bytes((checkpoint("gpt2") / "config.json").read_bytes())
    assert torch.equal(streamed(Model(tmp_path), ids), streamed(Model(checkpoint("gpt2")), ids))


@pytest.mark.skipif(not Path("/proc/self/maps").is_file(), reason="needs Linux's list of maps")
def test_shards_are_read_and_not_mapped(tmp_path, monkeypatch):
    model = Model(save(build(FAMILIES["mixtral"].config), tmp_path))
    during: list[str] = []

    def spy(fd_path, *args, **kwargs):
        during.append(Path("/proc/self/maps").read_text(encoding="utf-8"))
        return opened(fd_path, *args, **kwargs)

    opened = Path.open
    monkeypatch.setattr(
        Path, "open", lambda path, *a, **k: spy(path, *a, **k) if path.suffix != "" else opened(path, *a, **k)
    )
    kept = [Block(model, index, torch.float32, keep=True) for index in range(2)]
    shell = Shell(model, torch.float32)
    monkeypatch.undo()
    during.append(Path("/proc/self/maps").read_text(encoding="utf-8"))
    assert len(during) > 10
    assert len(kept) == 2
    assert shell.parameter("model.norm.weight").numel() == 64
    assert not any("model.safetensors" in maps for maps in during)


def test_a_tensor_read_has_memory_of_its_own(checkpoint):
    model = Model(checkpoint("llama"))
    first = model.weights.read("model.norm.weight")
    first.zero_()
    assert model.weights.read("model.norm.weight").abs().sum() > 0


def test_natural_order():
    names = ["layers.10.a", "layers.9.b", "layers.9.a", "head"]
    assert sorted(names, key=natural) == ["head", "layers.9.a", "layers.9.b", "layers.10.a"]
