"""The contest: our recipes and other tools' methods at the same bits, on smollm2, wikitext-2, KL to the baseline.

    python -m benchmarks.contest --envs DIR --work DIR [--only 'W2*'] [--list]

Each cell (who, width, seed of the calibration text) is run once, in a process of its own, and kept under
`results/contest/`, named with a hash of all that it depends on; a second call runs only what is missing.
`python -m benchmarks.contest_table` makes one table of them. KL is measured by our own evaluate, in float32, window by
window. Seconds are compared within one machine and number of threads only, which every cell names: with `--threads 1`
two calls can share two cores where only KL is wanted.
"""

import argparse
import fnmatch
import hashlib
import json
import platform
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from benchmarks.common import HERE, RESULTS, WIKITEXT_TEST, WIKITEXT_TRAIN, run_json

import subeight
from subeight.evals.passes import Computing
from subeight.evals.scoring import Question, ask, score
from subeight.models.model import Model
from subeight.models.smollm2 import unpacked
from subeight.recipes import load_recipe, resolve
from subeight.text import evaluate_set

CELLS = RESULTS / "contest"
SOURCE = Path(subeight.__file__).parent
ROUNDING = ("formats", "methods", "engine")  # rooms whose code decides what our recipes store
SEQUENCES, LENGTH = 128, 512
EVALUATION = "wikitext-2 test, first 10,240 tokens, window 1024"
OURS = """
import json, sys, time, torch
from pathlib import Path
from subeight.engine.job import Job, Settings
from subeight.engine.loop import run
from subeight.models.model import Model
from subeight.export import exporter_for
from subeight.verbs.options import Options
from subeight.verbs.planning import planned, target_of
model_path, ids, out, recipe, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
began = time.perf_counter()
model = Model(model_path)
_, plan = planned(model, recipe, Options())
ids = torch.load(ids)
lanes = run(model, [Job(plan, Path(out), exporter_for(target_of(plan)))], ids, Settings(dtype=torch.bfloat16))
seconds = time.perf_counter() - began
print(json.dumps({"seconds": seconds, "bits": plan.bits_per_weight, "polish": lanes[0].polish_notes()}))
"""


@dataclass(frozen=True)
class Cell:
    """One run: `tool` is `ours` (then `method` names a recipe) or a peer's environment and script."""

    width: str
    tool: str
    method: str
    seed: int = 0
    sequences: int = SEQUENCES
    options: tuple[str, ...] = ()

    @property
    def label(self) -> str:
        return f"{self.width}/{self.tool}/{self.method}/{self.seed}"

    def path(self, depends: dict[str, Any]) -> Path:
        content = json.dumps({**asdict(self), **depends}, sort_keys=True)
        name = self.label.replace("/", "-")
        return CELLS / f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}.json"


ENVIRONMENTS = {
    "autoround": "autoround",
    "llmcompressor": "llmc",
    "gptqmodel": "gptqmodel",
    "hqq": "hqq",
    "modelopt": "modelopt",
    "bitsandbytes": "bnb",
}


def cells() -> list[Cell]:
    """Everything that is run, peers that are quick first."""
    found = []
    for bits in (4, 3, 2):
        width, wide = f"W{bits}", ("--bits", str(bits))
        found += [Cell(width, "hqq", "hqq", options=wide)]
        found += [Cell(width, "bitsandbytes", "nf4", options=wide)] if bits == 4 else []
        found += [Cell(width, "modelopt", "awq_lite", options=wide)]
        found += [Cell(width, "llmcompressor", method, options=wide) for method in ("gptq", "awq")]
        found += [Cell(width, "gptqmodel", method, options=wide) for method in ("gptq", "gptaq")]
        found += [Cell(width, "autoround", "autoround", sequences=64, options=(*wide, "--steps", "200"))]
        kinds = ("fast", "best") if bits > 2 else ("best",)
        found += [Cell(width, "ours", f"{kind}-int{bits}", seed) for seed in range(3) for kind in kinds]
    return found + _of_inputs()


def _of_inputs() -> list[Cell]:
    """Inputs in few bits too; a peer's scales of weights in 8 bits are one a row."""
    eight = ("--bits", "8", "--group", "0", "--inputs", "8")
    found = [Cell("W8A8", "llmcompressor", method, options=eight) for method in ("smooth", "smooth_gptq")]
    found += [Cell("W8A8", "ours", name, seed) for seed in range(3) for name in ("w8a8", "w8a8-rotated")]
    found += [Cell("W8A8-static", "ours", "w8a8-static", seed) for seed in range(3)]
    return found + [Cell(name.upper(), "ours", name, seed) for seed in range(3) for name in ("w4a8", "w4a4")]


