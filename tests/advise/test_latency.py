"""What a linear costs: every one of them in every format, kept for the stack; the sum is near the whole."""

import math
from pathlib import Path

import pytest
import torch

from subeight.advise import latency
from subeight.advise.latency import Latencies, kept_latencies, measure_latencies, token_seconds
from subeight.errors import KernelError
from subeight.formats import Format
from subeight.models.model import Model
from tests.models.families import FAMILIES, build, save

CPU, INT4 = torch.device("cpu"), Format.parse("int4:g32:sym")


def llama(folder: Path) -> Model:
    return Model(save(build(FAMILIES["llama"].config), folder))


def test_every_linear_in_every_format(tmp_path: Path) -> None:
    model = llama(tmp_path)
    found = measure_latencies(model, [INT4], 8, torch.float32, CPU)
    inside = [linear for linear in model.linears if linear.block is not None]
    for format in (None, str(INT4)):
        assert all(found.linears[linear.name, format] > 0 for linear in inside)
        assert found.linears["lm_head", format] > 0
    assert set(found.linears) == {(linear.name, f) for linear in model.linears for f in (None, str(INT4))}
    alike = {found.linears[linear.name, None] for linear in inside if linear.name.endswith("q_proj")}
    assert len(alike) == 1  # of one shape, at one price
    assert found.rest > 0


def test_embeddings_cost_nothing_unless_the_head_is_tied_to_them(tmp_path: Path) -> None:
    model = llama(tmp_path)
    found = measure_latencies(model, [INT4], 8, torch.float32, CPU)
    embeddings = found.linears["model.embed_tokens", None]
    assert embeddings == (found.linears["lm_head", None] if model.skeleton.tied else 0.0)


def test_the_parts_make_the_whole(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """By a clock that counts how often it is read: each linear takes one tick, the blocks what they hold."""
    model = llama(tmp_path)
    ticks = iter(range(1 << 20))
    monkeypatch.setattr(latency, "_now", lambda _: float(next(ticks)))
    found = measure_latencies(model, [INT4], 8, torch.float32, CPU)
    assert set(found.linears.values()) <= {0.0, 1.0}
    assert found.rest == 0.0  # a step is one tick, its linears are more: never below nothing


def test_kept_for_what_was_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    model, calls = llama(tmp_path / "model"), []

    def measured(*given: object) -> Latencies:
        calls.append(given)
        return Latencies(8, 0.5, {("a", None): 1.0, ("a", str(INT4)): 0.25})

    monkeypatch.setattr(latency, "measure_latencies", measured)
    first = kept_latencies(tmp_path / "cache", model, [INT4], 8, torch.float32, CPU)
    assert kept_latencies(tmp_path / "cache", model, [INT4], 8, torch.float32, CPU) == first and len(calls) == 1
    kept_latencies(tmp_path / "cache", model, [INT4], 16, torch.float32, CPU)
    assert len(calls) == 2


def test_a_token_takes_time(tmp_path: Path) -> None:
    assert 0 < token_seconds(llama(tmp_path), 8, torch.float32, CPU) < math.inf


def test_fused_experts_are_refused(tmp_path: Path) -> None:
    model = Model(save(build(FAMILIES["mixtral"].config), tmp_path))
    with pytest.raises(KernelError, match="slice of a fused parameter"):
        measure_latencies(model, [INT4], 8, torch.float32, CPU)
