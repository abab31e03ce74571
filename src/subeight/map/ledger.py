"""What was measured so far: nats of every sample in every cell, and what it cost."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from subeight.map.estimate import Floats
from subeight.map.work import ALL, MapJob, Task
from subeight.records.files import atomic_write

DAMAGE, RESCUE, NOISE, FLOOR, PRIOR, MIXTURE = "damage", "rescue", "noise", "floor", "prior", "mixture"


@dataclass
class Ledger:
    """Losses [places, formats, samples] of each view, NaN where nothing was measured; finished tasks lie in `folder`.

    `unchanged` are the controls: what the model without any change lost, of a rescue the candidates' own loss
    [formats, samples]. `mixtures` have many cells at once: each one's loss by sample.
    """

    job: MapJob
    folder: Path
    counts: Floats = field(init=False)
    totals: dict[str, Floats] = field(init=False)
    whole: Floats = field(init=False)
    controls: list[float] = field(default_factory=list)
    floor: list[float] = field(default_factory=list)
    prior: Floats = field(init=False)
    output_error: Floats = field(init=False)
    mixtures: dict[tuple[tuple[int, int], ...], Floats] = field(default_factory=dict)
    token_blocks: int = 0

    def __post_init__(self) -> None:
        sizes = [len(samples.samples) for samples in self.job.rounds]
        self._starts = [sum(sizes[:at]) for at in range(len(sizes) + 1)]
        samples, places, formats = self._starts[-1], len(self.job.places), len(self.job.candidates)
        self.counts = np.zeros(samples)
        self.totals = {view: np.full((places, formats, samples), np.nan) for view in (DAMAGE, RESCUE, NOISE)}
        self.whole = np.full((formats, samples), np.nan)
        self.prior, self.output_error = (np.full((places, formats), np.nan) for _ in range(2))
        self.folder.mkdir(parents=True, exist_ok=True)

    def samples_of(self, round: int) -> slice:
        """Which samples a round has, or all of them."""
        return slice(None) if round == ALL else slice(self._starts[round], self._starts[round + 1])

    def recall(self, tasks: Sequence[Task]) -> list[Task]:
        """Reads what an earlier run finished; returns the tasks that are left."""
        left = []
        for task in tasks:
            path = self._path(task)
            if path.is_file():
                self._enter(task, json.loads(path.read_text(encoding="utf-8")))
            else:
                left.append(task)
        return left

    def note(self, task: Task, answer: dict[str, Any]) -> None:
        """Keeps an answer, on disk first."""
        atomic_write(self._path(task), json.dumps(answer))
        self._enter(task, answer)

    def _path(self, task: Task) -> Path:
        return self.folder / f"{task.key}.json"

    def _enter(self, task: Task, answer: dict[str, Any]) -> None:
        self.token_blocks += answer["token_blocks"]
        if task.view == PRIOR:
            for array, rows in ((self.prior, answer["loss"]), (self.output_error, answer["output"])):
                for place, format, value in rows:
                    array[place, format] = value
            return
        at = self.samples_of(task.round)
        self.counts[at] = answer["counts"]
        rows = [np.asarray(row) for row in answer["totals"]]
        if task.view == MIXTURE:
            self.mixtures[task.cells] = rows[0]
            return
        if task.control:
            first = rows.pop(0)
            if task.view == DAMAGE:
                self.controls.append(float(np.abs(first).max()))
            elif task.view == FLOOR:
                self.floor.append(float(first.sum() / np.sum(answer["counts"])))
            else:
                self.whole[task.format, at] = first
        for (place, format), row in zip(task.cells, rows, strict=True):
            self.totals[task.view][place, format, at] = row
