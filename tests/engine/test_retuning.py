"""Codes tuned block by block from a checkpoint: in its own gauge, toward the baseline's blocks, again after a kill."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch

from subeight.engine.job import Settings
from subeight.engine.retuning import Versions, retune
from subeight.formats import QTensor
from subeight.methods.base import option
from subeight.methods.round.signround import SignRound
from subeight.methods.tune import BlockTask, Tune
from subeight.models.align import align
from subeight.models.model import Model
from tests.engine.tiny import calibration, quantize

Find = Callable[..., Path]
SETTINGS = Settings(batch=2, quiet=True)


@dataclass(frozen=True)
class Watch(Tune):
    """Keeps the codes, and what they and the weights themselves lose."""

    name: ClassVar[str] = "watch"
    start: str = option("rtn", "what rounds before")

    def tune(self, task: BlockTask, generator: torch.Generator, notes: dict[str, Any]) -> dict[str, QTensor]:
        seen.append(
            [task.loss(weights, 0) for weights in (task.weights, {n: c.dequantize() for n, c in task.start.items()})]
        )
        return dict(task.start)


seen: list[list[float]] = []


def versions(source: Path, recipe: str, to: Path) -> Versions:
    quantize(source, recipe, to, calibration())
    baseline, start = Model(source), Model(to)
    return Versions(start, baseline, align(baseline, start))


@pytest.mark.parametrize("methods", ["rtn", "awq, rtn", "rotate, rtn"])
def test_weights_are_the_baselines_in_the_gauge_of_the_start(checkpoint: Find, tmp_path: Path, methods: str) -> None:
    """In the first block, where both read the same: the exact weights lose nothing, the codes what rounding does."""
    both = versions(checkpoint("llama"), f"{{weights: 'int4:g32', methods: [{methods}]}}", tmp_path / "start")
    names = set(both.start.codes.names)
    seen.clear()
    same = retune(both, names, Watch(), calibration(4, 16, seed=3), SETTINGS, tmp_path / "blocks")
    exact, rounded = seen[0]
    assert exact < 0.02 * rounded < 0.02
    assert all((same[name].codes == both.start.codes.read(name).codes).all() for name in names)


def test_blocks_come_nearer_and_are_not_tuned_twice(checkpoint: Find, tmp_path: Path) -> None:
    both = versions(checkpoint("llama"), "{weights: 'int2:g32', methods: [rtn]}", tmp_path / "start")
    names = {name for name in both.start.codes.names if "down_proj" not in name}
    ids, folder = calibration(32, 24, seed=3), tmp_path / "blocks"
    found = retune(both, names, SignRound(steps=40), ids, SETTINGS, folder)
    assert found.keys() == names
    turned = [float((code.codes != both.start.codes.read(name).codes).float().mean()) for name, code in found.items()]
    assert 0 < sum(turned) / len(turned) < 0.3
    assert all(code.format == both.start.codes.read(name).format for name, code in found.items())
    (folder / "00001.safetensors").unlink()  # killed in the second block
    before = (folder / "00000.safetensors").stat().st_mtime_ns
    again = retune(both, names, SignRound(steps=40), ids, SETTINGS, folder)
    assert (folder / "00000.safetensors").stat().st_mtime_ns == before
    assert all(torch.equal(again[name].codes, found[name].codes) for name in names)
    assert all(torch.equal(again[name].scales, found[name].scales) for name in names)
