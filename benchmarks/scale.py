"""What larger models cost: seconds, memory and disk of four verbs by size, and whether the cost of a block is flat.

    python -m benchmarks.scale --work DIR [--sizes 640x24 256x8 384x12] [--held-out 512x16]

Every verb runs in a process of its own with `--max-memory` 32 MB, and with a limit of the kernel (RLIMIT_DATA) on what
it takes beyond its imports: the model's bytes (120 MB for models that are smaller), so one that held the model whole
would end. What is finished in DIR is not run again. Seconds are those of the CPU, so other work on the machine counts
little. From the sizes a line is fitted for each cost; its error on the held-out size is stated. 8, 70 and 400 billion
weights are extrapolated, and are no measurements.
"""

import argparse
import contextlib
import ctypes
import io
import json
import os
import re
import resource
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import scipy.stats
import torch
import transformers.models.llama.modeling_llama
from benchmarks.common import write_result
from benchmarks.random_llama import make_llama
from scipy.optimize import nnls

from subeight.cli.main import app, quieten

LOADED = (scipy.stats, transformers.models.llama.modeling_llama)  # before the processes part, not in each of them

VOCABULARY = 1024  # small, as against the blocks of so small models a real one would be all there is
TOLERATED = 0.25  # of the held-out size: a line that misses it by more says nothing
ROOM = 32_000_000  # --max-memory
MARGIN = 120_000_000  # what libraries that are loaded late take, where the model is smaller than that
EVERY = 4  # blocks, of which the map measures one
TOKENS = {"evaluate": 512, "map": 64, "diagnose": 256}
M_MMAP_THRESHOLD = -3  # of glibc's mallopt
MAPPED = 1_000_000  # bytes from which what is freed goes back at once; holes in a heap would count against the limit
EXTRAPOLATED = {
    "8B": (4096, 32, 14336, 8, 32, 128256),
    "70B": (8192, 80, 28672, 8, 64, 128256),
    "400B": (16384, 126, 53248, 8, 128, 128256),
}
"""Width, blocks, feed-forward width, heads of keys and values, heads, vocabulary: those of Llama 3.1."""


def main() -> None:
    """Runs what is not there yet and writes `results/scale.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=["640x24", "256x8", "384x12"])
    parser.add_argument("--held-out", default="512x16", help="none: nothing is fitted")
    parser.add_argument("--recipe", default="fast-int4")
    parser.add_argument("--name", default="scale")
    parser.add_argument("--verbs", nargs="+", default=["quantize", "evaluate", "map", "diagnose"])
    asked = parser.parse_args()
    quieten()
    torch.set_num_threads(1)
    held_out = [] if asked.held_out == "none" else [asked.held_out]
    rows = [measured(asked.work, size, asked.verbs, asked.recipe) for size in [*asked.sizes, *held_out]]
    numbers = summary(rows) if held_out else {"rows": rows}
    write_result(
        asked.name, numbers, vocabulary=VOCABULARY, tokens=TOKENS, every=EVERY, recipe=asked.recipe, max_memory=ROOM
    )


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows, the lines fitted to all but the last, their error on that one, and what they say of larger models."""
    verbs = [verb for verb in rows[0]["verbs"] if all(verb in row["verbs"] for row in rows)]
    fits = {verb: fitted(rows[:-1], rows[-1], verb) for verb in verbs}
    found = {name: {verb: extrapolated(fits[verb], sizes) for verb in verbs} for name, sizes in EXTRAPOLATED.items()}
    return {"rows": rows, "fits": fits, "extrapolated": found}


def measured(work: Path, size: str, verbs: list[str], recipe: str = "fast-int4") -> dict[str, Any]:
    """One size: the model, and each verb on it."""
    width, blocks = (int(part) for part in size.split("x"))
    folder = work / size
    model = folder / "model"
    total = make_llama(model, width, blocks, vocabulary=VOCABULARY)
    row: dict[str, Any] = {
        "size": size, "width": width, "blocks": blocks, "weights": total // 2, "model_bytes": total,
        "limit_bytes": max(total, MARGIN), "verbs": {},
    }  # fmt: skip
    for verb in verbs:
        row["verbs"][verb] = step(folder, words(folder, verb, model, recipe), row)
    for verb, found in row["verbs"].items():
        said = found["predicted"] = predicted(words(folder, verb, model, recipe))
        pairs = (("seconds", "seconds"), ("memory_bytes", "peak_bytes"))
        found["predicted_over_measured"] = {name: said[name] / found[real] for name, real in pairs}
    return row


def step(folder: Path, command: list[str], row: dict[str, Any]) -> dict[str, Any]:
    """One verb in a process of its own; what an earlier call found is read back."""
    verb = command[0]
    kept = folder / f"{verb}.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    out = folder / verb
    command = [*command, "--out", str(out), "--quiet"]
    seen = apart(lambda: app(command, standalone_mode=False), row["limit_bytes"], out, folder / "scratch")
    record = json.loads((out / "record.json").read_text(encoding="utf-8"))
    found = {
        "seconds": seen.cpu_seconds,
        "wall_seconds": record["seconds"],
        "seconds_per_block": seen.cpu_seconds / row["blocks"],
        "peak_bytes": seen.peak_bytes,
        "of_model": seen.peak_bytes / row["model_bytes"],
        "scratch_bytes": seen.scratch_bytes,
        "written_bytes": _size(out),
        "halves": halves(seen.course, row["blocks"]) if verb == "quantize" else None,
    }
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


