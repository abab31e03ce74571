"""The map of smollm2 against the naive way: its cost, its ranks, and the ceiling that other text gives.

    python -m benchmarks.map_quality --out DIR [--threads 2] [--stages map,naive,ceiling]

`map` runs `subeight map` on 4,096 tokens; `naive` measures every cell on all of them (through cached states, which
gives the naive way's numbers in half its time), `ceiling` does the same on other text of the same kinds, of which a
first part is enough (--ceiling-rounds). Killed, each goes on. Ranks are Spearman's, within each format, over the groups
of the blocks.
"""

import argparse
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from benchmarks.common import write_result
from scipy.stats import spearmanr

import subeight
from subeight.evals.passes import Computing
from subeight.map.course import rounds_of
from subeight.map.ledger import DAMAGE, Ledger
from subeight.map.places import places_of
from subeight.map.work import MapJob, Task
from subeight.models.model import Model
from subeight.sweep import hire
from subeight.text import EvaluationSet, evaluate_set

TOKENS, WINDOW = 4096, 128
FORMATS = ("int8", "int4", "int3", "int2")


def main() -> None:
    """Writes `results/map_quality.json` when all three stages are there."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--stages", default="map,naive,ceiling")
    parser.add_argument("--ceiling-rounds", type=int, default=3, help="of seven; three are a quarter of the text")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    stages = arguments.stages.split(",")
    found = mapped(arguments.out / "map", arguments.threads)
    mine, other = texts()
    full = {}
    for name, text, rounds in (("naive", mine, None), ("ceiling", other, arguments.ceiling_rounds)):
        if name in stages:
            full[name] = naive(arguments.out / "map", text, arguments.out / name, arguments.threads, rounds)
    if len(full) == 2:
        tokens = {"tokens": TOKENS, "window": WINDOW, "ceiling_tokens": full["ceiling"][1]}
        ranks = {name: found for name, (found, _) in full.items()}
        write_result("map_quality", compared(found, ranks), threads=arguments.threads, **tokens)


def mapped(out: Path, threads: int) -> dict:
    """The numbers of `map`, with the seconds that it took."""
    began = time.perf_counter()
    options = subeight.Options(out=out, eval_tokens=TOKENS, eval_window=WINDOW, threads=threads)
    result = subeight.map("smollm2", FORMATS, rescue=(), options=options)
    return {**result.numbers, "seconds": result.record.seconds, "wall": time.perf_counter() - began}


def texts() -> tuple[EvaluationSet, EvaluationSet]:
    """The text of the map, and about as much of the same kinds in other documents."""
    tokenizer = Model("smollm2").tokenizer()
    mine = evaluate_set("builtin", tokenizer, window=WINDOW, tokens=TOKENS)
    more = evaluate_set("builtin", tokenizer, window=WINDOW, tokens=2 * TOKENS)
    seen = {sample.document for sample in mine.samples}
    rest = [sample for sample in more.samples if sample.document not in seen]
    return plain(mine), plain(replace(more, samples=tuple(rest)))


def plain(text: EvaluationSet) -> EvaluationSet:
    """The samples whose tokens are scored, without choices."""
    samples = tuple(replace(s, choices=None, answer=None) for s in text.samples if s.count and not s.needs_answer)
    return replace(text, samples=samples)


def naive(
    map_out: Path, text: EvaluationSet, folder: Path, threads: int, rounds: int | None = None
) -> tuple[dict[str, np.ndarray], int]:
    """Every cell on all of the text (or its first rounds): nats per token by format [places], and the tokens."""
    model = Model("smollm2")
    count = len(model.skeleton.blocks)
    candidates = sorted((map_out / "candidates").iterdir(), key=lambda path: -int(path.name.split("-")[1][3:]))
    job = MapJob(
        baseline="smollm2",
        candidates=tuple(str(path) for path in candidates),
        gauges=(None,) * len(candidates),
        places=tuple(place for place in places_of(model) if 0 <= place.at < count),
        rounds=rounds_of(text),
        computing=Computing(torch.float32, torch.device("cpu"), quiet=True),
        threads=threads,
    )
    ledger = Ledger(job, folder)
    tasks = [
        Task(DAMAGE, at, round, tuple((p, f) for p, place in enumerate(job.places) if place.at == at for f in range(4)))
        for round in range(len(job.rounds) if rounds is None else rounds)
        for at in range(count)
    ]
    with hire(job) as crew:
        left = ledger.recall(tasks)
        crew.run(left, lambda number, answer: ledger.note(left[number], answer))
    means = np.nansum(ledger.totals[DAMAGE], -1) / ledger.counts.sum()
    return {path.name: means[:, number] for number, path in enumerate(candidates)}, int(ledger.counts.sum())


def compared(found: dict, full: dict[str, dict[str, np.ndarray]]) -> dict:
    """Ranks within each format, cost and seconds."""
    inside = [place["name"] for place in found["places"] if place["block"] is not None]
    ranks = {}
    for format in found["formats"]:
        name = f"map-{format}".replace(":", "-")
        cells = {c["place"]: c for c in found["cells"] if c["format"] == format and c["view"] == "damage"}
        mine = [cells[place]["kl"] for place in inside]
        exact = full["naive"][name]
        held = [cells[place]["kl_ci"] for place in inside]
        ranks[format] = {
            "map": float(spearmanr(mine, exact).statistic),
            "ceiling": float(spearmanr(full["ceiling"][name], exact).statistic),
            "prior": float(spearmanr([cells[place]["prior"] for place in inside], exact).statistic),
            "output_error": float(spearmanr([cells[place]["output_error"] for place in inside], exact).statistic),
            "within_interval": float(np.mean([low <= x <= high for (low, high), x in zip(held, exact, strict=True)])),
        }
    return {
        "spearman": ranks,
        "share_of_naive": found["cost"]["share"],  # of the same cells, embeddings included
        "token_blocks": found["cost"]["token_blocks"],
        "seconds": found["seconds"],
        "controls": found["controls"],
    }


if __name__ == "__main__":
    main()
