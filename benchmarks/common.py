"""What the cells share: where real text lies, how a result is written with its hashes, how a process is measured."""

import hashlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from subeight.records import Stack

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"
SHARED = HERE.parents[1] / "shared" / "data"
WIKITEXT_TEST = SHARED / "text" / "wikitext2" / "test.raw.txt"
WIKITEXT_TRAIN = SHARED / "text" / "wikitext2" / "train_5k.raw.txt"


def write_result(name: str, numbers: dict[str, Any], **context: Any) -> Path:
    """Writes `results/<name>.json` with the stack, the commit, and a hash of the numbers."""
    stack = Stack.today(torch.get_num_threads())
    content = {
        "name": name,
        "numbers": numbers,
        "context": context,
        "commit": _git("rev-parse", "HEAD"),
        "changed": bool(_git("status", "--porcelain", "--", "src")),
        "stack": stack.hash,
        "stack_contents": stack.contents(),
        "date": time.strftime("%Y-%m-%d"),
    }
    content["hash"] = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()[:16]
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(numbers, indent=1))
    return path


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=HERE, capture_output=True, text=True, check=False).stdout.strip()


def run_json(command: list[str], **options: Any) -> dict[str, Any]:
    """Runs a command whose last line on standard output is JSON; its errors go to ours."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, **options)
    if done.returncode:
        sys.exit(f"{' '.join(command[:3])} ended with status {done.returncode}")
    return json.loads(done.stdout.strip().splitlines()[-1])


def spread(values: list[float]) -> dict[str, float]:
    """Median, least and most."""
    ordered = sorted(values)
    return {"median": ordered[len(ordered) // 2], "min": ordered[0], "max": ordered[-1], "runs": len(ordered)}
