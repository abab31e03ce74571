"""Calibration text that the baseline writes itself: the same for a seed, and refused where it takes long."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from subeight.engine import selfcalibration
from subeight.engine.selfcalibration import sample_self
from subeight.errors import TextError
from subeight.evals.passes import Computing
from subeight.models.model import Model
from subeight.text import CalibrationSpec
from tests.verbs.small import save_llama

COMPUTING = Computing(torch.float32, torch.device("cpu"), quiet=True)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_llama(tmp_path_factory.mktemp("model"))


def spec(seed: int = 0, length: int = 24, sequences: int = 8) -> CalibrationSpec:
    return CalibrationSpec("self", sequences, length, seed)


def test_the_seed_decides(source: Path) -> None:
    model = Model(source)
    one, again, other = (sample_self(model, spec(seed), COMPUTING) for seed in (0, 0, 1))
    assert torch.equal(one.ids, again.ids)
    assert one.hash == again.hash != other.hash
    assert not torch.equal(one.ids, other.ids)
    assert one.source == "self"


def test_windows_begin_with_the_first_token_and_differ(source: Path) -> None:
    ids = sample_self(Model(source), spec(), COMPUTING).ids
    assert ids.shape == (8, 24)
    assert ids.dtype == torch.int64
    assert bool((ids[:, 0] == 0).all())  # bos
    assert len({tuple(row) for row in ids.tolist()}) == 8


def test_tokens_are_drawn_from_the_models_own_chances(source: Path) -> None:
    ids = sample_self(Model(source), spec(length=3, sequences=4096), COMPUTING).ids
    plain = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    with torch.no_grad():
        expected = plain(input_ids=torch.zeros(1, 1, dtype=torch.long)).logits[0, -1].softmax(-1)
    found = torch.bincount(ids[:, 1], minlength=320) / 4096
    assert float((found - expected).abs().max()) < 0.03


def test_what_takes_long_is_refused_unless_it_is_meant(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selfcalibration, "LONGEST_SECONDS", 1e-6)
    with pytest.raises(TextError, match="minutes here; say --yes"):
        sample_self(Model(source), spec(), COMPUTING)
    assert sample_self(Model(source), spec(), COMPUTING, yes=True).ids.shape == (8, 24)
