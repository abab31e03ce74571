"""The one loop: block after block, tap -> move -> select apart -> round -> fit apart -> write -> advance.

Any number of recipes go through it together. Recipes whose statistics are the baseline's own (`tap: exact`) share one
stream and one pass; every other recipe has its own stream, whose activations have met what was quantized before.
"""

import copy
import time
from collections.abc import Callable, Iterator, Sequence

from torch import Tensor

from subeight.engine.job import Job, Settings
from subeight.engine.lane import Lane
from subeight.engine.rounding import needs
from subeight.engine.streams import DiskStream, MemoryStream, Stream, embedded
from subeight.models.block import Block
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.stats import Stats
from subeight.models.tap import chunks, gather
from subeight.records.progress import progress


def run(model: Model, jobs: Sequence[Job], ids: Tensor | None, settings: Settings) -> list[Lane]:
    """Carries out the jobs on calibration ids [sequences, length]; None where no method needs any.

    Finished blocks of an earlier, interrupted run in the same directories are not done again; the result has the
    same bytes as an uninterrupted run's on the same machine, stack and thread count.
    """
    lanes = [Lane(model, job, settings) for job in jobs]
    exact = [lane for lane in lanes if ids is None or lane.plan.tap == "exact"]
    own = [lane for lane in lanes if lane not in exact]
    blocks = len(model.skeleton.blocks)
    shell = Shell(model, settings.dtype, settings.device, weights=ids is not None)
    what = f"Quantizing {model.label}" + (f" by {len(lanes)} recipes" if len(lanes) > 1 else "")
    with progress(blocks * (len(own) + bool(exact)), what, "blocks", quiet=settings.quiet) as advance:
        if exact:
            _run_exact(model, exact, ids, shell, settings, advance)
        for lane in own:
            assert ids is not None
            _run_own(model, lane, ids, shell, settings, advance)
    for lane in lanes:
        lane.write_shell()
    return lanes


def _stream(name: str, ids: Tensor, shell: Shell, settings: Settings, limit: int) -> Stream:
    def first() -> Iterator[Tensor]:
        return embedded(shell, ids, settings.batch)

    if settings.scratch is None:
        return MemoryStream(list(first()))
    return DiskStream(settings.scratch / name, first, limit)


def _run_own(
    model: Model, lane: Lane, ids: Tensor, shell: Shell, settings: Settings, advance: Callable[..., None]
) -> None:
    finished = lane.finished
    stream = _stream(f"stream-{lane.plan.fingerprint}", ids, shell, settings, finished)
    advance(stream.position)
    last = len(model.skeleton.blocks) - 1
    for index in range(stream.position, len(model.skeleton.blocks)):
        began = time.monotonic()
        if index < finished:
            block = Block(model, index, settings.dtype, settings.device, written=lane.written(index))
        else:
            block = Block(model, index, settings.dtype, settings.device, keep=True)
            lane.quantize(block, shell, stream)
            block.stored.clear()
        if index < last:
            stream.advance(block, shell)
        lane.seconds += time.monotonic() - began
        advance()


def _run_exact(
    model: Model,
    lanes: list[Lane],
    ids: Tensor | None,
    shell: Shell,
    settings: Settings,
    advance: Callable[..., None],
) -> None:
    """Lanes that share the baseline's own activations: one forward a block serves taps and advance together."""
    finished = min(lane.finished for lane in lanes)
    stream = None if ids is None else _stream("stream-exact", ids, shell, settings, finished)
    start = finished if stream is None else stream.position
    advance(start)
    last = len(model.skeleton.blocks) - 1
    for index in range(start, len(model.skeleton.blocks)):
        began = time.monotonic()
        waiting = [lane for lane in lanes if lane.finished <= index]
        block = Block(model, index, settings.dtype, settings.device, keep=bool(waiting))
        stats: dict[str, Stats] = {}
        if stream is not None:
            stats = _tap_exact(block, waiting, shell, stream, settings, forward=index < last)
        common = time.monotonic() - began
        for number, lane in enumerate(waiting):
            mine = block if number == len(waiting) - 1 else _copied(block)
            began = time.monotonic()
            lane.quantize_exact(mine, stats)
            lane.seconds += time.monotonic() - began + common / len(waiting)
        advance()


def _copied(block: Block) -> Block:
    """The block with stored weights of its own, since moves change them."""
    other = copy.copy(block)
    other.stored = {name: value.clone() for name, value in block.stored.items()}
    other.module = copy.deepcopy(block.module)
    return other


def _tap_exact(
    block: Block, lanes: list[Lane], shell: Shell, stream: Stream, settings: Settings, *, forward: bool
) -> dict[str, Stats]:
    groups = list(block.structure.groups)
    wanted = frozenset().union(*(needs(lane.plan, groups, moves=True, rounds=True) for lane in lanes))
    stats: dict[str, Stats] = {}
    if wanted:
        for part in chunks(groups, settings.max_memory or (1 << 62), wanted):
            stats |= gather(block, part, stream.batches(shell, block.index), wanted)
    if forward:
        stream.advance(block, shell)
    return stats
