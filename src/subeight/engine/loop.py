"""The one loop: block after block, tap -> move -> select apart -> round -> fit apart -> write -> advance.

Any number of recipes go through it together. Recipes whose statistics are the baseline's own (`tap: exact`) share one
stream and one pass; every other recipe has its own stream, whose activations have met what was quantized before.
"""

import copy
import hashlib
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor

from subeight.engine.job import Job, Settings
from subeight.engine.lane import UNLIMITED, Lane
from subeight.engine.moves import Tap, moving
from subeight.engine.polishing import polish
from subeight.engine.rounding import needs, rotation_of
from subeight.engine.streams import DiskStream, MemoryStream, Stream, embedded
from subeight.engine.tuning import States, tuned
from subeight.methods.move.rotate import Rotate
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.rotated import rotated
from subeight.models.shelf import Shelf
from subeight.models.shell import Shell
from subeight.models.stats import GATHERED, Stats
from subeight.models.structure import InputGroup
from subeight.models.tap import chunks, gather
from subeight.records.coordinates import fingerprint
from subeight.records.progress import progress


def run(model: Model, jobs: Sequence[Job], ids: Tensor | None, settings: Settings) -> list[Lane]:
    """Carries out the jobs on calibration ids [sequences, length]; None where no method needs any.

    Finished blocks of an earlier, interrupted run in the same directories are not done again; the result has the
    same bytes as an uninterrupted run's on the same machine, stack and thread count.
    """
    by_turn: dict[Rotate | None, list[Job]] = {}
    for job in jobs:
        by_turn.setdefault(rotation_of(job.plan), []).append(job)
    done: dict[Path, Lane] = {}
    for turn, mine in by_turn.items():
        base = model if turn is None else rotated(model, values=turn.values)
        done |= {lane.job.directory: lane for lane in _run_together(base, mine, ids, settings)}
    return [done[job.directory] for job in jobs]


def _run_together(model: Model, jobs: Sequence[Job], ids: Tensor | None, settings: Settings) -> list[Lane]:
    """The jobs that quantize the model in one basis."""
    lanes = [Lane(model, job, settings) for job in jobs]
    blind = [lane for lane in lanes if ids is None or not lane.reads]
    exact = [lane for lane in lanes if lane not in blind and lane.plan.tap == "exact"]
    own = [lane for lane in lanes if lane not in blind and lane not in exact]
    shell = Shell(model, settings.dtype, settings.device, weights=bool(exact or own))
    what = f"Quantizing {model.label}" + (f" by {len(lanes)} recipes" if len(lanes) > 1 else "")
    total = len(model.skeleton.blocks) * (bool(blind) + bool(exact) + len(own))
    with progress(total, what, "blocks", quiet=settings.quiet) as advance:
        for shared, text in ((blind, None), (exact, ids)):
            if shared:
                _run_shared(model, shared, text, shell, settings, advance)
        for lane in own:
            assert ids is not None
            _run_own(model, lane, ids, shell, settings, advance)
    del shell
    for lane in lanes:
        if ids is not None:
            polish(model, lane, ids, settings)
        lane.write_shell()
    return lanes


def _stream(
    model: Model,
    lanes: Sequence[Lane],
    ids: Tensor,
    shell: Shell,
    settings: Settings,
    finished: int,
    *,
    exact: bool = False,
) -> Stream:
    def first() -> Iterator[Tensor]:
        return embedded(shell, ids, settings.batch)

    if settings.scratch is None:
        return MemoryStream(first(), Shelf(settings.max_memory, settings.states))
    depends_on = {
        "model": model.coordinate,
        "lanes": [[str(lane.job.directory.resolve()), lane.plan.fingerprint, lane.job.exporter.name] for lane in lanes],
        "ids": hashlib.sha256(ids.contiguous().numpy().tobytes()).hexdigest(),
        "settings": [str(settings.dtype), str(settings.device), settings.batch, settings.seed],
        "threads": torch.get_num_threads(),
        **({"exact": True} if exact else {}),
    }
    return DiskStream(settings.scratch / f"stream-{fingerprint(depends_on)}", first, finished)


def _tap_of(
    block: Block, stream: Stream, shell: Shell, exact: tuple[Block, Stream] | None = None, *, forced: bool = False
) -> Tap:
    """Gathers what groups of the block read of the stream; `exact` are the baseline's block and stream beside it."""

    def tap(groups: Sequence[InputGroup], wanted: frozenset[str]) -> dict[str, Stats]:
        beside = None if exact is None else (exact[0], exact[1].batches(shell, block.index))
        return gather(block, groups, stream.batches(shell, block.index), wanted, beside, forced=forced)

    return tap


def _states_of(
    block: Block, stream: Stream, shell: Shell, exact: tuple[Block, Stream] | None = None
) -> Callable[[], States]:
    """What the block reads, batch by batch, and what the baseline's own block makes of what that one reads."""

    def states() -> States:
        baseline, own = (block, stream) if exact is None else exact
        targets = [baseline(hidden, call) for hidden, call in own.batches(shell, block.index)]
        return list(stream.batches(shell, block.index)), targets

    return states


