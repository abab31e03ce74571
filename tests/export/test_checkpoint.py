"""Shards: whole or absent, the same bytes for the same tensors, and nobody else's directory."""

import json
import os
import shutil
from collections import namedtuple
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from subeight.errors import OutputError
from subeight.export import ShardWriter, exporter_for
from subeight.export import checkpoint as module
from tests.export.conftest import write

DENSE = exporter_for("dense")


def tensors(seed: int = 0) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {f"{name}{seed}": torch.randn(4, 6, generator=generator) for name in "cab"}


def test_a_shard_is_named_by_its_place_and_holds_what_was_given(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path / "new", DENSE, shards=32)
    path = writer.write(2, tensors())
    assert path.name == "model-00003-of-00032.safetensors"
    assert writer.has(2) and not writer.has(3)
    found = load_file(path)
    assert set(found) == {"a0", "b0", "c0"} and all(
        torch.equal(found[name], value) for name, value in tensors().items()
    )


def test_the_order_of_tensors_and_their_memory_do_not_change_the_bytes(tmp_path: Path) -> None:
    both = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))
    one = ShardWriter(tmp_path / "one", DENSE, 1).write(0, {"a": both[:4], "b": both[4:], "c": both.T})
    copies = {"c": both.T.contiguous(), "b": both[4:].clone(), "a": both[:4].clone()}
    two = ShardWriter(tmp_path / "two", DENSE, 1).write(0, copies)
    assert one.read_bytes() == two.read_bytes()


def test_the_index_is_read_back_so_a_resumed_run_ends_the_same(tmp_path: Path) -> None:
    for name, stops in (("through", ()), ("resumed", (1,))):
        writer = ShardWriter(tmp_path / name, DENSE, 2)
        writer.write(0, tensors(0))
        if 1 in stops:
            (tmp_path / name / "model-00002-of-00002.safetensors.writing").write_bytes(b"half")
            writer = ShardWriter(tmp_path / name, DENSE, 2)
            assert writer.has(0) and not writer.has(1)
        writer.write(1, tensors(1))
        writer.finish({"model_type": "llama", "quantization_config": {"old": 1}}, ())
    names = sorted(path.name for path in (tmp_path / "through").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "resumed").iterdir())
    assert all((tmp_path / "through" / n).read_bytes() == (tmp_path / "resumed" / n).read_bytes() for n in names)
    index = json.loads((tmp_path / "through" / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["b1"] == "model-00002-of-00002.safetensors"
    assert index["metadata"]["total_size"] == 6 * 4 * 6 * 4
    assert json.loads((tmp_path / "through" / "config.json").read_text()) == {"model_type": "llama"}


def test_tied_embeddings_are_written_once(tmp_path: Path) -> None:
    written = write(tmp_path / "checkpoint", "weights: int4:g64", tie=True)
    weights = json.loads((written.directory / "model.safetensors.index.json").read_text())["weight_map"]
    assert "lm_head.weight" not in weights and "model.embed_tokens.weight" in weights


def test_a_missing_shard_is_named(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, DENSE, 2)
    writer.write(1, tensors())
    with pytest.raises(OutputError, match=r"lacks the shards model-00001-of-00002.safetensors; run the same command"):
        writer.finish({}, ())
    assert not (tmp_path / "config.json").exists()


def test_a_tensor_in_two_shards_is_an_error(tmp_path: Path) -> None:
    writer = ShardWriter(tmp_path, DENSE, 2)
    writer.write(0, tensors())
    writer.write(1, tensors())
    with pytest.raises(OutputError, match=r"stands in model-00001-of-00002.safetensors and in model-00002"):
        writer.finish({}, ())


@pytest.mark.parametrize("name", ["notes.txt", "model-00001-of-00007.safetensors", "model.safetensors"])
def test_a_directory_that_holds_something_else_is_refused_and_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text("mine")
    with pytest.raises(OutputError, match=f"already holds {name}"):
        ShardWriter(tmp_path, DENSE, 2)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_file_in_the_directorys_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("mine")
    with pytest.raises(OutputError, match="is a file"):
        ShardWriter(tmp_path / "out", DENSE, 1)


def test_no_space_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ShardWriter(tmp_path, DENSE, 1)
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage(10, 9, 1))
    with pytest.raises(OutputError, match=r"no space .*288 bytes are to be written and 1 are free"):
        writer.write(0, tensors())
    assert list(tmp_path.iterdir()) == []


def test_no_space_while_writing_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ShardWriter(tmp_path, DENSE, 1)

    def full(_tensors: object, path: Path, **_options: object) -> None:
        path.write_bytes(b"half")
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(module, "save_file", full)
    with pytest.raises(OutputError, match="no space"):
        writer.write(0, tensors())
    assert list(tmp_path.iterdir()) == []


def test_a_kill_while_writing_leaves_no_shard_under_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = ShardWriter(tmp_path, DENSE, 1)

    def killed(_source: Path, _target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "publish", killed)
    with pytest.raises(KeyboardInterrupt):
        writer.write(0, tensors())
    assert not writer.has(0)
    assert not ShardWriter(tmp_path, DENSE, 1).has(0) and list(tmp_path.iterdir()) == []


def test_the_tokenizer_is_copied_and_nothing_else(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    for name in ("tokenizer.json", "chat_template.jinja", "modeling_mine.py", "pytorch_model.bin", "README.md"):
        (source / name).write_text(name)
    writer = ShardWriter(tmp_path / "out", DENSE, 1)
    writer.write(0, tensors())
    writer.finish({}, (), source)
    ours = ["config.json", "model-00001-of-00001.safetensors", "model.safetensors.index.json"]
    found = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert found == ["chat_template.jinja", *ours, "tokenizer.json"]
