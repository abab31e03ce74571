"""Calibration of a mixture of experts: as it comes, topped up, by chance, and forced; what the worst expert gets of it.

    python -m benchmarks.moe MODEL [--work DIR] [--threads 1]

MODEL is what `benchmarks/moe_model.py` trains. Calibration is the English prose of the packaged text alone: one kind,
as usual. The pool is all of the packaged calibration text. Errors of experts, divergence and routing are
measured on the packaged evaluation text. Cells that lie in `--work` are not made again.
"""

import argparse
import json
import random
import shutil
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from benchmarks.common import write_result

from subeight.engine.job import Job
from subeight.engine.loop import run as run_loop
from subeight.evals.experts import expert_numbers
from subeight.evals.scoring import ask, score
from subeight.export import exporter_for
from subeight.models.model import Model
from subeight.recipes import Plan, Recipe, parse_recipe
from subeight.recipes.fallback import with_fallback
from subeight.text import CalibrationSpec, further
from subeight.verbs.feeding import POOL, Fed, coverage_of, feed
from subeight.verbs.options import Options
from subeight.verbs.planning import planned_recipe, target_of
from subeight.verbs.quantize import loop_settings
from subeight.verbs.session import Session

PER_EXPERT = 256
BITS = (4, 3)
TEXT = {"sequences": 16, "length": 256, "seed": 0}
EVAL_TOKENS = 4096
TOPPED_UP, AT_RANDOM = "topped up", "as many at random"
WAYS: dict[str, dict[str, Any] | None] = {
    "as it comes": {},
    TOPPED_UP: {"per_expert": PER_EXPERT, "pool": "builtin"},
    AT_RANDOM: {},
    "rtn": None,
    "forced": {"forced": True},
}


