"""Pairs of places: what they lose together beyond the sum, named where its interval says so."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from subeight.map.interactions import interactions
from subeight.models.align import align
from subeight.models.model import Model
from subeight.probe.probe import Probe
from tests.probe.mixtures import COMPUTING, llama, question_of, rounded_copy

__all__ = ["llama"]
UP, DOWN, FAR = "model.layers.1.mlp.up_proj", "model.layers.1.mlp.down_proj", "model.layers.2.self_attn.o_proj"


@pytest.fixture
def probe(llama: Path, tmp_path: Path) -> Probe:
    """The rows of one linear and the columns that read them are enlarged together: they hurt only as a pair."""
    other = rounded_copy(llama, tmp_path / "other", bits=6)
    tensors = load_file(other / "model.safetensors")
    tensors[f"{UP}.weight"][:32] *= 4
    tensors[f"{DOWN}.weight"][:, :32] *= 4
    save_file(tensors, other / "model.safetensors", metadata={"format": "pt"})
    baseline, candidate = Model(llama), Model(other)
    gauge = align(baseline, candidate)
    return Probe(baseline, candidate, gauge, question_of(baseline, tmp_path), COMPUTING)


def test_the_pair_that_hurts_together_is_first(probe: Probe) -> None:
    pairs = interactions(probe, [(name, (name,)) for name in (UP, DOWN, FAR)])
    assert len(pairs) == 3 and {pairs[0].a, pairs[0].b} == {UP, DOWN}
    first = pairs[0]
    assert first.interaction.value == pytest.approx(first.together - sum(first.alone))
    assert first.interaction.value > 0 and first.is_real
    assert abs(pairs[1].interaction.value) < 0.2 * first.interaction.value
    assert first.to_dict()["real"] is True


def test_a_place_without_error_interacts_with_nothing(probe: Probe) -> None:
    pairs = interactions(probe, [("norm", ()), (FAR, (FAR,))])
    assert pairs[0].interaction.value == 0.0 and not pairs[0].is_real
    assert torch.isfinite(torch.tensor(pairs[0].together))
