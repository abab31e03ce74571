"""GPTQ int4 g64 of smollm2, 128 sequences of 512 tokens: our seconds and KL beside llm-compressor's and GPTQModel's.

    python benchmarks/gptq_peers.py --envs DIR [--sequences 128] [--repeat 2]

Runs alternate (ours, peer, peer, ours ...); the KL of each is measured by our own evaluate on 10,240 tokens of the
wikitext-2 test text, paired token by token.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from common import HERE, WIKITEXT_TEST, WIKITEXT_TRAIN, run_json, spread, write_result
from subeight.evals.passes import Computing
from subeight.evals.scoring import Scored, ask, score
from subeight.evals.stats import paired_ratio
from subeight.models.model import Model
from subeight.models.smollm2 import unpacked
from subeight.text import evaluate_set

PEERS = {"llmcompressor": ["llmcompressor==0.14.0"], "gptqmodel": ["gptqmodel==7.6.0"]}
OURS = """
import json, sys, time, torch
began = time.perf_counter()
from pathlib import Path
from subeight.engine.job import Job, Settings
from subeight.engine.loop import run
from subeight.export import exporter_for
from subeight.models.model import Model
from subeight.models.precision import compute_dtype
from subeight.recipes import load_recipe, resolve
model_path, ids, out, threads = sys.argv[1:]
torch.set_num_threads(int(threads))
began = time.perf_counter()
model = Model(model_path)
plan = resolve(load_recipe("gptq-int4"), model.linears)
settings = Settings(dtype=compute_dtype("auto", torch.device("cpu")), quiet=True)
run(model, [Job(plan, Path(out), exporter_for("compressed-tensors"))], torch.load(ids), settings)
print(json.dumps({"seconds": time.perf_counter() - began}))
"""


def main() -> None:
    """Runs all, measures all, writes one result."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--envs", type=Path, required=True)
    parser.add_argument("--sequences", type=int, default=128)
    parser.add_argument("--repeat", type=int, default=2)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    for peer, packages in PEERS.items():
        subprocess.run([HERE / "peers" / "make_env.sh", arguments.envs / peer, *packages], check=True)
    model = unpacked()
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        ids = _calibration(arguments.sequences)
        torch.save(ids, work / "ids.pt")
        seconds: dict[str, list[float]] = {"subeight": [], **{peer: [] for peer in PEERS}}
        for turn in range(arguments.repeat):
            for name in seconds if turn % 2 == 0 else reversed(seconds):
                out = work / f"{name}-{turn}"
                began = time.perf_counter()
                seconds[name].append(_run(name, arguments, model, work / "ids.pt", out)["seconds"])
                print(name, seconds[name][-1], f"(process {time.perf_counter() - began:.0f} s)", file=sys.stderr)
        scores = _scores(model, {name: work / f"{name}-0" for name in seconds})
    numbers = _numbers(seconds, scores)
    write_result(
        "gptq_peers", numbers, model="smollm2", calibration=f"wikitext-2 train, {arguments.sequences} x 512",
        evaluation="wikitext-2 test, 10,240 tokens, window 1024", threads=arguments.threads,
    )  # fmt: skip


def _run(name: str, arguments: argparse.Namespace, model: Path, ids: Path, out: Path) -> dict:
    tail = [str(model), str(ids), str(out), str(arguments.threads)]
    if name == "subeight":
        return run_json([sys.executable, "-c", OURS, *tail])
    script = HERE / "peers" / f"{name}_gptq.py"
    return run_json([str(arguments.envs / name / "bin" / "python"), str(script), *tail], stderr=subprocess.DEVNULL)


def _calibration(sequences: int) -> torch.Tensor:
    text = WIKITEXT_TRAIN.read_text(encoding="utf-8")
    ids = Model("smollm2").tokenizer()(text, add_special_tokens=False)["input_ids"][: sequences * 512]
    return torch.tensor(ids).view(sequences, 512)


def _scores(model: Path, candidates: dict[str, Path]) -> dict[str, Scored]:
    baseline = Model(model)
    evaluation = evaluate_set(WIKITEXT_TEST, baseline.tokenizer(), window=1024, tokens=10240)
    computing = Computing(torch.float32, torch.device("cpu"), quiet=True)
    question = ask(baseline, evaluation, computing, Path(tempfile.gettempdir()) / "references")
    return {name: score(question, Model(path)) for name, path in candidates.items()}


def _numbers(seconds: dict[str, list[float]], scores: dict[str, Scored]) -> dict:
    ours = scores["subeight"]
    numbers: dict = {}
    for name, values in seconds.items():
        kl = scores[name].numbers
        numbers[name] = {"seconds": spread(values), "kl": kl["kl"], "kl_ci": kl["kl_ci"], "ppl": kl["ppl"]}
        if name == "subeight":
            continue
        ratio = paired_ratio(ours.outcomes.kl.numpy(), scores[name].outcomes.kl.numpy(), ours.places.sample)
        numbers[name]["seconds_ratio"] = spread(seconds["subeight"])["median"] / spread(values)["median"]
        numbers[name]["kl_ratio"] = ratio.value
        numbers[name]["kl_ratio_ci"] = ratio.ci
    return numbers


if __name__ == "__main__":
    main()