def main() -> None:
    """Writes `results/moe.json`."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--work", type=Path, default=Path("runs/moe"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    options = Options(threads=arguments.threads, dtype="float32", eval_tokens=EVAL_TOKENS, quiet=True)
    session = Session("quantize", options)
    model = Model(arguments.model)
    arguments.work.mkdir(parents=True, exist_ok=True)
    prose = _prose(arguments.work / "prose.jsonl")
    training = json.loads((Path(arguments.model) / "training.json").read_text(encoding="utf-8"))
    asked = {"training": training, "per_expert": PER_EXPERT, "calibration": TEXT, "eval_tokens": EVAL_TOKENS}
    cells: list[dict[str, Any]] = []
    for way in WAYS:
        for bits in BITS:
            cells.append(cell(session, model, bits, way, prose, arguments.work))
            told = {**asked, "cells": [summary(found, cells) for found in cells]}
            write_result("moe", told, threads=arguments.threads, model=model.coordinate)


def _prose(path: Path) -> Path:
    """The English prose of the packaged calibration text, as a file of its own."""
    packaged = resources.files("subeight.text") / "builtin" / "calibration.jsonl"
    rows = packaged.read_text(encoding="utf-8").splitlines()
    path.write_text("\n".join(row for row in rows if json.loads(row)["category"] == "prose") + "\n", encoding="utf-8")
    return path


def recipe_of(bits: int, way: str, prose: Path) -> Recipe:
    """GPTQ in groups of 32, or plain rounding."""
    asked = WAYS[way]
    text = f"name: moe\nweights: int{bits}:g32\nmethods: [{'rtn' if asked is None else 'gptq'}]\n"
    return parse_recipe(f"{text}calibration: {json.dumps({'source': str(prose), **TEXT, **(asked or {})})}\n")


def cell(session: Session, model: Model, bits: int, way: str, prose: Path, work: Path) -> dict[str, Any]:
    """One way at one width: quantized, and measured on the evaluation text."""
    name = f"W{bits}-{way.replace(' ', '-')}"
    kept = work / f"{name}.json"
    if kept.is_file():
        return json.loads(kept.read_text(encoding="utf-8"))
    recipe, plan = planned_recipe(model, recipe_of(bits, way, prose), session.options)
    fed = feed(session, model, recipe, plan)
    if way == AT_RANDOM:
        added = json.loads((work / f"W{bits}-{TOPPED_UP.replace(' ', '-')}.json").read_text())["calibration"]["added"]
        fed = _with_random(session, model, plan, fed, added)
    directory = work / name
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    ids = None if fed.calibration is None else fed.calibration.ids
    job = Job(fed.plan, directory, exporter_for(target_of(fed.plan)))
    run_loop(model, [job], ids, loop_settings(session, fed.calibration))
    candidate = Model(directory)
    question = ask(model, session.evaluation(model), session.computing, work / "cache")
    scored = score(question, candidate)
    found = {
        "bits": bits,
        "way": way,
        "calibration": fed.experts,
        "kl": scored.numbers["kl"],
        "kl_ci": scored.numbers["kl_ci"],
        "categories": {name: row["kl"] for name, row in scored.numbers["categories"].items()},
        "experts": expert_numbers(model, candidate, question.sequences, session.computing),
    }
    kept.write_text(json.dumps(found), encoding="utf-8")
    print(
        name,
        {key: found["experts"][key] for key in ("worst", "worst_over_median", "changed", "changed_ci")},
        flush=True,
    )
    return found


def _with_random(session: Session, model: Model, plan: Plan, fed: Fed, added: int) -> Fed:
    """Fed with `added` sequences of the pool at random beside its own: what topping up is worth is more than these."""
    assert fed.calibration is not None
    pool = further(
        CalibrationSpec("builtin", 1, TEXT["length"], TEXT["seed"]), model.tokenizer(), fed.calibration.ids, POOL
    )
    calibration = fed.calibration.and_more(random.Random(0).sample(pool, added))
    numbers = coverage_of(session, model, calibration)
    assert numbers is not None
    dry = {row["expert"] for row in numbers["rows"] if not row["tokens"]}
    return Fed(with_fallback(plan, dry, None, "any"), calibration, numbers | {"added": added})


def summary(found: dict[str, Any], cells: list[dict[str, Any]]) -> dict[str, Any]:
    """What of a cell is worth keeping: coverage, the spread of errors, the shift of routing."""
    inside, calibration = found["experts"], found["calibration"]
    keys = ("worst", "worst_over_median", "judged", "changed", "changed_ci", "replaced", "replaced_ci", "kl", "kl_ci")
    routing = [{key: row[key] for key in ("block", "changed", "changed_ci", "kl")} for row in inside["routing"]]
    numbers = {"bits": found["bits"], "way": found["way"], **_coverage(calibration)}
    numbers |= {"kl": found["kl"], "kl_ci": found["kl_ci"], "categories": found["categories"]}
    numbers["experts"] = {key: inside[key] for key in keys} | {"routing": routing}
    plain = next((other for other in cells if (other["bits"], other["way"]) == (found["bits"], "rtn")), None)
    if plain is None:
        return numbers | {"over_plain_rounding": None}
    errors = {row["expert"]: row["output_error"] for row in plain["experts"]["rows"]}
    judged = [row for row in inside["rows"] if row["tokens"] >= inside["least"] and errors[row["expert"]]]
    ratios = sorted(row["output_error"] / errors[row["expert"]] for row in judged)
    middle = float(np.median(ratios))
    numbers["over_plain_rounding"] = {
        "median": middle,
        "worst": ratios[-1],
        "worst_over_median": ratios[-1] / middle,
        "worse_than_plain": sum(ratio > 1 for ratio in ratios),
    }
    return numbers


def _coverage(calibration: dict[str, Any] | None) -> dict[str, Any]:
    if calibration is None:
        return {"coverage": None}
    rows = calibration["rows"]
    tokens = [row["tokens"] for row in rows]
    before = [row.get("tokens_before", row["tokens"]) for row in rows]

    def told(counts: list[int]) -> dict[str, Any]:
        under = sum(count < PER_EXPERT for count in counts)
        return {"least": min(counts), "median": float(np.median(counts)), "under": under}

    more = {"added": calibration["added"], "short": calibration["short"], "tokens": calibration["tokens"]}
    return {"coverage": {"before": told(before), "after": told(tokens), "experts": len(rows), **more}}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main()
