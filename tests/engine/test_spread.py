"""Recipes carried out by workers leave the bytes of their runs alone, and a limit for activations changes none."""

from pathlib import Path

import torch

from subeight.engine.job import Job, Settings
from subeight.engine.loop import run
from subeight.engine.spread import Work, run_spread
from subeight.export import exporter_for
from subeight.models.model import Model
from subeight.recipes import load_recipe, resolve
from subeight.sweep import Where
from tests.verbs import small


def job(model: Model, recipe: Path, directory: Path) -> Job:
    plan = resolve(load_recipe(str(recipe)), model.linears)
    return Job(plan, directory, exporter_for("compressed-tensors"))


def shards(directory: Path) -> list[bytes]:
    return [path.read_bytes() for path in sorted(directory.glob("*.safetensors"))]


def test_each_recipe_has_the_bytes_of_its_run_alone(tmp_path: Path) -> None:
    model = Model(small.save_llama(tmp_path / "base"))
    ids = torch.randint(0, 320, (8, 32), generator=torch.Generator().manual_seed(0))
    recipes = {
        "gptq": small.write_recipe(tmp_path / "gptq.yaml", small.GPTQ, small.write_text(tmp_path / "text.txt")),
        "rtn": small.write_recipe(tmp_path / "rtn.yaml", small.RTN),
    }
    alone = {name: job(model, recipe, tmp_path / f"{name}-alone") for name, recipe in recipes.items()}
    for one in alone.values():
        run(model, [one], ids, Settings(quiet=True))
    spread = {name: job(model, recipe, tmp_path / name) for name, recipe in recipes.items()}
    limited = Settings(quiet=True, max_memory=5000, states=tmp_path / "states")
    lanes = run_spread(model, [Work(one, ids) for one in spread.values()], limited, Where())
    for name, lane in zip(recipes, lanes, strict=True):
        assert shards(tmp_path / name) == shards(tmp_path / f"{name}-alone")
        assert lane.seconds > 0 and lane.outcomes()
    assert (tmp_path / "states").is_dir() and not list((tmp_path / "states").iterdir())
