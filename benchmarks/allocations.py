"""Mixed precision of smollm2 by its map, against uniform recipes, heuristics and other tools' choices at the same size.

    python -m benchmarks.allocations --out DIR [--threads 2] [--peers DIR]

One map of nine formats with GPTQ's codes (`subeight map --recipe gptq-int4`), asymmetric below 8 bits. Every rival is
made of these same codes, only which place gets which format differs, so what is compared is the allocation. Three
texts: the map's own, for the intervals; other documents of the same kinds; and wikitext-2, which is of another kind
than most of the map's. Neither map nor calibration saw the last two. `--peers` holds the choices that
`peers/bits_autoscheme.py` and `peers/bits_modelopt.py` wrote. Killed, it goes on.
"""

import argparse
import json
import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import torch
from benchmarks.common import WIKITEXT_TEST, write_result
from benchmarks.map_quality import plain, texts

import subeight
from subeight.evals.loss import Loss
from subeight.evals.passes import Computing
from subeight.evals.stats import paired_ratio
from subeight.formats import Format
from subeight.map.budget import parse_budget
from subeight.map.choices import wishes
from subeight.map.decision import Decision
from subeight.map.ledger import MIXTURE, Ledger
from subeight.map.mapfile import MapFile, read_map
from subeight.map.places import Place, places_of
from subeight.map.prediction import Formats, uniform
from subeight.map.work import ALL, MapJob, Task
from subeight.models.model import Model
from subeight.sweep import hire
from subeight.text import EvaluationSet, evaluate_set

TOKENS, WINDOW, HELD_OUT, HELD_WINDOW, SHARE = 4096, 128, 4096, 512, 0.07
PLAIN = ("int8:g64:sym", "int4:g64:asym", "int3:g64:asym", "int2:g64:asym")  # what rivals choose from
FINER = ("int6:g64:asym", "int5:g64:asym", "int3:g32:asym", "int2:g32:asym", "int2:g128:asym")
COMPARED = (2.5, 3.0, 3.5, 4.0)
BUDGETS = (2.4, 2.5, 2.75, 3.0, 3.25, 3.5, 3.75, 4.0, 4.5, 5.5)
OWN, KIN, FAR = "own text", "other documents", "wikitext-2 test"


def main() -> None:
    """Maps, decides, measures everything once on both texts, and writes one result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--peers", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    options = subeight.Options(
        out=arguments.out / "map", eval_tokens=TOKENS, eval_window=WINDOW, threads=arguments.threads
    )
    result = subeight.map("smollm2", (*PLAIN, *FINER), recipe="gptq-int4", rescue=(), share=SHARE, options=options)
    found = read_map(arguments.out / "map")
    decisions = {bits: Decision(found, parse_budget(f"{bits} bits")) for bits in BUDGETS}
    asked = {f"{bits} bits": decision.formats for bits, decision in decisions.items()}
    few = wishes([f"*={format}" for format in FINER], found, "--forbid")
    asked |= {
        f"of four formats, {bits} bits": Decision(found, parse_budget(f"{bits} bits"), forbids=few).formats
        for bits in COMPARED
    }
    asked |= {f"uniform {format}": uniform(found, format) for format in found.formats}
    asked |= {name: formats for bits in COMPARED for name, formats in heuristics(found, bits)}
    recipes = {name: by_linear(found, formats) for name, formats in asked.items()}
    recipes |= dict(peers(found, arguments.peers))
    budgets = {name: recipes[name] for name in (f"{bits} bits" for bits in BUDGETS)}
    measured = {OWN: losses(arguments, found, budgets, OWN)}
    measured |= {text: losses(arguments, found, recipes, text) for text in (KIN, FAR)}
    numbers = {
        "predicted": [row(decisions[bits], measured) for bits in BUDGETS],
        "compared": {text: [against(found, bits, recipes, measured[text]) for bits in COMPARED] for text in (KIN, FAR)},
        "all": {name: facts(formats, measured, name) for name, formats in recipes.items()},
        "map": {**result.numbers["cost"], "seconds": result.record.seconds},
    }
    write_result("allocations", numbers, threads=arguments.threads, own_tokens=TOKENS, heldout_tokens=HELD_OUT)


def by_linear(found: MapFile, formats: Formats) -> Formats:
    """The format of every linear, from that of every place."""
    return {name: formats[place.name] for place in found.places for name in place.linears}


def bits_of(formats: Formats) -> float:
    """Stored bits per weight of the blocks; formats are by linear."""
    inside = _linears()
    bits = [place.bits(Format.parse(formats[place.name])) * place.weights for place in inside]
    return sum(bits) / sum(place.weights for place in inside)


@cache
def _linears() -> list[Place]:
    return [place for place in places_of(Model("smollm2"), "linear") if place.linears[0].block is not None]


def heuristics(found: MapFile, bits: float) -> Iterator[tuple[str, Formats]]:
    """The widest uniform recipe that fits, and as much one format wider as fits too: from both ends, or down_proj."""
    order = PLAIN
    at = next(n for n, format in enumerate(order) if bits_of(by_linear(found, uniform(found, format))) <= bits)
    blocks = max(place.block for place in found.places if place.block is not None) + 1
    ends = sorted((p for p in found.places if p.inside), key=lambda p: min(p.block, blocks - 1 - p.block))
    down = sorted(ends, key=lambda place: not place.name.endswith("down_proj"))
    for name, listed in (("ends wider", ends), ("down_proj wider", down)):
        formats = uniform(found, order[at])
        for place in listed:
            wider = {**formats, place.name: order[at - 1]}
            if bits_of(by_linear(found, wider)) <= bits:
                formats = wider
        yield f"{name}, {bits} bits", formats


def peers(found: MapFile, folder: Path | None) -> Iterator[tuple[str, Formats]]:
    """What other tools chose, linear by linear; embeddings and head are kept."""
    widths = {format.split(":")[0]: format for format in PLAIN}
    kept = {name: None for place in found.places if not place.inside for name in place.linears}
    for path in sorted(folder.glob("*.json")) if folder else ():
        content = json.loads(path.read_text())
        chosen = {name: widths[width] for name, width in content["formats"].items()}
        yield f"{content['peer']}, {content['asked_bits']} bits", chosen | kept


def losses(arguments: argparse.Namespace, found: MapFile, recipes: dict[str, Formats], text: str) -> dict[str, Loss]:
    """What every recipe loses on a text; what was measured in an earlier run is read."""
    model = Model("smollm2")
    candidates = [arguments.out / "map" / "candidates" / f"map-{f}".replace(":", "-") for f in found.formats]
    samples = text_of(model, text)
    job = MapJob(
        baseline="smollm2",
        candidates=tuple(str(path) for path in candidates),
        gauges=(None,) * len(candidates),
        places=tuple(places_of(model, "linear")),
        rounds=(samples,),
        computing=Computing(torch.float32, torch.device("cpu"), quiet=True),
        threads=arguments.threads,
    )
    numbers = {name: at for at, name in enumerate(place.name for place in job.places)}
    cells = {
        name: tuple(sorted((numbers[place], found.formats.index(f)) for place, f in formats.items() if f))
        for name, formats in recipes.items()
    }
    ledger = Ledger(job, arguments.out / text.replace(" ", "-"))
    tasks = [Task(MIXTURE, 0, ALL, mixed) for mixed in dict.fromkeys(cells.values())]
    with hire(job) as crew:
        left = ledger.recall(tasks)
        crew.run(left, lambda number, answer: ledger.note(left[number], answer))
    categories = [sample.category for sample in samples.samples]
    return {name: Loss.of(ledger.mixtures[mixed], ledger.counts, categories) for name, mixed in cells.items()}


def text_of(model: Model, text: str) -> EvaluationSet:
    """The map's own text, as much of the same kinds in other documents, or the first tokens of the wikitext-2 test."""
    mine, other = texts()
    if text in (OWN, KIN):
        return mine if text == OWN else other
    return plain(evaluate_set(str(WIKITEXT_TEST), model.tokenizer(), window=HELD_WINDOW, tokens=HELD_OUT))


