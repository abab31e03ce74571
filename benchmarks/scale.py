"""What larger models cost: seconds, memory and disk of four verbs by size, and whether the cost of a block is flat.

    python -m benchmarks.scale --work DIR [--sizes 256x12 512x16 768x48] [--held-out 640x20]

Every verb runs in a process of its own with `--max-memory` 64 MB, and with a limit of the kernel (RLIMIT_DATA) at what
the imports hold plus the model's bytes (or 150 MB for models that are smaller): one that held the model whole would
end. What is finished in DIR is not run again. From the sizes a line is fitted for each cost; its error on the held-out
size is stated. 8, 70 and 400 billion weights are extrapolated by it, and are no measurements.
"""

import argparse
import json
import resource
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from benchmarks.common import write_result
from benchmarks.random_llama import make_llama

VOCABULARY = 8192
ROOM = 64_000_000  # --max-memory
MARGIN = 150_000_000  # what libraries that are loaded late take, where the model is smaller than that
TOKENS = {"evaluate": 2048, "map": 256, "diagnose": 1024}
EXTRAPOLATED = {
    "8B": (4096, 32, 14336, 8, 32, 128256),
    "70B": (8192, 80, 28672, 8, 64, 128256),
    "400B": (16384, 126, 53248, 8, 128, 128256),
}
"""Width, blocks, feed-forward width, heads of keys and values, heads, vocabulary: those of Llama 3.1."""
CHILD = "import sys; from subeight.cli.main import main; sys.exit(main())"
IMPORTS = """
import json, re, subeight.cli.main
status = open("/proc/self/status").read()
print(json.dumps({key: 1024 * int(re.search(key + r":\\s*(\\d+)", status)[1]) for key in ("VmRSS", "VmData")}))
"""


def main() -> None:
    """Runs what is not there yet and writes `results/scale.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sizes", nargs="+", default=["256x12", "512x16", "768x48"])
    parser.add_argument("--held-out", default="640x20")
    parser.add_argument("--verbs", nargs="+", default=["quantize", "evaluate", "map", "diagnose"])
    asked = parser.parse_args()
    rows = [measured(asked.work, size, asked.verbs) for size in [*asked.sizes, asked.held_out]]
    write_result("scale", summary(rows), threads=1, vocabulary=VOCABULARY, tokens=TOKENS, recipe="fast-int4")


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows, the lines fitted to all but the last, their error on that one, and what they say of larger models."""
    verbs = [verb for verb in rows[0]["verbs"] if all(verb in row["verbs"] for row in rows)]
    fits = {verb: fitted(rows[:-1], rows[-1], verb) for verb in verbs}
    found = {name: {verb: extrapolated(fits[verb], sizes) for verb in verbs} for name, sizes in EXTRAPOLATED.items()}
    return {"rows": rows, "fits": fits, "extrapolated": found}


def measured(work: Path, size: str, verbs: list[str]) -> dict[str, Any]:
    """One size: the model, and each verb on it."""
    width, blocks = (int(part) for part in size.split("x"))
    folder = work / size
    model = folder / "model"
    total = make_llama(model, width, blocks, vocabulary=VOCABULARY)
    imports = json.loads(_run([sys.executable, "-c", IMPORTS]).stdout.splitlines()[-1])
    row: dict[str, Any] = {
        "size": size, "width": width, "blocks": blocks, "weights": total // 2,
        "model_bytes": total, "imports_bytes": imports["VmRSS"], "limit_bytes": imports["VmData"] + max(total, MARGIN),
        "verbs": {},
    }  # fmt: skip
    for verb in verbs:
        row["verbs"][verb] = step(folder, verb, model, row)
    return row


