"""What a worker of a map does: one task is one block, one part of the text, and all variants that share the suffix."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from subeight.evals.passes import Computing
from subeight.map.places import Place
from subeight.map.prior import prior_of
from subeight.models.block import Block
from subeight.models.gauge import Gauge
from subeight.models.model import Model
from subeight.probe.bench import Bench, Suffixes, Variant
from subeight.probe.pairs import aligned_block
from subeight.text import EvaluationSet

ALL = -1  # in place of a round: the text of all of them


@dataclass(frozen=True)
class Task:
    """Cells (place, format) of one block on one round's samples; without cells, only the control.

    `view` is `damage`, quantized alone in the baseline; `rescue`, restored in the candidate of `format`; `noise`, as
    damage with random errors of the same size; or `floor`, the baseline in the other precision. On the text of all
    rounds (`round` is ALL), `prior` measures nothing and expects, `mixture` has all cells at once, and a rescue without
    cells has the whole candidate. `control` adds the model without any change to the packed batch: its loss is 0, or in
    a rescue the candidate's own. Cells of one damage task are all in the gauge of `format`.
    """

    view: str
    at: int
    round: int
    cells: tuple[tuple[int, int], ...]
    format: int = 0
    control: bool = False

    @property
    def key(self) -> str:
        """A name for the task that any run of the same map gives it."""
        cells = hashlib.sha256(repr((self.cells, self.control)).encode()).hexdigest()[:12]
        return f"{self.view}-{self.round:03d}-{self.at + 1:04d}-{self.format}-{cells}"


@dataclass(frozen=True)
class MapJob:
    """Everything a worker needs, by paths and values; `gauges[f]` is None where format f moved nothing."""

    baseline: str
    candidates: tuple[str, ...]
    gauges: tuple[Gauge | None, ...]
    places: tuple[Place, ...]
    rounds: tuple[EvaluationSet, ...]
    computing: Computing
    metric: str = "kl"
    threads: int | None = None
    trust_remote_code: bool = False

    def prepare(self) -> "State":
        """Opens the models; weights are read when a task wants them."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        return State(self)

    def answer(self, state: "State", task: Task) -> dict[str, Any]:
        """Per variant the nats of each sample, the control first; of a prior, its values by place and format."""
        if task.view == "prior":
            return state.prior()
        bench = state.bench(task)
        before = bench.cost.token_blocks
        if task.view == "mixture":
            losses = [bench.mixed(partial(state.mixture, task.cells))]
        else:
            unchanged: list[Variant] = [{}] if task.control else []
            losses = bench.measure(task.at, [*unchanged, *state.variants(task)])
        return {
            "totals": [loss.total.tolist() for loss in losses],
            "counts": losses[0].count.tolist(),
            "token_blocks": bench.cost.token_blocks - before,
        }


