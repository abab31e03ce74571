"""The course of a map: priors and controls, every cell on a first part of the text, then more text where it matters.

Which cells go on is decided between rounds, from all answers of the rounds before, so the map is the same whatever
computed it and in which order; a task that is finished is never done again.
"""

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from subeight.map.estimate import Estimates, Floats, estimate
from subeight.map.ledger import DAMAGE, FLOOR, MIXTURE, NOISE, PRIOR, RESCUE, Ledger
from subeight.map.prediction import ENOUGH
from subeight.map.schedule import chosen_cells, combined
from subeight.map.work import ALL, Task
from subeight.probe.bench import sequences_of
from subeight.sweep import Crew
from subeight.text import EvaluationSet

_PARTS = (1, 1, 2, 2, 2, 4, 4)  # sixteenths of the text in each round
_NOISY = 8  # places that are tried with noise instead of rounding errors
_MIXTURES = 12  # allocations that are measured as wholes
_TOGETHER = 4  # of them in a round
_MIXING = 0.35  # of the whole work, at most, for these

Cells = Sequence[tuple[int, int]]
Walk = tuple[str, int, int]  # the states of one model on one round's text: its view, its format, the round


@dataclass(frozen=True)
class Effort:
    """How much is measured: at most `share` of the naive way, rescue in these formats."""

    share: float = 0.1
    rescue: tuple[int, ...] = ()


def rounds_of(evaluation: EvaluationSet) -> tuple[EvaluationSet, ...]:
    """The text in the parts that are read one after the other; a part has at least one sample."""
    samples = list(evaluation.samples)
    tokens = sum(len(sample.ids) for sample in samples)
    parts: list[EvaluationSet] = []
    reached, start, target = 0, 0, 0.0
    for share in _PARTS:
        target += share / sum(_PARTS) * tokens
        stop = start
        while stop < len(samples) and (reached < target - 1e-9 or stop == start):
            reached += len(samples[stop].ids)
            stop += 1
        if stop > start:
            parts.append(EvaluationSet(tuple(samples[start:stop]), f"{evaluation.hash}-{start}-{stop}"))
        start = stop
    if start < len(samples):
        parts[-1] = replace(parts[-1], samples=(*parts[-1].samples, *samples[start:]))
    return tuple(parts)