def words(folder: Path, verb: str, model: Path, recipe: str) -> list[str]:
    """The command of a verb."""
    made = str(folder / "quantize")
    text = ["--eval-tokens", str(TOKENS.get(verb, 0)), "--eval-window", "64"]
    own = {
        "quantize": [str(model), "--recipe", recipe],
        "evaluate": [made, "--against", str(model), *text],
        "map": [str(model), "--formats", "int4,int2", "--share", "0.01", "--every", str(EVERY), *text],
        "diagnose": [made, "--baseline", str(model), *text],
    }[verb]
    return [verb, *own, "--threads", "1", "--scratch", str(folder / "scratch"), "--max-memory", str(ROOM)]


def predicted(command: list[str]) -> dict[str, Any]:
    """What `--dry-run` says of a command."""
    with contextlib.redirect_stdout(io.StringIO()) as said, contextlib.redirect_stderr(io.StringIO()):
        app([*command, "--dry-run", "--json", "--quiet"], standalone_mode=False)
    return json.loads(said.getvalue())["numbers"]["predicted"]


def halves(course: dict[int, float], blocks: int) -> dict[str, float] | None:
    """CPU seconds of a block in the second half over those in the first; `course` has them by shards written.

    None where too few were seen: a small model is through between two looks.
    """
    marks = [count for count in sorted(course) if 1 <= count <= blocks]
    middle = min(marks[1:-1], key=lambda count: abs(count - (blocks + 1) / 2), default=None)
    if middle is None:
        return None
    first = (course[middle] - course[marks[0]]) / (middle - marks[0])
    second = (course[marks[-1]] - course[middle]) / (marks[-1] - middle)
    return {"first": first, "second": second, "ratio": second / first}


@dataclass
class Seen:
    """What was seen of a process: its CPU seconds, in all and by shards written; how large its scratch folder was.

    `peak_bytes` is its anonymous memory beyond what it began with, looked at twenty times a second.
    """

    cpu_seconds: float = 0.0
    peak_bytes: int = 0
    scratch_bytes: int = 0
    course: dict[int, float] = field(default_factory=dict)


def apart(work: Callable[[], object], limit: int, out: Path, scratch: Path) -> Seen:
    """Does the work in a process of its own, with so many bytes of private memory beyond what there is now.

    The process is forked, so that what is imported is there already and counts for nothing.
    """
    held = anonymous(os.getpid())
    limit += psutil.Process().memory_info().data
    child = os.fork()
    if child == 0:
        status = 1
        try:
            ctypes.CDLL(None).mallopt(M_MMAP_THRESHOLD, MAPPED)
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
            work()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(status)
    seen, process = Seen(), psutil.Process(child)
    while True:
        done, status, used = os.wait4(child, os.WNOHANG)
        if done:
            break
        seen.scratch_bytes = max(seen.scratch_bytes, _size(scratch))
        seen.peak_bytes = max(seen.peak_bytes, anonymous(child) - held)
        times = process.cpu_times()
        seen.course.setdefault(len(list(out.glob("model-*.safetensors"))), times.user + times.system)
        time.sleep(0.05)
    if status:
        sys.exit("A verb ended with an error, see above; what is finished is kept.")
    seen.cpu_seconds = used.ru_utime + used.ru_stime
    return seen


def anonymous(process: int) -> int:
    """Bytes of memory that no file stands behind; what the models' files are read into is among them."""
    found = re.search(r"^RssAnon:\s*(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
    return 1024 * int(found[1]) if found else 0


def _size(folder: Path) -> int:
    found = 0
    for path in folder.rglob("*") if folder.is_dir() else ():
        try:
            found += path.stat().st_size if path.is_file() else 0
        except FileNotFoundError:  # gone meanwhile
            continue
    return found


def fitted(rows: list[dict[str, Any]], held: dict[str, Any], verb: str) -> dict[str, Any]:
    """Seconds by weights of all blocks, memory by weights of one block and of both ends; least squares, not below 0."""
    costs: dict[str, Any] = {}
    for cost in ("seconds", "peak_bytes"):
        given = np.array([_terms(cost, row["width"], row["blocks"], VOCABULARY) for row in rows])
        values = np.array([row["verbs"][verb][cost] for row in rows])
        factors = _not_negative(given, values)
        said = float(np.dot(_terms(cost, held["width"], held["blocks"], VOCABULARY), factors))
        real = held["verbs"][verb][cost]
        costs[cost] = {"factors": factors, "held_out": said, "measured": real, "error": said / real - 1}
    return costs


def _not_negative(given: np.ndarray, values: np.ndarray) -> list[float]:
    scale = given.max(0)
    return (nnls(given / scale / values[:, None], np.ones(len(values)))[0] / scale).tolist()  # relative errors


def _terms(cost: str, width: int, blocks: int, vocabulary: int, block: float | None = None) -> list[float]:
    each = 10.75 * width**2 if block is None else block
    return [1.0, blocks * each] if cost == "seconds" else [1.0, each + vocabulary * width / 4]


def extrapolated(fit: dict[str, Any], sizes: tuple[int, ...]) -> dict[str, float | None]:
    """The CPU seconds that the line says of a model of these sizes; None where it missed the held-out size by far.

    Memory is not extrapolated: of models so small it is mostly what every process takes.
    """
    width, blocks, ffn, narrow, heads, vocabulary = sizes
    block = width * (2 * width + 2 * width * narrow // heads + 3 * ffn)
    said = float(np.dot(_terms("seconds", width, blocks, vocabulary, block), fit["seconds"]["factors"]))
    good = abs(fit["seconds"]["error"]) <= TOLERATED
    return {"seconds": said if good else None, "model_bytes": 2.0 * (blocks * block + 2 * vocabulary * width)}


if __name__ == "__main__":
    main()
