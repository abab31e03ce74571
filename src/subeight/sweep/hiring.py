"""Who does the work: this process, worker processes, or a Ray cluster."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

from subeight.sweep.cluster import RayCrew
from subeight.sweep.crew import Crew, Done, Job, Where
from subeight.sweep.workers import ProcessCrew


def hire(job: Job[Any, Any], where: Where | None = None) -> Crew[Any]:
    """A crew for `job`, to be used in a `with` statement.

    Raises:
        InputError: Ray is asked for and not installed, or its cluster cannot be reached.
    """
    where = where or Where()
    if where.cluster is not None:
        return RayCrew(job, where.cluster, where.workers)
    return Alone(job) if where.workers is None else ProcessCrew(job, where.workers)


class Alone:
    """This process does the work itself."""

    def __init__(self, job: Job[Any, Any]) -> None:
        self._job = job
        self._state: Any = None
        self._ready = False
        self._began = time.process_time()
        self.cpu_seconds: dict[str, float] = {}
        self.deaths = 0

    def run(self, tasks: Sequence[Any], done: Done) -> None:
        for number, task in enumerate(tasks):
            if not self._ready:
                self._state, self._ready = self._job.prepare(), True
            answer = self._job.answer(self._state, task)
            self.cpu_seconds["this process"] = time.process_time() - self._began
            done(number, answer)

    def close(self) -> None:
        self._state, self._ready = None, False

    def __enter__(self) -> Alone:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
