"""Runs the fault benchmark: plants cases, diagnoses each in this process, and writes one line of JSON for each.

    python benchmarks/faults/run.py --out DIR --set small|smollm2|healthy [--shard 0/2] [--kinds a,b] [--bases a,b]
        [--first-seed 1000]

Killed at any point, the same command goes on: cases that have their line are skipped. `--plant` only plants and
measures. Two shards use two cores, one thread each. `score.py` makes the scoreboard of the lines.
"""

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.faults.kinds.draft import Answer, Unplantable  # noqa: E402
from benchmarks.faults.plant import SCRATCH, Case, plant  # noqa: E402

import subeight  # noqa: E402
from subeight.verbs.diagnose import Complaint, diagnose  # noqa: E402

# How many cases of each kind, by set and base. 160 + 40 with a fault, 100 without one or with damage spread evenly.
SETS: dict[str, dict[str, dict[str, int]]] = {
    "small": {
        "dense": {
            "scales": 6, "zeros": 10, "pair": 6, "block": 10, "head": 5, "permuted": 5, "stale": 5, "fine-tune": 5,
            "bos": 5, "template": 5, "rope": 5, "norm": 5, "category": 6, "range": 9, "kernel": 9, "package": 5,
        },
        "mixtral": {
            "scales": 6, "pair": 5, "head": 5, "permuted": 5, "stale": 5, "fine-tune": 5, "bos": 4, "template": 4,
            "rope": 4, "norm": 4, "category": 3, "expert": 9,
        },
    },
    "smollm2": {
        "smollm2": {
            "scales": 6, "zeros": 5, "pair": 4, "block": 4, "permuted": 3, "stale": 2, "fine-tune": 2, "template": 2,
            "rope": 2, "norm": 3, "category": 2, "range": 3, "kernel": 2,
        },
    },
    "healthy": {
        "dense": {"healthy": 12, "awq": 10, "rotated": 10, "spread": 12},
        "mixtral": {"healthy": 10, "awq": 8, "rotated": 8, "spread": 10},
        "smollm2": {"healthy": 6, "awq": 5, "rotated": 4, "spread": 5},
    },
}  # fmt: skip


def main() -> None:
    """The cases of one shard, in their order."""
    arguments = parsed()
    torch.set_num_threads(1)
    arguments.out.mkdir(parents=True, exist_ok=True)
    shard, shards = map(int, arguments.shard.split("/"))
    path = arguments.out / f"{arguments.set}-{shard}-of-{shards}.jsonl"
    done = {line["case"] for line in lines(arguments.out)}
    mine = [case for at, case in enumerate(cases(arguments.set, arguments.first_seed)) if at % shards == shard]
    if arguments.kinds:
        mine = [case for case in mine if case[0] in arguments.kinds.split(",")]
    if arguments.bases:
        mine = [case for case in mine if case[1] in arguments.bases.split(",")]
    for kind, base, seed in mine[: arguments.limit]:
        name = f"{kind}-{base}-{seed}"
        if name not in done:
            line = measured(kind, base, seed, arguments)
            with path.open("a", encoding="utf-8") as file:
                file.write(json.dumps({"case": name, **line}) + "\n")
            print(name, line["right"], line["why"], f"{line['seconds']:.0f} s", flush=True)


def parsed() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--set", choices=list(SETS), required=True)
    parser.add_argument("--shard", default="0/1")
    parser.add_argument("--kinds", default="")
    parser.add_argument("--bases", default="")
    parser.add_argument("--first-seed", type=int, default=0, help="of each kind; other seeds are other cases")
    parser.add_argument("--limit", type=int, default=None)
    parser.add_argument("--scratch", type=Path, default=SCRATCH)
    parser.add_argument("--keep", action="store_true", help="leave the planted checkpoints")
    parser.add_argument("--plant", action="store_true", help="plant and measure only")
    return parser.parse_args()


def cases(name: str, first_seed: int = 0) -> list[tuple[str, str, int]]:
    """Every case of a set: kind, base and seed; shuffled once, so that shards and limits are fair samples."""
    listed = [
        (kind, base, seed)
        for base, counts in SETS[name].items()
        for kind, count in counts.items()
        for seed in range(first_seed, first_seed + count)
    ]
    random.Random(0).shuffle(listed)
    return listed


def lines(directory: Path) -> Iterator[dict[str, Any]]:
    """The lines that any shard has written."""
    for path in sorted(directory.glob("*.jsonl")):
        for line in path.read_text(encoding="utf-8").splitlines():
            yield json.loads(line)


