"""A whole diagnosis of smollm2 on 64 failing prompts: seconds, by suspect; and what the search for one linear costs.

    python -m benchmarks.diagnose_speed [--runs 3] [--threads 2]

The candidate is smollm2 at 4 bits (GPTQ, groups of 64, 16 x 512 tokens) in which the scales of one linear are 1.8 times
too large; the prompts are the first 64 documents of the packaged evaluation text. The baseline's states are not cached.
"""

import argparse
import json
import shutil
import tempfile
import time
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import spread, write_result
from safetensors.torch import load_file, save_file

import subeight
from subeight.verbs import options as options_module

CULPRIT = "model.layers.1.self_attn.v_proj"
FACTOR = 1.8
PROMPTS = 64
RECIPE = """name: gptq-int4
weights: int4:g64:sym
methods: [gptq]
calibration: {source: builtin, sequences: 16, length: 512, seed: 0}
"""


def main() -> None:
    """Writes `results/diagnose_speed.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        candidate, prompts = _candidate(scratch, arguments.threads), _prompts(scratch)
        runs = [_once(candidate, prompts, scratch / str(run), arguments.threads) for run in range(arguments.runs)]
    numbers = {
        "prompts": PROMPTS,
        "tokens": runs[0]["tokens"],
        "loss": runs[0]["loss"],
        "causes": runs[0]["causes"],
        "recovered": runs[0]["recovered"],
        "seconds": spread([run["seconds"] for run in runs]),
        "seconds_by_suspect": {
            suspect: spread([run["by_suspect"][suspect] for run in runs]) for suspect in runs[0]["by_suspect"]
        },
        "layers": runs[0]["layers"],
    }
    write_result("diagnose_speed", numbers, threads=arguments.threads, culprit=CULPRIT, factor=FACTOR)


def _candidate(scratch: Path, threads: int) -> Path:
    recipe = scratch / "recipe.yaml"
    recipe.write_text(RECIPE, encoding="utf-8")
    directory = scratch / "candidate"
    subeight.quantize("smollm2", str(recipe), options=subeight.Options(out=directory, threads=threads))
    index = json.loads((directory / "model.safetensors.index.json").read_text(encoding="utf-8"))
    shard = directory / index["weight_map"][f"{CULPRIT}.weight_scale"]
    tensors = load_file(shard)
    tensors[f"{CULPRIT}.weight_scale"] *= FACTOR
    save_file(tensors, shard, metadata={"format": "pt"})
    return directory


def _prompts(scratch: Path) -> Path:
    packaged = (resources.files("subeight.text") / "builtin" / "evaluation.jsonl").read_text(encoding="utf-8")
    path = scratch / "prompts.jsonl"
    path.write_text("\n".join(packaged.splitlines()[:PROMPTS]) + "\n", encoding="utf-8")
    return path


def _once(candidate: Path, prompts: Path, out: Path, threads: int) -> dict[str, Any]:
    cache = out.with_name(f"{out.name}-cache")
    options_module.cache_directory = lambda: cache  # a first diagnosis: nothing is known of the baseline
    complaint = subeight.Complaint(prompts=str(prompts))
    began = time.perf_counter()
    options = subeight.Options(out=out, threads=threads)
    numbers = subeight.diagnose(str(candidate), "smollm2", complaint=complaint, options=options).numbers
    seconds = time.perf_counter() - began
    shutil.rmtree(cache, ignore_errors=True)
    layers = numbers["findings"][-1]
    return {
        "seconds": round(seconds, 1),
        "tokens": numbers["tokens"],
        "loss": numbers["loss"],
        "recovered": numbers["verdict"]["recovered"],
        "causes": [[c["suspect"], c["kind"], c["places"]] for c in numbers["verdict"]["causes"]],
        "by_suspect": {finding["suspect"]: finding["seconds"] for finding in numbers["findings"]},
        "layers": {key: layers[key] for key in ("evaluations", "block_forwards")},
    }


if __name__ == "__main__":
    main()
