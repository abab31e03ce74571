"""Workers on a Ray cluster: actors that keep their state; one that is lost is replaced, and its task given out again.

Every machine of the cluster must see the models and the run directory under the same paths.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Sequence
from typing import Any

from subeight.errors import InputError
from subeight.sweep.crew import Done, Job, Patience


class RayCrew:
    """`count` actors (default: one for each CPU of the cluster), one CPU each."""

    def __init__(self, job: Job[Any, Any], address: str, count: int | None) -> None:
        self._ray = _connected(address)
        self._count = count or max(1, int(self._ray.cluster_resources().get("CPU", 1)))
        self._job = self._ray.put(job)
        self._actor = self._ray.remote(num_cpus=1, max_restarts=0)(_Worker)
        self._idle = [self._actor.remote(self._job) for _ in range(self._count)]
        self.cpu_seconds: dict[str, float] = {}
        self.deaths = 0

    def run(self, tasks: Sequence[Any], done: Done) -> None:
        waiting = list(enumerate(tasks))[::-1]
        busy: dict[Any, tuple[int, Any, Any]] = {}  # the promised answer: number, task, actor
        patience = Patience()
        while waiting or busy:
            while waiting and self._idle:
                number, task = waiting.pop()
                actor = self._idle.pop(0)
                busy[actor.answer.remote(task)] = (number, task, actor)
            ready, _ = self._ray.wait(list(busy), num_returns=1)
            number, task, actor = busy.pop(ready[0])
            try:
                worker, seconds, answer = self._ray.get(ready[0])
            except self._ray.exceptions.RayActorError:
                self.deaths += 1
                patience.death()
                waiting.append((number, task))
                self._idle.append(self._actor.remote(self._job))
                continue
            except self._ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, BaseException) else error from None
            self.cpu_seconds[worker] = seconds
            self._idle.append(actor)
            patience.progress()
            done(number, answer)

    def close(self) -> None:
        self._ray.shutdown()

    def __enter__(self) -> RayCrew:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Worker:
    """An actor: prepares once, answers many."""

    def __init__(self, job: Job[Any, Any]) -> None:
        self._job = job
        self._state = job.prepare()

    def answer(self, task: Any) -> tuple[str, float, Any]:
        answer = self._job.answer(self._state, task)
        return f"{socket.gethostname()}:{os.getpid()}", time.process_time(), answer


def _connected(address: str) -> Any:
    try:
        import ray  # an optional extra
    except ImportError as error:
        raise InputError(
            "--cluster needs Ray, which is not installed; run: pip install 'subeight[cluster]'."
        ) from error
    _require_answer(address)
    try:
        where = None if address == "local" else address
        ray.init(
            address=where,
            ignore_reinit_error=True,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise InputError(
            f"No Ray cluster answers at {address!r} ({error}); give host:port of its head, auto, or local."
        ) from error
    return ray


def _require_answer(address: str) -> None:
    """Ray itself waits for two minutes where nobody listens."""
    host, separator, port = address.removeprefix("ray://").rpartition(":")
    if not separator or not port.isdecimal():
        return
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise InputError(
            f"No Ray cluster answers at {address!r} ({error}); give host:port of its head, auto, or local."
        ) from error
