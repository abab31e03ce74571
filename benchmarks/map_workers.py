"""One map by one process, by two Ray workers of one thread each, and by two of which one is killed in the middle.

    python -m benchmarks.map_workers --out DIR [--tokens 1024]

The maps must be the same to the last digit. CPU seconds are those of the workers from their start, imports included;
the serial process is counted from the first task. Quantizing is not counted.
"""

import argparse
import json
import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import torch
from benchmarks.common import write_result

import subeight
from subeight.records import Record
from subeight.sweep import Where

MEASURED = ("cells", "whole", "mixtures", "difficulty", "controls", "priors")


def main() -> None:
    """Runs all three, one after the other, and writes `results/map_workers.json`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1024)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    serial = mapped(arguments.out / "serial", arguments.tokens, None)
    workers = Where(2, "local")
    spread = mapped(arguments.out / "ray", arguments.tokens, workers)
    killed = mapped(arguments.out / "killed", arguments.tokens, workers, at=spread["seconds"] / 3)
    rows = {"serial": serial, "two workers": spread, "one killed": killed}
    numbers = {
        "rows": {name: {**row["cost"], "seconds": row["seconds"]} for name, row in rows.items()},
        "cpu_ratio": spread["cost"]["cpu_seconds"] / serial["cost"]["cpu_seconds"],
        "same": digest(serial) == digest(spread),
        "same_after_a_death": digest(serial) == digest(killed),
    }
    write_result("map_workers", numbers, tokens=arguments.tokens, threads=1)


def mapped(out: Path, tokens: int, workers: Where | None, at: float = 0.0) -> dict:
    """The numbers of a map, those of an earlier run where it finished; a worker is killed `at` seconds on."""
    if (out / "record.json").is_file():
        record = Record.from_json((out / "record.json").read_text(encoding="utf-8"))
        return {**record.numbers, "seconds": record.seconds}
    if at:
        threading.Thread(target=kill_one, args=(out / ".cells", at), daemon=True).start()
    options = subeight.Options(out=out, eval_tokens=tokens, eval_window=128, threads=1)
    record = subeight.map("smollm2", rescue=(), workers=workers, options=options).record
    return {**record.numbers, "seconds": record.seconds}


def kill_one(cells: Path, after: float) -> None:
    """Waits for the first finished task, then so many seconds, and kills one of Ray's workers."""
    while not any(cells.glob("*.json")):
        time.sleep(0.2)
    time.sleep(after)
    found = subprocess.run(["pgrep", "-f", "ray::_Worker"], capture_output=True, text=True, check=True)
    os.kill(int(found.stdout.split()[0]), signal.SIGKILL)


def digest(numbers: dict) -> str:
    """Everything that was measured, to the last digit."""
    mixtures = sorted(json.dumps(mixture, sort_keys=True) for mixture in numbers["mixtures"])
    return json.dumps({**{name: numbers[name] for name in MEASURED}, "mixtures": mixtures}, sort_keys=True)


if __name__ == "__main__":
    main()
