"""The main job on the embedded model: inspect it, quantize it by several methods at 4 and 3 bits, measure each; break a
3-bit one on purpose and find out why it got worse; map which layers need the bits, and spend a budget by the map; ask
what pays on this machine, and what keys and values in few bits cost.

    python examples/demo.py --out demo

Demo settings (12 calibration sequences of 512 tokens, 4,096 evaluation tokens, 1,024 to diagnose, 512 to map): they
show the way, they are no results.
"""

import argparse
import json
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

import subeight
from subeight.cli.main import quieten
from subeight.cli.show import comparison_table, words
from subeight.models.smollm2 import unpacked

NOTE = "demo settings: few calibration and evaluation tokens; never quote these as results"
BROKEN = "model.layers.0.self_attn.o_proj"  # whose scales the demo makes wrong
DIAGNOSED_TOKENS = 1024
MAPPED, MAPPED_TOKENS, MAPPED_WINDOW, BUDGET = ("int4", "int3", "int2"), 512, 64, "3.25 bits"
CACHES = ("int4:g64:asym,rotate,window=64", "int2:g64:asym,rotate,window=64")
RECIPES = ("rtn-int4", "gptq-int4", "rtn-int3", "awq-int3", "outliers-gptq-int3", "gptq-int3")


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
    clock = Clock(out / "timing.json")
    with clock.stage("unpack the embedded model"):
        unpacked()
    with clock.stage("inspect its outliers"):
        _say(subeight.inspect("smollm2", options=_options(out / "inspect", "inspect", "smollm2")))
    with clock.stage("quantize and measure"):
        checkpoints = _compared(out)
    with clock.stage("break a 3-bit model, and find out why it got worse"):
        broken = _broken(Path(checkpoints["gptq-int3"]), out / "broken")
        options = _options(out / "diagnose", "diagnose", str(broken), eval_tokens=DIAGNOSED_TOKENS)
        _say(subeight.diagnose(str(broken), options=options))
    with clock.stage(f"map which layers need the bits, and spend {BUDGET} by it"):
        _allocated(out)
    with clock.stage("what pays on this machine"):
        options = _options(out / "advise", "advise", "smollm2", "--context", "512", dtype="bfloat16")
        _say(subeight.advise("smollm2", context=512, options=options))
    with clock.stage("keys and values in few bits, apart from the weights and beside them"):
        _say(_cached(out / "kv", checkpoints["gptq-int4"]))
    runs = [str(out / name) for name in ("diagnose", "allocate", "map", "inspect", "compare", "advise", "kv")]
    page = subeight.report(runs, out=out / "report.html")
    words(f"\nreport {page}, stage times {out / 'timing.json'}")


def _options(out: Path, *command: str, **more: Any) -> subeight.Options:
    """The options, and the command as it would be typed."""
    return subeight.Options(out=out, note=NOTE, command=("subeight", *command, *_typed(more)), **more)


def _typed(asked: dict[str, Any]) -> list[str]:
    return [part for name, value in asked.items() for part in (f"--{name.replace('_', '-')}", str(value))]


def _say(result: subeight.Result) -> None:
    for line in result.lines:
        words(f"  {line}")


def _compared(out: Path) -> dict[str, str]:
    """Every recipe measured, the best one written; the checkpoint of each."""
    recipes = _demo_recipes(out / "recipes")
    options = _options(out / "compare", "compare", "smollm2", "--recipes", ",".join(recipes), eval_tokens=4096)
    result = subeight.compare("smollm2", recipes, shared=True, options=options)
    rows = result.numbers["rows"]
    words(comparison_table(rows))
    _say(result)
    best = min(rows, key=lambda row: row["kl"])
    shutil.copytree(best["checkpoint"], out / "best")
    words(f"{best['recipe']} in {out / 'best'}: AutoModelForCausalLM.from_pretrained('{out / 'best'}') loads it")
    return {row["recipe"]: row["checkpoint"] for row in rows}


def _cached(out: Path, low: str) -> subeight.Result:
    """Caches in few bits, beside the full weights and beside a low-bit checkpoint."""
    asked = {"windows": 1, "retrieval": 0, "written": 16}
    policies = [part for policy in CACHES for part in ("--policies", policy)]
    options = _options(out, "kv", "smollm2", *policies, "--contexts", "512", "--weights", low, *_typed(asked))
    return subeight.kv("smollm2", policies=CACHES, contexts=(512,), weights=[low], **asked, options=options)


def _allocated(out: Path) -> None:
    """A map of few tokens, a budget spent by it, and the result put to the test."""
    formats = ",".join(MAPPED)
    typed = ("map", "smollm2", "--formats", formats, "--rescue", "none")
    options = _options(out / "map", *typed, eval_tokens=MAPPED_TOKENS, eval_window=MAPPED_WINDOW)
    _say(subeight.map("smollm2", MAPPED, rescue=(), options=options))
    asked = ("allocate", str(out / "map"), "--budget", BUDGET, "--engine", "vllm", "--verify")
    options = _options(out / "allocate", *asked)
    _say(subeight.allocate(str(out / "map"), BUDGET, engine="vllm", verify=True, options=options))


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
        small = recipe.calibration.model_copy(update={"sequences": 12, "length": 512})
        path = directory / f"{name}.yaml"
        path.write_text(recipe.model_copy(update={"calibration": small}).to_yaml(), encoding="utf-8")
        paths.append(str(path))
    return paths


if __name__ == "__main__":
    main()