def _run_own(
    model: Model, lane: Lane, ids: Tensor, shell: Shell, settings: Settings, advance: Callable[..., None]
) -> None:
    finished, count = lane.finished, len(model.skeleton.blocks)
    if finished == count:
        advance(count)
        return
    stream = _stream(model, [lane], ids, shell, settings, finished)
    # the baseline's states beside it are moved on last, so after a kill they are never ahead
    exact = _stream(model, [lane], ids, shell, settings, finished, exact=True) if lane.compares else None
    start = stream.position if exact is None else exact.position
    advance(start)
    for index in range(start, count):
        began = time.monotonic()
        other = None if exact is None else Block(model, index, settings.dtype, settings.device)
        last = index == count - 1
        if stream.position == index:
            written = lane.written(index) if index < finished else None
            block = Block(model, index, settings.dtype, settings.device, keep=written is None, written=written)
            if written is None:
                _decide(lane, block, stream, shell, None if other is None or exact is None else (other, exact))
            if not last:
                stream.advance(block, shell)
        if exact is not None and other is not None and not last:
            exact.advance(other, shell)
        lane.seconds += time.monotonic() - began
        advance()
    for used in (stream, exact):
        if used is not None:
            used.close()


def _decide(lane: Lane, block: Block, stream: Stream, shell: Shell, exact: tuple[Block, Stream] | None) -> None:
    """Quantizes a block by what it reads, and by what the baseline reads where that is asked for."""
    if exact is not None and moving(lane.plan, block):
        exact = (_copied(exact[0]), exact[1])  # its states must not depend on whether a run was resumed
    tap = _tap_of(block, stream, shell, exact, forced=lane.settings.forced)
    states = _states_of(block, stream, shell, exact)
    lane.quantize(block, tap, states, exact=None if exact is None else exact[0])
    block.stored.clear()


def _run_shared(
    model: Model,
    lanes: list[Lane],
    ids: Tensor | None,
    shell: Shell,
    settings: Settings,
    advance: Callable[..., None],
) -> None:
    """Lanes that share the baseline's own activations, or (`ids` None) read none: one forward a block serves all."""
    finished, count = min(lane.finished for lane in lanes), len(model.skeleton.blocks)
    if finished == count:
        advance(count)
        return
    stream = None if ids is None else _stream(model, lanes, ids, shell, settings, finished)
    start = finished if stream is None else stream.position
    advance(start)
    for index in range(start, count):
        began = time.monotonic()
        waiting = [lane for lane in lanes if lane.finished <= index]
        block = Block(model, index, settings.dtype, settings.device, keep=bool(waiting))
        tap = _no_tap if stream is None or not waiting else _shared_tap(block, waiting, shell, stream, settings)
        common = time.monotonic() - began
        for lane in waiting:
            began = time.monotonic()
            states = None if stream is None else _states_of(block, stream, shell)
            changed = moving(lane.plan, block) or tuned(block, lane.plan)
            lane.quantize(_copied(block) if changed else block, tap, states, live=False)
            lane.seconds += time.monotonic() - began + common / len(waiting)
        block.stored.clear()
        if stream is not None and index < count - 1:
            stream.advance(block, shell)
        advance()
    if stream is not None:
        stream.close()


def _copied(block: Block) -> Block:
    """The block with weights of its own, since moves change them."""
    other = copy.copy(block)
    other.stored = {name: value.clone() for name, value in block.stored.items()}
    other.module = copy.deepcopy(block.module)
    return other


def _no_tap(groups: Sequence[InputGroup], wanted: frozenset[str]) -> dict[str, Stats]:
    raise AssertionError(f"{[group.name for group in groups]} want {sorted(wanted)}, but there is no calibration text")


def _shared_tap(block: Block, lanes: Sequence[Lane], shell: Shell, stream: Stream, settings: Settings) -> Tap:
    """One pass for all lanes where the Hessians of all groups fit into memory, else passes by chunk and lane."""
    fed: list[InputGroup] = []
    union: frozenset[str] = frozenset()
    for group in block.structure.groups:
        wanted = frozenset().union(*(needs(lane.plan, [group], moves=True, rounds=True) for lane in lanes)) & GATHERED
        fed += [group] if wanted else []
        union |= wanted
    tap = _tap_of(block, stream, shell, forced=settings.forced)
    if not fed or len(chunks(fed, settings.max_memory or UNLIMITED, union)) > 1:
        return tap
    gathered = tap(fed, union)
    return lambda groups, wanted: {group.name: _only(gathered[group.name], wanted) for group in groups}


def _only(stats: Stats, wanted: frozenset[str]) -> Stats:
    """What one lane asked for, as if it were alone."""
    kept = {name: getattr(stats, name) if name in wanted else None for name in GATHERED}
    return Stats(stats.count, weight=stats.weight, **kept)
