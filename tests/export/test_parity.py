"""Parity: what differs, cannot be loaded or is not whole is an error, and is not left behind as if it were good."""

import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from subeight.errors import InputError, OutputError, ParityError
from subeight.export import check, packed, parity
from tests.export.conftest import Written, write


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return write(tmp_path / "checkpoint", "weights: int4:g64")


def test_what_was_measured_passes(written: Written) -> None:
    found = check(written.directory, written.ids, written.expected, bound=1e-4)
    assert found.max_abs <= 1e-4 and found.bound == 1e-4
    assert found.to_dict()["tokens"] == 48 and found.compared == written.expected.numel()
    assert written.directory.exists()


def test_a_difference_above_the_bound_is_an_error_and_renames_the_directory(
    written: Written, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(parity, "_logits", lambda *_: written.expected)
    (written.directory.parent / "checkpoint.failed-parity").mkdir()
    with pytest.raises(ParityError, match=r"differ by up to 0.5.*above the bound of 0.1.*failed-parity-2") as error:
        check(written.directory, written.ids, written.expected + 0.5, bound=0.1)
    assert error.value.exit_status == 1
    assert not written.directory.exists()
    assert (written.directory.parent / "checkpoint.failed-parity-2" / "config.json").exists()


def test_an_unexpected_tensor_is_an_error(written: Written) -> None:
    shard = written.directory / "model-00003-of-00003.safetensors"
    save_file({**load_file(shard), "model.extra.weight": torch.ones(2)}, shard, metadata={"format": "pt"})
    index = written.directory / "model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["model.extra.weight"] = shard.name
    index.write_text(json.dumps(content))
    with pytest.raises(ParityError, match=r"could not load .* whole: unexpected_keys: .*model.extra.weight"):
        check(written.directory, written.ids, written.expected, bound=1e-4)
    assert not written.directory.exists()


def test_logits_of_another_shape_or_a_nan_are_errors(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parity, "_logits", lambda *_: written.expected * torch.nan)
    with pytest.raises(ParityError, match="differ by up to inf"):
        check(written.directory, written.ids, written.expected, bound=1e9)
    written.directory.mkdir()
    monkeypatch.setattr(parity, "_logits", lambda *_: written.expected[:1])
    with pytest.raises(ParityError, match="the shape"):
        check(written.directory, written.ids, written.expected, bound=1e9)


def test_a_process_that_takes_too_long_is_an_error(written: Written) -> None:
    with pytest.raises(ParityError, match="within 0 seconds"):
        check(written.directory, written.ids, written.expected, bound=1, timeout=0.01)


def test_a_checkpoint_that_brings_subeight_in_is_an_error(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packed.PackedRunner, "release", lambda _self: True)
    with pytest.raises(ParityError, match="needs Subeight"):
        check(written.directory, written.ids, written.expected, bound=1)


def test_the_process_knows_nothing_of_subeight_and_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def run(command: list[str], **_options: object) -> None:
        seen.extend(command)
        raise FileNotFoundError(2, "no such program")

    monkeypatch.setattr(packed.subprocess, "Popen", run)
    with pytest.raises(InputError, match="cannot be run"):
        check(tmp_path / ".", torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, 3), bound=1)
    assert seen[:3] == [sys.executable, "-I", "-c"]
    assert "import subeight" not in seen[3]
    assert "from subeight" not in seen[3]


def test_no_directory_is_bad_input(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="nothing to compare"):
        check(tmp_path / "none", torch.zeros(1, 2, dtype=torch.long), torch.zeros(1, 2, 3), bound=1)
