"""Checkpoints of other tools, diagnosed as they are and with one fault: nothing may be named, then just the fault.

    python -m benchmarks.foreign BASELINE FOLDER

FOLDER holds what `peers/foreign_*.py` wrote from BASELINE, one checkpoint a directory, and `.gguf` files. The fault is
the same everywhere: half of the channels of one norm, which no tool quantizes, are 1.6 times too large. The one right
answer is that norm's name, with suspect `baseline` and kind `tensor`.
"""

import argparse
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.common import write_result
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import subeight
from subeight.errors import SubeightError
from subeight.models.read.gguf import open_reader

NORM = "model.layers.2.post_attention_layernorm.weight"
GGUF_NORM = "blk.2.ffn_norm.weight"
FACTOR = 1.6


def main() -> None:
    """Writes `results/foreign.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("baseline", type=Path)
    parser.add_argument("folder", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = {path.name: _both(path, arguments.baseline) for path in checkpoints(arguments.folder)}
    right = sum(row["healthy"]["right"] and row["faulty"]["right"] for row in rows.values())
    write_result("foreign", {"checkpoints": len(rows), "right": right, "rows": rows}, baseline=arguments.baseline.name)


def checkpoints(folder: Path) -> list[Path]:
    """Directories with a config, and GGUF files, also one folder deeper."""
    found = {path.parent for path in folder.glob("*/config.json")} | set(folder.glob("**/*.gguf"))
    return sorted(found)


def _both(checkpoint: Path, baseline: Path) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        healthy = _diagnosed(checkpoint, baseline, scratch / "healthy")
        healthy["right"] = not healthy["causes"]
        faulty = _diagnosed(damaged(checkpoint, scratch), baseline, scratch / "faulty")
        faulty["right"] = faulty["causes"] == [["baseline", "tensor", [NORM]]]
    return {"healthy": healthy, "faulty": faulty}


def damaged(checkpoint: Path, scratch: Path) -> Path:
    """A copy of the checkpoint with half of a norm's channels enlarged."""
    target = scratch / checkpoint.name
    if checkpoint.suffix == ".gguf":
        shutil.copy(checkpoint, target)
        tensor = next(tensor for tensor in open_reader(target).tensors if tensor.name == GGUF_NORM)
        values = np.memmap(target, np.float32, "r+", int(tensor.data_offset), tuple(tensor.data.shape))
        values[::2] *= FACTOR
        values.flush()
        return target
    shutil.copytree(checkpoint, target)
    for path in target.glob("*.safetensors"):
        with safe_open(path, "pt") as file:
            if NORM not in file.keys():  # noqa: SIM118 - not a dict
                continue
            metadata = file.metadata()
        tensors = load_file(path)
        tensors[NORM][::2] *= FACTOR
        save_file(tensors, path, metadata=metadata)
    return target


def _diagnosed(candidate: Path, baseline: Path, out: Path) -> dict[str, Any]:
    began = time.perf_counter()
    options = subeight.Options(out=out, eval_tokens=1500, eval_window=64, quiet=True, threads=1)
    try:
        numbers = subeight.diagnose(str(candidate), str(baseline), options=options).numbers
    except SubeightError as error:
        return {"causes": None, "error": str(error)}
    causes = [[cause["suspect"], cause["kind"], cause["places"]] for cause in numbers["verdict"]["causes"]]
    return {
        "causes": causes,
        "loss": numbers["loss"],
        "recovered": numbers["verdict"]["recovered"],
        "findings": {finding["suspect"]: finding["verdict"] for finding in numbers["findings"]},
        "seconds": round(time.perf_counter() - began, 1),
    }


if __name__ == "__main__":
    main()