def facts(formats: Formats, measured: dict[str, dict[str, Loss]], name: str) -> dict:
    """A recipe's size and losses."""
    return {
        "bits_per_weight": bits_of(formats),
        **{text: _said(losses[name]) for text, losses in measured.items() if name in losses},
    }


def _said(loss: Loss) -> dict:
    return {"kl": loss.value, "kl_ci": loss.interval().ci}


def row(decision: Decision, measured: dict[str, dict[str, Loss]]) -> dict:
    """Expected and measured, side by side."""
    expected = decision.expected
    own, other = (measured[text][decision.budget.text].value for text in (OWN, KIN))
    return {
        "budget": decision.budget.text,
        "bits_per_weight": decision.made.inside[1],
        "expected": expected.to_dict(),
        "half_width": (expected.high - expected.low) / 2 / expected.loss,
        "kl": own,
        "within": expected.low <= own <= expected.high,
        "additivity": own / expected.sum,
        "other_documents": other,
        "other_within": expected.other[0] <= other <= expected.other[1],
    }


def against(found: MapFile, bits: float, recipes: dict[str, Formats], measured: dict[str, Loss]) -> dict:
    """One budget on held-out text: the uniform neighbours interpolated, and the ratio to every rival of this size."""
    mine = measured[f"{bits} bits"]
    size = bits_of(recipes[f"{bits} bits"])
    few, every = (_between(size, formats, recipes, measured) for formats in (PLAIN, found.formats))
    rivals = [name for name in recipes if name.endswith(f", {bits} bits")]
    return {
        "budget": bits,
        "bits_per_weight": size,
        "kl": mine.value,
        "uniform_interpolated": few,
        "ratio": mine.value / few,
        "ratio_to_all_uniform": mine.value / every,
        "rivals": {
            name: {
                "bits_per_weight": bits_of(recipes[name]),
                "kl": measured[name].value,
                "ratio": _ratio(mine, measured[name]),
            }
            for name in rivals
        },
    }


def _between(size: float, formats: Sequence[str], recipes: dict[str, Formats], measured: dict[str, Loss]) -> float:
    """The loss at a size between the two uniform recipes beside it, in its logarithm."""
    known = sorted((bits_of(recipes[f"uniform {f}"]), measured[f"uniform {f}"].value) for f in formats)
    return float(np.exp(np.interp(size, [x for x, _ in known], [math.log(y) for _, y in known])))


def _ratio(mine: Loss, other: Loss) -> dict:
    found = paired_ratio(mine.total, other.total, np.arange(len(mine.total)), seed=0)
    return {"value": found.value, "ci": found.ci}


if __name__ == "__main__":
    main()
