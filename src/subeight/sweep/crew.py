"""One signature for independent tasks, wherever they run: a crew is hired for a job and `run`s lists of tasks.

A job prepares a state once in every worker (a model that is opened) and then answers tasks with it. Answers come in any
order, and the caller decides nothing by that order, so the result is the same wherever and by how many it was computed.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from subeight.errors import InputError, SubeightError

Task = TypeVar("Task", contravariant=True)
Answer = TypeVar("Answer", covariant=True)
Done = Callable[[int, Any], None]  # the task's number in its list, and its answer


class Job(Protocol[Task, Answer]):
    """What workers do; it travels to them, so it must be picklable and know everything by paths and values."""

    def prepare(self) -> Any:
        """The state that a worker keeps."""

    def answer(self, state: Any, task: Task) -> Answer:
        """The answer to one task; the same in every worker."""


@dataclass(frozen=True)
class Where:
    """This process (the default), so many worker processes, or a Ray cluster (`auto` starts one on this machine)."""

    workers: int | None = None
    cluster: str | None = None

    def __post_init__(self) -> None:
        if self.workers is not None and self.workers < 1:
            raise InputError(f"--workers was given {self.workers}; give 1 or more, or leave it out.")


class Crew(Protocol[Task]):
    """Those who answer. `cpu_seconds` is what each has used so far, by its name; `deaths` how many were lost."""

    cpu_seconds: dict[str, float]
    deaths: int

    def run(self, tasks: Sequence[Task], done: Done) -> None:
        """Answers all tasks; `done` is called in this process for each, in the order in which they are finished."""

    def close(self) -> None:
        """Sends the workers home; what is unfinished is dropped."""

    def __enter__(self) -> Crew[Task]: ...

    def __exit__(self, *_: object) -> None: ...


class Patience:
    """Gives up where workers die again and again and nothing is finished in between."""

    _MOST = 3

    def __init__(self) -> None:
        self._in_a_row = 0

    def progress(self) -> None:
        """A task was finished."""
        self._in_a_row = 0

    def death(self) -> None:
        """A worker was lost; raises SubeightError where that leads nowhere."""
        self._in_a_row += 1
        if self._in_a_row >= self._MOST:
            raise SubeightError(
                f"{self._MOST} workers died one after the other without finishing a task, perhaps for want of memory; "
                "what is finished is kept: run the same command again with fewer --workers."
            )