class State:
    """The models of a worker, and the benches of the round that it is in."""

    def __init__(self, job: MapJob) -> None:
        self._job = job
        self._round: int = ALL - 1  # none yet
        self._benches: dict[tuple[str, int], Bench] = {}
        self._suffixes: dict[tuple[str, int], Suffixes] = {}
        models = 2 + sum(gauge is not None for gauge in job.gauges)  # whose blocks are kept
        self._block_room = job.computing.room // (2 * models)

    @cached_property
    def baseline(self) -> Model:
        return Model(self._job.baseline, trust_remote_code=self._job.trust_remote_code)

    @cached_property
    def candidates(self) -> list[Model]:
        return [Model(path, trust_remote_code=self._job.trust_remote_code) for path in self._job.candidates]

    def bench(self, task: Task) -> Bench:
        """Where the task's variants are measured; only one round's states are kept."""
        if task.round != self._round:
            self._round, self._benches = task.round, {}
        if task.view in ("damage", "noise", "mixture"):
            return self._bench("damage", -1 if self._job.gauges[task.format] is None else task.format, None)
        # the rest still loses against the exact baseline itself, not against it in the candidate's gauge
        return self._bench(task.view, task.format, self._bench("damage", -1, None))

    def _bench(self, view: str, number: int, against: Bench | None) -> Bench:
        key = (view, number)
        if key not in self._benches:
            samples = merged(self._job.rounds) if self._round == ALL else self._job.rounds[self._round]
            self._benches[key] = Bench(self._suffix(view, number), samples, metric=self._job.metric, against=against)
        return self._benches[key]

    def _suffix(self, view: str, number: int) -> Suffixes:
        """Of the baseline in its own gauge (-1) or in that of a format, or of the format's candidate."""
        key = (view, number)
        if key not in self._suffixes:
            job, computing = self._job, self._job.computing
            model, gauge = self.baseline, None if number < 0 else job.gauges[number]
            if view != "damage":
                self._let_go()
                gauge = None
            if view == "rescue":
                model = self.candidates[number]
            if view == "floor":
                computing = replace(computing, dtype=other_dtype(computing.dtype))
            self._suffixes[key] = Suffixes(model, computing, gauge=gauge, max_memory=self._block_room)
            if view == "rescue":
                self._suffixes[key].keep_shell(self._outside(job.gauges[number]))
        return self._suffixes[key]

    def _let_go(self) -> None:
        """One other model at a time stays in memory, with the bench that measured it."""
        for key in [key for key in self._suffixes if key[0] != "damage"]:
            del self._suffixes[key]
            self._benches.pop(key, None)

    def _outside(self, gauge: Gauge | None) -> Variant:
        """Embeddings and head of the baseline: in a whole only the blocks are quantized."""
        exact = Suffixes(self.baseline, self._job.computing, gauge=gauge).shell
        places = [place for place in self._job.places if place.linears[0].block is None]
        return {name: exact.parameter(f"{name}.weight") for place in places for name in place.names}

    def prior(self) -> dict[str, Any]:
        """The expected losses, each format in its own gauge."""
        job = self._job
        loss: list[list[float]] = []
        output: list[list[float]] = []
        cost = 0
        gauges = {-1 if gauge is None else format: None for format, gauge in enumerate(job.gauges)}
        samples = merged(job.rounds)
        for number in gauges:
            formats = [f for f, gauge in enumerate(job.gauges) if (-1 if gauge is None else f) == number]
            bench = Bench(self._suffix("damage", number), samples, metric=job.metric)
            generator = torch.Generator().manual_seed(0)
            errors = partial(self._errors, formats=formats, number=number)
            found = prior_of(bench, job.places, errors, generator)
            loss += [[place, formats[f], value] for (place, f), value in found.loss.items()]
            output += [[place, formats[f], value] for (place, f), value in found.output.items()]
            cost += bench.cost.token_blocks
        return {"loss": loss, "output": output, "token_blocks": cost}

    def _errors(self, index: int, formats: Sequence[int], number: int) -> list[dict[str, Tensor]]:
        """What rounding to each format changed in a block, by linear."""
        exact = block_weights(self._suffix("damage", number)[index])
        found = []
        for format in formats:
            rounded = block_weights(aligned_block(self.candidates[format], None, self._job.computing, index))
            found.append({name: (rounded[name] - weight).float() for name, weight in exact.items()})
        return found

    def mixture(self, cells: Sequence[tuple[int, int]], index: int) -> Variant:
        """The rounded weights of one block where every place has its own format."""
        mine: dict[int, list[Place]] = {}
        for place, format in cells:
            if (part := self._job.places[place].within(index)) is not None:
                mine.setdefault(format, []).append(part)
        return {
            name: weight
            for format, places in mine.items()
            for weights in weights_at(self.candidates[format], places, self._job.computing)
            for name, weight in weights.items()
        }

    def variants(self, task: Task) -> list[Variant]:
        """The other weights of each cell."""
        found: dict[tuple[int, int], Variant] = {}
        for format, places in _by_format(task.cells).items():
            listed = [self._job.places[place] for place in places]
            gauge, computing = self._job.gauges[format], self._job.computing
            if task.view == "rescue":
                weights = weights_at(self.baseline, listed, computing, gauge=gauge)
            else:
                weights = weights_at(self.candidates[format], listed, computing)
            if task.view == "noise":
                exact = weights_at(self.baseline, listed, computing, gauge=gauge)
                weights = [_noisy(a, b) for a, b in zip(exact, weights, strict=True)]
            found |= {(place, format): variant for place, variant in zip(places, weights, strict=True)}
        return [found[cell] for cell in task.cells]


def weights_at(
    model: Model, places: Sequence[Place], computing: Computing, *, gauge: Gauge | None = None
) -> list[dict[str, Tensor]]:
    """The weights [out, in] of places that are all in one block, or all outside the blocks, by linear."""
    weights: Mapping[str, Tensor]
    if 0 <= places[0].at < len(model.skeleton.blocks):
        weights = block_weights(aligned_block(model, gauge, computing, places[0].at))
    else:
        shell = Suffixes(model, computing, gauge=gauge).shell
        weights = {name: shell.parameter(f"{name}.weight") for place in places for name in place.names}
    return [{name: weights[name] for name in place.names} for place in places]


def _by_format(cells: Sequence[tuple[int, int]]) -> dict[int, list[int]]:
    found: dict[int, list[int]] = {}
    for place, format in cells:
        found.setdefault(format, []).append(place)
    return found


def merged(rounds: Sequence[EvaluationSet]) -> EvaluationSet:
    """The text of all rounds."""
    return EvaluationSet(tuple(sample for part in rounds for sample in part.samples), "-".join(r.hash for r in rounds))


def _noisy(exact: Mapping[str, Tensor], rounded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The exact weights with Gaussian errors as large, in the Frobenius norm, as those of rounding."""
    found = {}
    for name, weight in exact.items():
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7], "little")
        noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed)).to(weight)
        found[name] = weight + noise * ((rounded[name] - weight).norm() / noise.norm())
    return found


def other_dtype(dtype: torch.dtype) -> torch.dtype:
    """bfloat16 for float32, and float32 for anything else."""
    return torch.bfloat16 if dtype == torch.float32 else torch.float32


def block_weights(block: Block) -> dict[str, Tensor]:
    """The weights [out, in] that a block computes with, by linear."""
    return {view.info.name: block.weight(view) for view in block.structure.linears()}