def measured(kind: str, base: str, seed: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One case, planted and diagnosed."""
    directory = arguments.out / "cases" / f"{kind}-{base}-{seed}"
    started = time.perf_counter()
    try:
        case = plant(kind, base, seed, directory, arguments.scratch)
    except Unplantable as reason:
        return {"kind": kind, "base": base, "right": None, "why": f"not planted: {reason}", "seconds": 0.0}
    planted = time.perf_counter() - started
    line = {"kind": kind, "base": base, "answer": case.to_dict()["answer"], "notes": case.notes, "planting": planted}
    if arguments.plant:
        line |= {"right": None, "why": "planted", "seconds": planted}
    else:
        line |= diagnosed(case, directory)
    if not arguments.keep:
        shutil.rmtree(directory)
    return line


def diagnosed(case: Case, directory: Path) -> dict[str, Any]:
    """What `diagnose` says of a case, and whether it is right."""
    started = time.perf_counter()
    try:
        with environment(case.environment):
            numbers = elsewhere(case, directory) if case.interpreter else here(case, directory / "run")
    except Exception as error:  # a case that fails is a wrong answer, and the others go on
        why = f"{type(error).__name__}: {error}"
        return {"right": False, "why": why, "false": [], "seconds": time.perf_counter() - started}
    causes = numbers["verdict"]["causes"]
    right, why = judged(case.answer, causes)
    return {
        "right": right,
        "why": why,
        "causes": [{key: cause.get(key) for key in ("suspect", "kind", "places", "recovered")} for cause in causes],
        "evaluations": sum(finding["evaluations"] for finding in numbers["findings"]),
        "block_forwards": sum(finding["block_forwards"] for finding in numbers["findings"]),
        "suspects": {
            finding["suspect"]: [
                finding["verdict"],
                finding["evaluations"],
                finding["block_forwards"],
                finding["seconds"],
            ]
            for finding in numbers["findings"]
        },
        "loss": numbers["loss"],
        "tokens": numbers["tokens"],
        "recovered": numbers["verdict"]["recovered"],
        "bytes_added": numbers["verdict"]["bytes_added"],
        "bytes": numbers["verdict"]["bytes"],
        "seconds": time.perf_counter() - started,
    }


def here(case: Case, out: Path) -> dict[str, Any]:
    """The numbers of a diagnosis in this process."""
    complaint = Complaint(
        prompts=str(case.prompts),
        control=str(case.control) if case.control else None,
        calibration=str(case.calibration) if case.calibration else None,
        last_good=str(case.last_good) if case.last_good else None,
        replay=case.replay,
        python=case.python,
    )
    options = subeight.Options(out=out, quiet=True, threads=1)
    return diagnose(str(case.candidate), str(case.baseline), complaint=complaint, options=options).numbers


def elsewhere(case: Case, directory: Path) -> dict[str, Any]:
    """The numbers of a diagnosis by another interpreter, through the command line."""
    assert case.interpreter is not None
    command = [case.interpreter, "-m", "subeight.cli.main", "diagnose", str(case.candidate), "--json", "--quiet"]
    command += ["--baseline", str(case.baseline), "--prompts", str(case.prompts), "--threads", "1"]
    command += ["--out", str(directory / "run"), *(["--replay"] if case.replay else [])]
    command += ["--last-good", str(case.last_good)] if case.last_good else []
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not done.stdout.strip():
        raise RuntimeError(done.stderr.strip()[-500:])
    return json.loads(done.stdout)["numbers"]


def judged(answer: Answer, causes: list[dict[str, Any]]) -> tuple[bool, str]:
    """Right: suspect and kind are the answer's, and every named place is one of its places; of a pair, both.

    Where nothing is wrong, nothing may be named.
    """
    if answer.suspect is None:
        return (True, "nothing named") if not causes else (False, f"false culprit: {_words(causes)}")
    if not causes:
        return False, "nothing named"
    for cause in causes:
        if (cause["suspect"], cause["kind"]) != (answer.suspect, answer.kind):
            return False, f"named {_words([cause])}"
        if not set(cause["places"]) <= set(answer.places):
            return False, f"another place: {_words([cause])}"
    named = {place for cause in causes for place in cause["places"]}
    if not named or (answer.kind == "pair" and named != set(answer.places)):
        return False, f"only {sorted(named)}"
    return True, "named"


def _words(causes: list[dict[str, Any]]) -> str:
    return "; ".join(f"{c['suspect']} {c['kind']} {', '.join(c['places'][:4])}" for c in causes)


@contextmanager
def environment(variables: dict[str, str]) -> Iterator[None]:
    """These variables for the processes that are started meanwhile."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


if __name__ == "__main__":
    main()