def step(folder: Path, verb: str, model: Path, row: dict[str, Any]) -> dict[str, Any]:
    """One verb in a process of its own; what an earlier call found is read back."""
    kept = folder / f"{verb}.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    out, scratch, made = folder / verb, folder / "scratch", folder / "quantize"
    text = ["--eval-tokens", str(TOKENS.get(verb, 0)), "--eval-window", "128"]
    words = {
        "quantize": [str(model), "--recipe", "fast-int4"],
        "evaluate": [str(made), "--against", str(model), *text],
        "map": [str(model), "--formats", "int4,int2", "--share", "0.01", *text],
        "diagnose": [str(made), "--baseline", str(model), *text],
    }[verb]
    shared = ["--threads", "1", "--scratch", str(scratch), "--max-memory", str(ROOM)]
    predicted = json.loads(_run([sys.executable, "-c", CHILD, verb, *words, *shared, "--dry-run", "--json"]).stdout)
    watch = Watch(folder, out)
    began = time.monotonic()
    with watch:
        _run([sys.executable, "-c", CHILD, verb, *words, *shared, "--out", str(out)], row["limit_bytes"])
    record = json.loads((out / "record.json").read_text(encoding="utf-8"))
    found = {
        "seconds": record["seconds"],
        "wall_seconds": time.monotonic() - began,
        "seconds_per_block": record["seconds"] / row["blocks"],
        "peak_bytes": record["peak_rss_bytes"] - row["imports_bytes"],
        "of_model": (record["peak_rss_bytes"] - row["imports_bytes"]) / row["model_bytes"],
        "scratch_bytes": watch.scratch,
        "written_bytes": _size(out),
        "predicted": predicted["numbers"]["predicted"],
        "halves": watch.halves(row["blocks"]) if verb == "quantize" else None,
    }
    kept.write_text(json.dumps(found), encoding="utf-8")
    return found


class Watch:
    """Looks at a run from outside: how large its scratch folder became, and when each shard was there."""

    def __init__(self, folder: Path, out: Path) -> None:
        self._folder, self._out, self._stop = folder / "scratch", out, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self.scratch = 0

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(0.5):
            self.scratch = max(self.scratch, _size(self._folder))

    def halves(self, blocks: int) -> dict[str, float]:
        """Seconds of a block in the second half over one in the first, from when the shards were written."""
        times = [path.stat().st_mtime for path in sorted(self._out.glob("model-*.safetensors"))][:blocks]
        first, second = times[len(times) // 2] - times[0], times[-1] - times[len(times) // 2]
        parts = len(times) // 2, len(times) - 1 - len(times) // 2
        each = first / parts[0], second / max(parts[1], 1)
        return {"first": each[0], "second": each[1], "ratio": each[1] / each[0]}


def _run(command: list[str], limit: int | None = None) -> subprocess.CompletedProcess:
    def limited() -> None:
        if limit is not None:
            resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))

    done = subprocess.run(command, capture_output=True, text=True, preexec_fn=limited, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command[3:])} ended with status {done.returncode}: {done.stderr[-2000:]}")
    return done


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
    from scipy.optimize import nnls

    scale = given.max(0)
    return (nnls(given / scale / values[:, None], np.ones(len(values)))[0] / scale).tolist()  # relative errors


def _terms(cost: str, width: int, blocks: int, vocabulary: int, block: float | None = None) -> list[float]:
    each = 10.75 * width**2 if block is None else block
    return [1.0, blocks * each] if cost == "seconds" else [1.0, each + vocabulary * width / 4]


def extrapolated(fit: dict[str, Any], sizes: tuple[int, ...]) -> dict[str, float]:
    """What the lines say of a model of these sizes, on this machine with this little text."""
    width, blocks, ffn, narrow, heads, vocabulary = sizes
    block = width * (2 * width + 2 * width * narrow // heads + 3 * ffn)
    said = {cost: float(np.dot(_terms(cost, width, blocks, vocabulary, block), fit[cost]["factors"])) for cost in fit}
    return {**said, "model_bytes": 2.0 * (blocks * block + 2 * vocabulary * width)}


if __name__ == "__main__":
    main()