class Course:
    """One map on its way. `bytes` is what each choice stores [places, formats], and each place unquantized [places]."""

    def __init__(
        self, ledger: Ledger, blocks: int, bytes: tuple[Floats, Floats], crew: Crew[Task], effort: Effort
    ) -> None:
        self._job, self._ledger = ledger.job, ledger
        self._blocks, self._bytes, self._crew, self._effort = blocks, bytes, crew, effort
        # what runs, padding included
        self._tokens = [sum(b.ids.numel() for b in sequences_of(part).batches()) for part in self._job.rounds]
        self.rounds = 0
        self._spent = 0  # as one process would spend it: what is decided by it is the same for any number of workers
        self._walked: set[Walk] = set()

    @property
    def naive(self) -> int:
        """Token-block forwards of quantizing one place at a time and running all of the text through everything."""
        cells = len(self._job.places) * len(self._job.candidates)
        return cells * sum(len(sample.ids) for part in self._job.rounds for sample in part.samples) * self._blocks

    @property
    def most(self) -> int:
        """The most that will be spent: the share of the naive way, or what every map needs where that is more."""
        return max(int(self._effort.share * self.naive), self._least())

    def run(self, advance: Callable[[int], None]) -> None:
        """Measures until nothing more matters, the text is read, or the share of the naive way is spent."""
        self._do(self._first(), advance)
        self._do(self._noise(), advance)
        self.rounds = 1
        for round in range(1, len(self._job.rounds)):
            cells = self._deserving(round)
            if cells:
                self.rounds = round + 1
                self._do(self._damage(cells, round), advance)

    @property
    def mixtures(self) -> int:
        """How many mixtures are measured; none where a format moved scales, since in each they move otherwise."""
        affordable = int(self._effort.share * len(self._job.places) * len(self._job.candidates) * _MIXING)
        moved = any(gauge is not None for gauge in self._job.gauges)
        return 0 if moved else max(ENOUGH, min(_MIXTURES, affordable))

    @property
    def mixture_rounds(self) -> list[int]:
        """The mixtures in rounds: which are measured next is decided by what the last ones lost."""
        full, rest = divmod(self.mixtures, _TOGETHER)
        return [_TOGETHER] * full + [rest] * bool(rest)

    def mix(self, mixtures: Sequence[Cells], advance: Callable[[int], None]) -> None:
        """Measures models with many cells at once, on all of the text."""
        self._do([Task(MIXTURE, 0, ALL, tuple(sorted(cells))) for cells in mixtures], advance)

    def estimates(self, format: int, view: str = DAMAGE) -> Estimates:
        """Of all places in one format."""
        return estimate(self._ledger.totals[view][:, format], self._ledger.counts)

    def _first(self) -> list[Task]:
        """What every map has: priors, wholes, rescue, controls, and every cell on the first part of the text."""
        every = [(p, f) for p in range(len(self._job.places)) for f in range(len(self._job.candidates))]
        around = [Task(PRIOR, 0, ALL, ()), *self._whole(), *self._rescue(), Task(FLOOR, 0, 0, (), control=True)]
        return [*around, *self._damage(every, 0, control=True)]

    def _least(self) -> int:
        walked: set[Walk] = set()
        cost = sum(self._cost(task, walked) for task in self._first()) + self._mixing
        return cost + _NOISY * self._blocks * self._tokens[0]

    @property
    def _mixing(self) -> int:
        """What all mixtures cost, with the states of the unchanged model that they are measured against."""
        return (self.mixtures + bool(self.mixtures)) * self._blocks * sum(self._tokens)

    def _deserving(self, round: int) -> list[tuple[int, int]]:
        found = [self.estimates(format) for format in range(len(self._job.candidates))]
        measured = np.stack([part.mean for part in found], 1)
        relative = np.stack([part.relative for part in found], 1)
        times = np.asarray([[float(place.stands_for)] for place in self._job.places])
        known = combined(measured * times, relative, np.nan_to_num(self._ledger.prior) * times, *self._bytes)
        walk = self._blocks * self._tokens[round]  # the states in front of every block
        left = self._effort.share * self.naive - self._spent - walk - self._mixing
        share = self._tokens[round] / sum(self._tokens[round:])
        cost = [self._blocks_behind(place.at) * self._tokens[round] for place in self._job.places]
        return chosen_cells(known, np.isfinite(measured), cost, max(0.0, left * share))

    def _blocks_behind(self, at: int) -> int:
        return self._blocks - max(at, 0)

    def _damage(self, cells: Cells, round: int, *, control: bool = False) -> list[Task]:
        """One task for the cells of each block that are in one gauge."""
        by_task: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for place, format in cells:
            gauge = format if self._job.gauges[format] is not None else -1
            by_task[self._job.places[place].at, gauge].append((place, format))
        return [
            Task(DAMAGE, at, round, tuple(mine), format=mine[0][1], control=control)
            for (at, _), mine in sorted(by_task.items())
        ]

    def _whole(self) -> list[Task]:
        """What each format loses where all of it is quantized: the rivals of every allocation."""
        return [Task(RESCUE, 0, ALL, (), format=format, control=True) for format in range(len(self._job.candidates))]

    def _rescue(self) -> list[Task]:
        """The other view: one place restored, on the first part of the text."""
        by_task: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for format in self._effort.rescue:
            for number, place in enumerate(self._job.places):
                if 0 <= place.at < self._blocks:
                    by_task[format, place.at].append((number, format))
        return [Task(RESCUE, at, 0, tuple(mine), format=format) for (format, at), mine in sorted(by_task.items())]

    def _noise(self) -> list[Task]:
        """Where rounding to the last format hurts most, errors as large without any pattern."""
        format = len(self._job.candidates) - 1
        damage = self._ledger.totals[DAMAGE][:, format, self._ledger.samples_of(0)].sum(1)
        inside = [p for p in np.argsort(-damage, kind="stable") if 0 <= self._job.places[p].at < self._blocks][:_NOISY]
        return [
            replace(task, view=NOISE) for task in self._damage([(int(place), format) for place in sorted(inside)], 0)
        ]

    def _cost(self, task: Task, walked: set[Walk]) -> int:
        """Token-block forwards of a task, and those of unchanged models where it is the first to need their states.

        These are added to `walked`.
        """
        if task.view == PRIOR:
            moved = {format for format, gauge in enumerate(self._job.gauges) if gauge is not None}
            gauges = len(moved) + (len(moved) < len(self._job.gauges))
            return 5 * gauges * sum(self._tokens) * self._blocks
        tokens = sum(self._tokens) if task.round == ALL else self._tokens[task.round]
        walks = {("baseline", -1, task.round)} | ({(task.view, task.format, task.round)} if task.at else set())
        fresh = walks - walked
        walked |= walks
        variants = 1 if task.view == MIXTURE else len(task.cells) + task.control
        own = variants * self._blocks_behind(task.at)
        return tokens * (own + len(fresh) * self._blocks)

    def _do(self, tasks: Sequence[Task], advance: Callable[[int], None]) -> None:
        self._spent += sum(self._cost(task, self._walked) for task in tasks)
        before = self._ledger.token_blocks
        left = self._ledger.recall(tasks)
        advance(self._ledger.token_blocks - before)

        def done(number: int, answer: dict) -> None:
            self._ledger.note(left[number], answer)
            advance(answer["token_blocks"])

        self._crew.run(left, done)
