"""Quantizing tiny random models in tests: a plan from YAML, one call of the loop, and what it left on the disk."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from subeight.engine.job import Job, Settings
from subeight.engine.lane import Lane
from subeight.engine.loop import run
from subeight.engine.rounding import methods_of
from subeight.export import exporter_for
from subeight.models.folds import foldable_groups
from subeight.models.model import Model
from subeight.recipes import Plan, parse_recipe, resolve

GPTQ = "{weights: 'int4:g32', methods: [gptq], tap: TAP}"
AWQ = "{weights: 'int4:g32', methods: [awq, {rtn: {search: output}}]}"
AWQ_GPTQ = "{weights: 'int4:g32', methods: [awq, gptq], tap: TAP}"


def calibration(count: int = 6, length: int = 24, seed: int = 0, vocabulary: int = 128) -> Tensor:
    return torch.randint(0, vocabulary, (count, length), generator=torch.Generator().manual_seed(seed))


def plan_of(model: Model, recipe: str) -> Plan:
    """The plan of a recipe in YAML, as the verbs make it."""
    parsed = parse_recipe(recipe)
    plan = resolve(parsed, model.linears)
    if any(method.move == "move" for site in plan.quantized for method in methods_of(site)):
        plan = resolve(parsed, model.linears, foldable=foldable_groups(model))
    return plan


def quantize_all(
    source: Path, recipes: Sequence[tuple[str, Path]], ids: Tensor | None, to: str = "compressed-tensors", **settings
) -> list[Lane]:
    """Carries out recipes, each into its directory, in one call of the loop."""
    model = Model(source)
    jobs = []
    for recipe, directory in recipes:
        plan, exporter = plan_of(model, recipe), exporter_for(to)
        exporter.require(plan.sites)
        jobs.append(Job(plan, directory, exporter))
    return run(model, jobs, ids, Settings(**{"batch": 4, "quiet": True, **settings}))


def quantize(
    source: Path, recipe: str, directory: Path, ids: Tensor | None, to: str = "compressed-tensors", **settings
) -> Lane:
    """Carries out one recipe."""
    return quantize_all(source, [(recipe, directory)], ids, to, **settings)[0]


def codes_of(directory: Path) -> dict[str, Tensor]:
    """The codes of every quantized linear of a checkpoint."""
    codes = Model(directory).codes
    assert codes is not None
    return {name: codes.read(name).codes for name in codes.names}


def hashes(directory: Path, leave_out: Sequence[str] = ()) -> dict[str, str]:
    """sha256 of every file under a directory, by its relative path."""
    files = sorted(path for path in directory.rglob("*") if path.is_file() and path.name not in leave_out)
    return {str(path.relative_to(directory)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
