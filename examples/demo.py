"""The main job on the embedded model: inspect it, quantize it by several methods at 4 and 3 bits, measure each; then
break a 3-bit one on purpose and find out why it got worse.

    python examples/demo.py --out demo

Demo settings (16 calibration sequences of 512 tokens, 4,096 evaluation tokens, 1,024 to diagnose): they show the way,
they are no results.
"""

import argparse
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import load_file, save_file

import subeight
from subeight.cli.main import quieten
from subeight.cli.show import comparison_table, words
from subeight.models.smollm2 import unpacked

NOTE = "demo settings: 16 calibration sequences of 512 tokens, 4,096 evaluation tokens; never quote these as results"
BROKEN = "model.layers.0.self_attn.o_proj"  # whose scales the demo makes wrong
DIAGNOSED_TOKENS = 1024
RECIPES = ("rtn-int4", "awq-int4", "gptq-int4", "rtn-int3", "awq-int3", "gptq-int3")


class Clock:
    """Seconds of each stage, kept in timing.json as they come."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.stages: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        words(f"\n== {name}")
        began = time.monotonic()
        yield
        self.stages[name] = round(time.monotonic() - began, 1)
        content = {"stages": self.stages, "seconds": round(sum(self.stages.values()), 1)}
        self._path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def main() -> None:
    """Runs the demo into `--out`; an earlier demo there is replaced."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("demo"))
    out: Path = parser.parse_args().out
    quieten()
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    recipes = _demo_recipes(out / "recipes")
    clock = Clock(out / "timing.json")
    command = ("subeight", *sys.argv[1:])
    with clock.stage("unpack the embedded model"):
        unpacked()
    with clock.stage("inspect its outliers"):
        looked = subeight.inspect(
            "smollm2",
            options=subeight.Options(out=out / "inspect", note=NOTE, command=("subeight", "inspect", "smollm2")),
        )
        for line in looked.lines:
            words(f"  {line}")
    with clock.stage("quantize and measure"):
        options = subeight.Options(out=out / "compare", eval_tokens=4096, note=NOTE, command=command)
        result = subeight.compare("smollm2", recipes, shared=True, options=options)
        words(comparison_table(result.numbers["rows"]))
        words(result.numbers["why"])
    with clock.stage("write the best"):
        best = min(result.numbers["rows"], key=lambda row: row["kl"])
        shutil.copytree(best["checkpoint"], out / "best")
        words(f"{best['recipe']} in {out / 'best'}: AutoModelForCausalLM.from_pretrained('{out / 'best'}') loads it")
    with clock.stage("break a 3-bit model, and find out why it got worse"):
        healthy = next(Path(row["checkpoint"]) for row in result.numbers["rows"] if row["recipe"] == "gptq-int3")
        broken = _broken(healthy, out / "broken")
        asked = ("subeight", "diagnose", str(broken))
        options = subeight.Options(out=out / "diagnose", eval_tokens=DIAGNOSED_TOKENS, note=NOTE, command=asked)
        found = subeight.diagnose(str(broken), options=options)
        for line in found.lines:
            words(f"  {line}")
    runs = [str(out / name) for name in ("diagnose", "inspect", "compare")]
    page = subeight.report(runs, out=out / "report.html")
    words(f"\nreport {page}, stage times {out / 'timing.json'}")


def _broken(healthy: Path, directory: Path) -> Path:
    """A copy of a checkpoint in which the scales of one linear are twice as large as they should be."""
    shutil.copytree(healthy, directory)
    name = f"{BROKEN}.weight_scale"
    index = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shard = directory / index["weight_map"][name]
    tensors = load_file(shard)
    tensors[name] *= 2
    save_file(tensors, shard, metadata={"format": "pt"})
    return directory


def _demo_recipes(directory: Path) -> list[str]:
    """The shipped recipes with demo-sized calibration, as files that can be read and changed."""
    directory.mkdir()
    paths = []
    for name in RECIPES:
        recipe = subeight.load_recipe(name)
        small = recipe.calibration.model_copy(update={"sequences": 16, "length": 512})
        path = directory / f"{name}.yaml"
        path.write_text(recipe.model_copy(update={"calibration": small}).to_yaml(), encoding="utf-8")
        paths.append(str(path))
    return paths


if __name__ == "__main__":
    main()
