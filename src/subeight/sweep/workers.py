"""Worker processes on this machine; one that is killed is replaced, and its task is given out again."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any

from subeight.sweep.crew import Done, Job, Patience

_state: dict[str, Any] = {}  # of a worker process


class ProcessCrew:
    """`count` processes, started anew (not forked), so that threads and devices begin clean."""

    def __init__(self, job: Job[Any, Any], count: int) -> None:
        self._job = job
        self._count = count
        self._pool = self._start()
        self.cpu_seconds: dict[str, float] = {}
        self.deaths = 0

    def run(self, tasks: Sequence[Any], done: Done) -> None:
        waiting = dict(enumerate(tasks))
        patience = Patience()
        while waiting:
            try:
                self._round(waiting, done, patience)
            except BrokenProcessPool:
                self.deaths += 1
                patience.death()
                self._pool.shutdown(wait=False, cancel_futures=True)
                self._pool = self._start()

    def _round(self, waiting: dict[int, Any], done: Done, patience: Patience) -> None:
        futures: dict[Future, int] = {
            self._pool.submit(_answer, self._job, task): number for number, task in waiting.items()
        }
        while futures:
            finished, _ = wait(futures, return_when=FIRST_COMPLETED)
            for future in sorted(finished, key=futures.__getitem__):
                number = futures.pop(future)
                worker, seconds, answer = future.result()
                self.cpu_seconds[worker] = seconds
                del waiting[number]
                patience.progress()
                done(number, answer)

    def _start(self) -> ProcessPoolExecutor:
        return ProcessPoolExecutor(self._count, mp_context=get_context("spawn"))

    def close(self) -> None:
        processes = list((getattr(self._pool, "_processes", None) or {}).values())
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in processes:
            process.terminate()

    def __enter__(self) -> ProcessCrew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _answer(job: Job[Any, Any], task: Any) -> tuple[str, float, Any]:
    """One task in a worker: the worker's name, the seconds of CPU that it has used so far, and the answer."""
    if "state" not in _state:
        _state["state"] = job.prepare()
    answer = job.answer(_state["state"], task)
    return str(os.getpid()), time.process_time(), answer