def main() -> None:
    """Runs what is missing."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--envs", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "contest")
    parser.add_argument("--only", default="*")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--list", action="store_true")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(given.threads)
    listed = [cell for cell in cells() if fnmatch.fnmatch(cell.label, given.only)]
    if given.list:
        print("\n".join(f"{cell.label} {'kept' if kept(cell) else 'missing'}" for cell in listed))
        return
    question: Question | None = None
    for cell in listed:
        if kept(cell) is None:
            question = question or _question(given.work)
            _run(cell, given, question)


def _depends(cell: Cell) -> dict[str, Any]:
    """What a cell is made of besides itself: the text, and the code that rounds."""
    text = _hashed([WIKITEXT_TRAIN])
    if cell.tool != "ours":
        peers = HERE / "peers"
        return {"text": text, "script": _hashed([peers / "contest.py", peers / f"contest_{cell.tool}.py"])}
    code = _hashed([path for room in ROUNDING for path in sorted((SOURCE / room).rglob("*.py"))])
    plan = resolve(load_recipe(cell.method), Model("smollm2").linears).fingerprint
    return {"text": text, "code": code, "plan": plan}


def _hashed(files: Iterable[Path]) -> str:
    found = hashlib.sha256()
    for path in files:
        found.update(path.read_bytes())
    return found.hexdigest()[:16]


def kept(cell: Cell) -> dict[str, Any] | None:
    path = cell.path(_depends(cell))
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def kept_before(cell: Cell) -> dict[str, Any] | None:
    """What was kept of this cell under other code of the rooms that round; a table says so."""
    found = sorted(CELLS.glob(f"{cell.label.replace('/', '-')}-????????.json"))
    return json.loads(found[0].read_text(encoding="utf-8")) if len(found) == 1 else None


def calibration(seed: int, sequences: int) -> torch.Tensor:
    """Windows of the training text at random places [sequences, 512]; fewer are the first of more."""
    text = WIKITEXT_TRAIN.read_text(encoding="utf-8")
    ids = torch.tensor(Model("smollm2").tokenizer()(text, add_special_tokens=False)["input_ids"])
    places = torch.randint(0, len(ids) - LENGTH, (SEQUENCES,), generator=torch.Generator().manual_seed(seed))
    return torch.stack([ids[at : at + LENGTH] for at in places[:sequences].tolist()])


def _question(work: Path) -> Question:
    baseline = Model(unpacked())
    evaluation = evaluate_set(WIKITEXT_TEST, baseline.tokenizer(), window=1024, tokens=10240)
    return ask(baseline, evaluation, Computing(torch.float32, torch.device("cpu"), quiet=True), work / "references")


def _run(cell: Cell, given: argparse.Namespace, question: Question) -> None:
    out = given.work / cell.label.replace("/", "-")
    ids = out.with_suffix(".ids.pt")
    torch.save(calibration(cell.seed, cell.sequences), ids)
    subprocess.run(["rm", "-rf", str(out)], check=True)
    print(cell.label, file=sys.stderr, flush=True)
    if cell.tool == "ours":
        command = [sys.executable, "-c", OURS, str(unpacked()), str(ids), str(out), cell.method, str(given.threads)]
        about = run_json(command)
    else:
        python = given.envs / ENVIRONMENTS[cell.tool] / "bin" / "python"
        script = HERE / "peers" / f"contest_{cell.tool}.py"
        tail = ["--method", cell.method, "--threads", str(given.threads), *cell.options]
        log = given.work / f"{out.name}.log"
        with log.open("w") as file:
            done = subprocess.run([python, script, unpacked(), ids, out, *tail], stdout=file, stderr=file, check=False)
        if done.returncode:
            print(f"{cell.label} ended with status {done.returncode}: see {log}", file=sys.stderr)
            return
        about = json.loads((out / "peer.json").read_text(encoding="utf-8"))
        about["bits"] = _bits(cell, about)
    scored = score(question, Model(out))
    windows = torch.as_tensor(scored.places.sample)
    kl = [float(scored.outcomes.kl[windows == window].mean()) for window in windows.unique()]
    content = {
        "cell": asdict(cell),
        **about,
        **{name: scored.numbers[name] for name in ("kl", "kl_ci", "ppl", "top1")},
        "kl_by_window": kl,
        "machine": _machine(),
        "threads": given.threads,
    }
    CELLS.mkdir(parents=True, exist_ok=True)
    cell.path(_depends(cell)).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def _bits(cell: Cell, about: dict[str, Any]) -> float:
    """Stored bits per weight of a peer: codes, scales of each group, and zero points where it keeps them."""
    if "--group" in cell.options:
        plan = resolve(load_recipe("w8a8"), Model("smollm2").linears)
        return plan.bits_per_weight  # one scale a row, as ours
    bits = int(cell.options[cell.options.index("--bits") + 1])
    zeros = about.get("zero_bits", bits if about.get("zero_points") else 0)
    return bits + (about.get("scale_bits", 16) + zeros) / 64


def _machine() -> str:
    about = Path("/proc/cpuinfo")
    models = [line for line in about.read_text().splitlines() if "model name" in line] if about.is_file() else []
    return models[0].split(":")[1].strip() if models else platform.processor()


if __name__ == "__main__":
    main()
