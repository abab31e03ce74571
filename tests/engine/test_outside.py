"""A method from another package: named by an entry point, it goes through plan, loop and checkpoint like ours."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from subeight.formats import Format, QTensor, Sparse, quantize
from subeight.methods import base
from subeight.methods.base import Round, Select, option
from subeight.methods.polishing import ModelTask, Polish
from subeight.models.model import Model
from subeight.models.stats import Stats
from tests.engine.tiny import calibration, codes_of, plan_of
from tests.engine.tiny import quantize as run

Find = Callable[..., Path]


@dataclass(frozen=True)
class Downward(Round):
    """Rounds toward zero."""

    name: ClassVar[str] = "downward"
    share: float = option(0.5, "of the range", low=0.1, high=1.0)

    def round(
        self,
        weight: Tensor,
        format: Format,
        stats: Stats | None,
        generator: torch.Generator,
        notes: dict[str, Any] | None = None,
    ) -> QTensor:
        return quantize(weight * self.share, format)


@dataclass(frozen=True)
class Corner(Select):
    """Sets the first value apart."""

    name: ClassVar[str] = "corner"

    def extra_bits(self, shape: tuple[int, int]) -> float:
        return 32 + 32 * (shape[0] + 1)

    def select(self, weight: Tensor, format: Format, stats: Stats | None) -> Sparse:
        chosen = torch.zeros_like(weight, dtype=torch.bool)
        chosen[0, 0] = True
        return Sparse.of(weight, chosen)


@dataclass(frozen=True)
class Doubling(Polish):
    """Doubles every scale."""

    name: ClassVar[str] = "doubling"

    def polish(self, task: ModelTask, generator: torch.Generator, notes: dict[str, Any]) -> dict[str, Tensor]:
        return {name: value * (2 if name.endswith("scales") else 1) for name, value in task.parameters.items()}


@pytest.fixture(autouse=True)
def installed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Pretends that a package which declares the three is installed."""
    made = ("Downward", "Corner", "Doubling")
    entries = [metadata.EntryPoint(name.lower(), f"{__name__}:{name}", base.ENTRY_POINTS) for name in made]
    real = metadata.entry_points
    monkeypatch.setattr(
        metadata, "entry_points", lambda **wanted: entries if wanted == {"group": base.ENTRY_POINTS} else real(**wanted)
    )
    base._found.cache_clear()
    yield
    monkeypatch.undo()
    base._found.cache_clear()


def test_it_rounds(checkpoint: Find, tmp_path: Path) -> None:
    recipe = "{weights: 'int4:g32', methods: [awq, {downward: {share: 0.25}}]}"
    run(checkpoint("llama"), recipe, tmp_path / "out", calibration())
    opened, name = Model(tmp_path / "out"), "model.layers.1.self_attn.o_proj"
    assert len(codes_of(tmp_path / "out")) == 14
    weight = Model(checkpoint("llama")).weights.read(f"{name}.weight")
    ratio = opened.weights.read(f"{name}.weight").norm() / weight.norm()
    assert 0.1 < float(ratio) < 0.5


def test_it_sets_apart_and_polishes_in_its_place_of_the_list(checkpoint: Find, tmp_path: Path) -> None:
    recipe = "{weights: 'int4:g32', methods: [corner, gptq, doubling]}"
    run(checkpoint("llama"), recipe, tmp_path / "out", calibration(), "subeight")
    run(
        checkpoint("llama"),
        "{weights: 'int4:g32', methods: [corner, gptq]}",
        tmp_path / "one",
        calibration(),
        "subeight",
    )
    for name in ("model.layers.0.mlp.up_proj", "model.layers.1.self_attn.q_proj"):
        doubled, plain = (Model(tmp_path / folder).codes.read(name) for folder in ("out", "one"))
        assert torch.equal(doubled.scales, 2 * plain.scales) and torch.equal(doubled.codes, plain.codes)
        assert doubled.sparse is not None and len(doubled.sparse.values) == 1
    site = plan_of(Model(checkpoint("llama")), recipe).quantized[0]
    assert site.bits > plan_of(Model(checkpoint("llama")), "{weights: 'int4:g32'}").quantized[0].bits
