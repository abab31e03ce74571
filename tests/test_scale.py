"""The benchmark of sizes, small: its models have the same bytes again, its lines find the law, its verbs run."""

from pathlib import Path

import pytest
import torch
from benchmarks import random_llama, scale

from subeight.models.block import Block
from subeight.models.model import Model
from tests.verbs.conftest import parity, unchecked


def test_a_random_model_is_the_same_again_and_can_be_opened(tmp_path: Path) -> None:
    sizes = [random_llama.make_llama(tmp_path / name, 64, 2, vocabulary=512) for name in ("one", "two")]
    files = [sorted((tmp_path / name).glob("*.safetensors")) for name in ("one", "two")]
    assert [path.read_bytes() for path in files[0]] == [path.read_bytes() for path in files[1]]
    model = Model(tmp_path / "one")
    weights = sum(parameter.numel() for parameter in model.skeleton.model.parameters())
    assert sizes[0] == 2 * weights and len(files[0]) == 3
    assert abs(float(Block(model, 1, torch.float32).parameter("model.layers.1.mlp.up_proj.weight").std()) - 0.02) < 1e-3
    ids = model.tokenizer()("Grüße")["input_ids"]
    assert len(ids) == 7 and model.tokenizer().decode(ids) == "Grüße"


def rows(bend: float = 0.0) -> list[dict]:
    """Costs that follow the law exactly, but for the last size."""
    found = []
    for width, blocks in ((256, 12), (512, 16), (768, 48), (640, 20)):
        each, ends = 10.75 * width**2, scale.VOCABULARY * width / 4
        off = 1 + bend * (width == 640)
        costs = {"seconds": (3.0 + 2e-7 * blocks * each) * off, "peak_bytes": (5e7 + 20 * (each + ends)) * off}
        found.append({"width": width, "blocks": blocks, "verbs": {"evaluate": costs}})
    return found


def test_the_lines_find_the_law_and_state_their_error() -> None:
    found = scale.summary(rows())["fits"]["evaluate"]
    assert found["seconds"]["factors"] == pytest.approx([3.0, 2e-7], rel=1e-6)
    assert found["peak_bytes"]["factors"] == pytest.approx([5e7, 20.0], rel=1e-6)
    assert abs(found["seconds"]["error"]) < 1e-9
    bent = scale.summary(rows(0.5))
    assert bent["fits"]["evaluate"]["seconds"]["error"] == pytest.approx(1 / 1.5 - 1)
    assert bent["extrapolated"]["8B"]["evaluate"]["seconds"] is None, (
        "a line that misses the held-out size says nothing"
    )


def test_the_extrapolated_models_have_the_weights_of_their_names() -> None:
    found = scale.summary(rows())["extrapolated"]
    for name, weights in (("8B", 8.03e9), ("70B", 70.6e9), ("400B", 405.9e9)):
        assert found[name]["evaluate"]["model_bytes"] == pytest.approx(2 * weights, rel=0.01)
        blocks = found[name]["evaluate"]["model_bytes"] / 2 - 2 * 128256 * scale.EXTRAPOLATED[name][0]
        assert found[name]["evaluate"]["seconds"] == pytest.approx(3.0 + 2e-7 * blocks, rel=1e-6)


def test_every_verb_is_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "VOCABULARY", 512)
    monkeypatch.setattr(scale, "ROOM", 1_000_000)
    monkeypatch.setattr(scale, "TOKENS", dict.fromkeys(scale.TOKENS, 96))
    monkeypatch.setattr(parity, "check", unchecked)
    monkeypatch.setattr("subeight.verbs.options.cache_directory", lambda: tmp_path / "cache")
    row = scale.measured(tmp_path, "64x3", ["quantize", "evaluate", "map", "diagnose"])
    assert list(row["verbs"]) == ["quantize", "evaluate", "map", "diagnose"]
    for verb, found in row["verbs"].items():
        assert found["seconds"] > 0 and found["predicted"]["memory_bytes"] > 0, verb
        assert found["predicted_over_measured"]["seconds"] >= 0
        assert found["written_bytes"] > 0
    assert row["verbs"]["map"]["scratch_bytes"] >= 0
    parts = row["verbs"]["quantize"]["halves"]
    assert parts is None or parts["ratio"] > 0


def test_halves_are_the_cost_of_blocks_before_and_behind_the_middle() -> None:
    """Blocks of one second and of two; what lies before the first shard and behind the last is not counted."""
    course = {0: 5.0, 1: 7.0, 2: 8.0, 3: 9.0, 4: 11.0, 5: 13.0, 6: 40.0}
    assert scale.halves(course, 5) == {"first": 1.0, "second": 2.0, "ratio": 2.0}
    assert scale.halves({0: 0.0, 1: 0.4, 2: 0.8}, 2) is None
