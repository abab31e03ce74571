"""The same answers wherever they are computed; a killed worker changes nothing; what cannot be is said."""

import os
import signal
from dataclasses import dataclass
from pathlib import Path

import pytest

from subeight.errors import InputError, SubeightError
from subeight.sweep import Where, hire


@dataclass(frozen=True)
class Squares:
    """Squares a number; dies once at `fatal` where its file is not there yet."""

    folder: Path
    fatal: int = -1
    always: bool = False

    def prepare(self) -> int:
        return 7

    def answer(self, state: int, task: int) -> int:
        marker = self.folder / "died"
        if task == self.fatal and (self.always or not marker.exists()):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        if task < 0:
            raise InputError(f"{task} is negative")
        return state * task * task


def answers(job: Squares, where: Where, tasks: list[int]) -> tuple[dict[int, int], int, dict[str, float]]:
    found: dict[int, int] = {}
    with hire(job, where) as crew:
        crew.run(tasks[:3], found.__setitem__)
        crew.run(tasks[3:], lambda number, answer: found.__setitem__(number + 3, answer))
        return found, crew.deaths, dict(crew.cpu_seconds)


@pytest.mark.parametrize("where", [Where(), Where(workers=2)])
def test_the_same_answers_everywhere(tmp_path: Path, where: Where) -> None:
    found, deaths, seconds = answers(Squares(tmp_path), where, list(range(9)))
    assert found == {n: 7 * n * n for n in range(9)}
    assert deaths == 0 and all(value > 0 for value in seconds.values()) and seconds


# one test for Ray, since each of its workers imports everything anew
@pytest.mark.parametrize("where", [Where(workers=2), Where(workers=2, cluster="local")])
def test_a_killed_worker_changes_nothing(tmp_path: Path, where: Where) -> None:
    found, deaths, _ = answers(Squares(tmp_path, fatal=4), where, list(range(9)))
    assert found == {n: 7 * n * n for n in range(9)}
    assert deaths >= 1


def test_workers_that_always_die_end_with_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(SubeightError, match="fewer --workers"):
        answers(Squares(tmp_path, fatal=4, always=True), Where(workers=1), [0, 1, 2, 4])


@pytest.mark.parametrize("where", [Where(), Where(workers=1)])
def test_bad_input_found_in_a_worker_is_said(tmp_path: Path, where: Where) -> None:
    with pytest.raises(InputError, match="-3 is negative"):
        answers(Squares(tmp_path), where, [0, -3])


def test_no_cluster_there_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No Ray cluster answers at '127\.0\.0\.1:1'"):
        hire(Squares(tmp_path), Where(cluster="127.0.0.1:1"))


def test_no_workers_are_refused() -> None:
    with pytest.raises(InputError, match="--workers was given 0"):
        Where(workers=0)
