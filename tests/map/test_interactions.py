"""Pairs of places: what they lose together beyond the sum, named where its interval says so."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from subeight.evals.stats import Interval
from subeight.map.interactions import Pair, interactions, with_pairs
from subeight.models.align import align
from subeight.models.model import Model
from subeight.probe.probe import Probe
from tests.map.records import read
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


def test_half_of_a_real_interaction_goes_to_either_cell(tmp_path: Path) -> None:
    found = read(tmp_path)
    a, b, c = (place.name for place in found.places[1:4])
    formats = dict.fromkeys((a, b, c), "int2:g64:sym")
    real = Pair(a, b, (0.1, 0.1), 0.23, Interval(0.03, 0.01, 0.05, 9, "t"))
    chance = Pair(a, c, (0.1, 0.1), 0.25, Interval(0.05, -0.01, 0.11, 9, "t"))
    negative = Pair(b, c, (0.1, 0.1), 0.0, Interval(-9.0, -10.0, -8.0, 9, "t"))
    other = with_pairs(found, [real, chance], formats)
    for name, shift in ((a, 0.015), (b, 0.015), (c, 0.0)):
        before, after = found.cell(name, "int2:g64:sym"), other.cell(name, "int2:g64:sym")
        assert (after.loss, after.low, after.high) == pytest.approx(
            (before.loss + shift, before.low + shift, before.high + shift)
        )
    assert other.cell(a, "int4:g64:sym") == found.cell(a, "int4:g64:sym")
    assert with_pairs(found, [negative], formats).cell(c, "int2:g64:sym").loss == 0.0
