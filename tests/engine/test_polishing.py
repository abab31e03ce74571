"""Tuning the whole quantized model: loss and gradients are those of the plain model, and what comes out is stored."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from subeight.engine import tunable as tunable_module
from subeight.engine.job import Job, Settings
from subeight.engine.lane import Lane
from subeight.engine.loop import run
from subeight.engine.polishing import _tunable
from subeight.engine.tunable import Tunable
from subeight.export import exporter_for
from subeight.methods.polish.distil import Distil
from subeight.methods.polishing import ModelTask
from subeight.models.model import Model
from tests.engine.tiny import calibration, codes_of, hashes, plan_of, quantize
from tests.oracles.polishing import divergence, gradients

Find = Callable[..., Path]
RECIPE = "{weights: 'int2:g32:asym', methods: [rtn, {distil: {epochs: 6, batch: 2, rate: 0.02, held: 0.2}}]}"


def plain(path: Path) -> torch.nn.Module:
    return AutoModelForCausalLM.from_pretrained(
        path, dtype=torch.float64, attn_implementation="eager", experts_implementation="eager"
    )


def left_by_the_loop(source: Path, directory: Path, recipe: str, to: str) -> tuple[Model, Lane]:
    """A finished lane whose whole model was not tuned yet."""
    model = Model(source)
    plan = plan_of(model, recipe)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("subeight.engine.loop.polish", lambda *_: None)
        return model, quantize_plan(model, Job(plan, directory, exporter_for(to)))


def quantize_plan(model: Model, job: Job) -> Lane:
    return run(model, [job], calibration(), Settings(batch=4, quiet=True))[0]


def tunable(model: Model, lane: Lane, settings: Settings) -> Tunable:
    return _tunable(model, lane, calibration(), settings)


@pytest.mark.parametrize(
    ("family", "format"),
    [
        *((family, "int3:g32:asym") for family in ("llama", "gemma2", "gpt2", "olmo2", "qwen2", "mixtral")),
        ("llama", "nf4:g32"),
        ("llama", "fp8:tensor"),
        ("llama", "int4:g32:sym:had"),
    ],
)
def test_loss_and_gradients_are_those_of_the_plain_model(
    checkpoint: Find, tmp_path: Path, family: str, format: str
) -> None:
    source, rows = checkpoint(family), [1, 4]
    recipe = RECIPE.replace("int2:g32:asym", format)
    model, lane = left_by_the_loop(source, tmp_path / "out", recipe, "dense")
    found = tunable(model, lane, Settings(quiet=True))
    start = found.start()
    loss, slopes = found.gradients(start, rows)
    baseline, candidate = plain(source), plain(tmp_path / "out")
    expected = float(divergence(baseline, candidate, calibration()[rows]).detach())
    assert loss == pytest.approx(expected, rel=1e-4)
    assert found.loss(start, rows) == pytest.approx(expected, rel=1e-4)
    own = dict(candidate.named_parameters())
    codes = {n: c for part in found.codes for n, c in part.items() if f"{n}.weight" in own and family != "gpt2"}
    oracle = gradients(baseline, candidate, calibration()[rows], codes)
    assert set(oracle) <= set(slopes) == set(start)
    assert len(oracle) > 2
    for name, slope in oracle.items():
        error = float((slopes[name].double() - slope).abs().max())
        cancelled = 0.05 if format.endswith("tensor") else 1e-3  # one scale sums thousands of signs
        assert error <= cancelled * float(slope.abs().max()) + 1e-9, name


def test_streamed_blocks_give_the_same_gradients(checkpoint: Find, tmp_path: Path) -> None:
    model, lane = left_by_the_loop(checkpoint("llama"), tmp_path / "out", RECIPE, "compressed-tensors")
    resident, streamed = (tunable(model, lane, Settings(quiet=True, max_memory=limit)) for limit in (None, 1))
    start = resident.start()
    assert resident.block(0) is resident.block(0) and streamed.block(0) is not streamed.block(0)
    one, other = resident.gradients(start, [0, 3]), streamed.gradients(start, [0, 3])
    assert one[0] == other[0]
    assert all(torch.equal(one[1][name], other[1][name]) for name in start)


@pytest.mark.parametrize("to", ["compressed-tensors", "dense"])
def test_the_polished_checkpoint_is_nearer_and_its_codes_are_the_same(
    checkpoint: Find, tmp_path: Path, to: str
) -> None:
    source = checkpoint("llama")
    lane = quantize(source, RECIPE, tmp_path / "polished", calibration(), to)
    quantize(source, "{weights: 'int2:g32:asym', methods: [rtn]}", tmp_path / "plain", calibration(), to)
    before, after = (
        float(divergence(plain(source), plain(tmp_path / name), calibration(count=8, seed=1)).detach())
        for name in ("plain", "polished")
    )
    assert after < before  # on text that it did not see
    notes = lane.polish_notes()
    assert notes is not None and notes["loss_after"] < notes["loss_before"]
    if to == "compressed-tensors":
        one, other = codes_of(tmp_path / "plain"), codes_of(tmp_path / "polished")
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_polish_that_only_harms_changes_nothing(checkpoint: Find, tmp_path: Path) -> None:
    recipe = RECIPE.replace("rate: 0.02", "rate: 0.1").replace("int2:g32:asym", "int8:g32")
    quantize(checkpoint("llama"), recipe, tmp_path / "polished", calibration())
    quantize(checkpoint("llama"), "{weights: 'int8:g32', methods: [rtn]}", tmp_path / "plain", calibration())
    one, other = hashes(tmp_path / "plain"), hashes(tmp_path / "polished")
    shards = [name for name in one if name.startswith("model-0")]
    assert shards and all(one[name] == other[name] for name in shards)


@pytest.mark.parametrize("dies", ["in a step", "after the result", "between shards"])
def test_a_killed_polish_resumes_to_the_same_bytes(
    checkpoint: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dies: str
) -> None:
    source, taken = checkpoint("llama"), []
    quantize(source, RECIPE, tmp_path / "whole", calibration())

    def counted(original: Callable[..., Any], last: int) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            taken.append(1)
            if len(taken) == last:
                raise KeyboardInterrupt
            return original(*arguments, **options)

        return call

    with monkeypatch.context() as patch:
        if dies == "in a step":
            patch.setattr(Tunable, "gradients", counted(Tunable.gradients, 8))
        else:
            patch.setattr(Lane, "rewrite", counted(Lane.rewrite, 1 if dies == "after the result" else 2))
        with pytest.raises(KeyboardInterrupt):
            quantize(source, RECIPE, tmp_path / "killed", calibration())
    steps: list[int] = []
    real = Tunable.gradients
    monkeypatch.setattr(Tunable, "gradients", lambda *given: steps.append(1) or real(*given))
    quantize(source, RECIPE, tmp_path / "killed", calibration())
    whole = 6 * 2
    assert len(steps) < whole if dies == "in a step" else not steps
    assert hashes(tmp_path / "whole") == hashes(tmp_path / "killed")


def test_the_held_out_sequences_are_not_trained_on() -> None:
    seen: list[list[int]] = []
    judged: list[list[int]] = []
    task = ModelTask(
        parameters={"a.scales": torch.ones(2, 3)},
        sequences=16,
        gradients=lambda _p, rows: seen.append(rows) or (1.0, {"a.scales": torch.ones(2, 3)}),
        loss=lambda _p, rows: judged.append(rows) or 1.0,
    )
    notes: dict[str, Any] = {}
    kept = Distil(epochs=3, batch=4, held=0.25).polish(task, torch.Generator().manual_seed(0), notes)
    assert torch.equal(kept["a.scales"], torch.ones(2, 3))  # nothing was better than the start
    assert notes["steps"] == 9 and len(seen) == 9
    assert all(rows == judged[0] for rows in judged) and len(judged[0]) == 4
    assert {row for rows in seen for row in rows}.isdisjoint(judged[0])


def test_a_wrong_group_in_the_gradients_is_seen(
    checkpoint: Find, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = tunable_module.grouped
    monkeypatch.setattr(tunable_module, "grouped", lambda matrix, format: right(matrix.roll(1, 1), format))
    with pytest.raises(AssertionError, match="scales"):
        test_loss_and_gradients_are_those_of_the_plain_model(checkpoint, tmp_path, "llama", "int3:g32:asym")
