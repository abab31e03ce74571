"""Plants faults with known answers, from a seed, in real quantized models: `plant(kind, base, seed, directory)`.

    python benchmarks/faults/plant.py KIND [--base dense] [--seed 0] [--out DIR]

Every kind is one function in `kinds/`, which takes a healthy candidate made by our own verbs and damages a copy of it
(or hands out the wrong baseline, calibration or environment). A planted fault is measured before it counts: on its
failing prompts the loss must rise to RISE times the healthy candidate's, else the next place and size are tried.
"""

import argparse
import json
import random
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parents[2]
if str(ROOT) not in sys.path:
    sys.path.insert(0, str(ROOT))

from benchmarks.faults.bases import Base  # noqa: E402
from benchmarks.faults.kinds import KINDS  # noqa: E402
from benchmarks.faults.kinds.draft import Answer, Draft, Unplantable  # noqa: E402

SCRATCH = Path.home() / ".cache" / "subeight" / "faults"
TRIES = 24


@dataclass(frozen=True)
class Case:
    """One case of the benchmark: what is given to `diagnose`, and the one right answer.

    `baseline` and the paths are what a user would name; `environment` holds variables for the processes that are
    started, `python` runs the packed model and `interpreter` the whole diagnosis (None: this one). `notes` say what was
    planted and measured.
    """

    kind: str
    base: str
    seed: int
    candidate: Path
    baseline: Path
    prompts: Path
    answer: Answer
    control: Path | None = None
    calibration: Path | None = None
    last_good: Path | None = None
    replay: bool = False
    python: str | None = None
    interpreter: str | None = None
    environment: dict[str, str] = field(default_factory=dict)
    notes: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return json.loads(json.dumps(asdict(self), default=str))


def plant(kind: str, base: str, seed: int, directory: Path, scratch: Path = SCRATCH, verify: bool = True) -> Case:
    """Plants one fault of `kind` in a candidate of `base`, in `directory`; the same seed plants the same bytes.

    Raises:
        Unplantable: no place was found where this kind hurts, or the base cannot have it.
    """
    make: Callable[..., Draft] = KINDS[kind]
    refused = ""
    for attempt in range(TRIES):
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir(parents=True)
        chooser = random.Random(f"{kind} {base} {seed} {attempt}")
        try:
            draft = make(Base(base, scratch, f"{kind} {base} {seed}"), chooser, directory, attempt)
            notes = draft.check() if verify and draft.check else {}
        except Unplantable as reason:
            if reason.final:
                raise
            refused = str(reason)
            continue
        return Case(
            kind,
            base,
            seed,
            answer=draft.answer,
            notes={**draft.notes, **notes, "attempt": attempt},
            **draft.given(),
        )
    raise Unplantable(f"{kind} could not be planted in {base} from seed {seed}: {refused}", final=True)


def main() -> None:
    """Plants one case and prints it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=list(KINDS))
    parser.add_argument("--base", default="dense")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("planted"))
    parser.add_argument("--scratch", type=Path, default=SCRATCH)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    case = plant(arguments.kind, arguments.base, arguments.seed, arguments.out, arguments.scratch)
    print(json.dumps(case.to_dict(), indent=1))


if __name__ == "__main__":
    main()
