"""What the experiments about calibration share: two halves of the failing prompts, measuring, and what it cost.

Whatever is fitted to failing prompts is fitted to one half of the documents and measured on the other.
"""

import hashlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from subeight.diagnose.case import Case
from subeight.evals.loss import Loss, recovered
from subeight.evals.stats import Interval
from subeight.models.align import align
from subeight.models.block import Block
from subeight.models.gauge import Gauge
from subeight.models.model import Model
from subeight.models.structure import InputGroup
from subeight.probe.pairs import Pair
from subeight.probe.probe import Probe, Spent
from subeight.probe.swaps import Swaps
from subeight.probe.watching import run_watched
from subeight.text import Sample

SHARE = 0.1  # of the loss: the least that is worth naming
Mask = npt.NDArray[np.bool_]


def is_guilty(share: Interval) -> bool:
    """Whether an experiment recovered a share that is worth naming, and surely more than nothing."""
    return share.value >= SHARE and share.low > 0


@dataclass
class Trial:
    """The case, cut in halves by document: what is fitted sees the one, what is reported was measured on the other."""

    case: Case
    spent: Spent = field(default_factory=Spent)

    @cached_property
    def prompts(self) -> list[Sample]:
        """The sample behind each entry of the loss."""
        sequences = self.case.question.sequences
        scored = [sample for sample in sequences.samples[: sequences.scored] if sample.count]
        if len(scored) == len(self.case.loss.total):
            return scored
        asked = self.case.question.evaluation.samples
        chosen = [sample for sample in asked if sample.choices is not None and sample.answer is not None]
        return chosen if len(chosen) == len(self.case.loss.total) else list(asked)[: len(self.case.loss.total)]

    @cached_property
    def fitted(self) -> frozenset[str]:
        """The documents of the first half: every second one of each category, in an order of the seed."""
        found: set[str] = set()
        for category in sorted({sample.category for sample in self.prompts}):
            documents = {sample.document for sample in self.prompts if sample.category == category}
            ordered = sorted(documents, key=self._salted)
            found |= set(ordered[: len(ordered) // 2])
        return frozenset(found)

    def _salted(self, document: str) -> bytes:
        return hashlib.sha256(f"{self.case.settings.seed}\n{document}".encode()).digest()

    @cached_property
    def held(self) -> Mask:
        """Which prompts are held out for measuring."""
        return np.array([sample.document not in self.fitted for sample in self.prompts])

    @cached_property
    def gauge(self) -> Gauge:
        case = self.case
        return case.gauge or align(case.baseline, case.candidate, device=case.computing.device)

    @cached_property
    def probe(self) -> Probe:
        """The case's probe, in which its repairs so far hold."""
        return self.case.probe(gauge=self.gauge)

    def measure(self, candidate: Model, *, remade: bool = False) -> Loss:
        """The loss of another candidate on the failing prompts, with the repairs so far.

        One that was `remade` may have a gauge of its own; others have the case's.
        """
        self.spent.evaluations += 1
        self.spent.block_forwards += len(candidate.skeleton.blocks)
        if not self.case.swaps:
            return self.case.measure(candidate)
        gauge = align(self.case.baseline, candidate, device=self.case.computing.device) if remade else self.gauge
        return self.case.probe(candidate=candidate, gauge=gauge).whole()

    def restore(self, swaps: Swaps) -> Loss:
        """The loss of the candidate with these places restored besides the repairs so far."""
        before = Spent(self.probe.spent.evaluations, self.probe.spent.block_forwards)
        loss = self.probe.restore(swaps)
        self.spent.evaluations += self.probe.spent.evaluations - before.evaluations
        self.spent.block_forwards += self.probe.spent.block_forwards - before.block_forwards
        return loss

    def share(self, after: Loss, *, before: Loss | None = None, mask: Mask | None = None) -> Interval:
        """The share of the whole loss that is recovered, on the prompts of the mask."""
        case, first = self.case, self.case.loss if before is None else before
        whole = case.whole if len(case.whole.total) == len(first.total) else case.loss
        if mask is not None:
            first, after, whole = first.only(mask), after.only(mask), whole.only(mask)
        return recovered(first, after, whole, case.settings.seed)

    def walk(self, look: "Look", *, rounded: bool = True) -> None:
        """Streams the failing prompts through the candidate; `look` meets every input on the way.

        With `rounded=False` the inputs are shown as they are before they are rounded.
        """
        probe, base = self.probe, self.case.swaps
        shell = probe.shells.mixed(base, restore=True)
        states = [shell.embed(batch.ids) for batch in probe.batches]
        for index in range(len(probe.pairs)):
            pair = probe.pairs[index]
            with pair.restored(base) as block:
                for number, state in enumerate(states):
                    states[number] = self._step(block, pair, number, state, look, rounded)
        self.spent.block_forwards += len(probe.pairs) * (1 if rounded else 2)

    def _step(self, block: Block, pair: Pair, number: int, state: Tensor, look: "Look", rounded: bool) -> Tensor:
        call = self.probe.call(number, block.index)
        real, fit = self._cells[number]

        def shown(group: InputGroup, rows: Tensor, cells: Tensor | None) -> None:
            every = torch.ones(len(rows), dtype=torch.bool, device=rows.device)
            kept = every if cells is None else real.to(rows.device)[cells]
            mine = every if cells is None else fit.to(rows.device)[cells]
            look(pair, group, rows[kept], mine[kept])

        if rounded:
            return run_watched(block, state, call, shown)
        with _unrounded(block):
            run_watched(block, state, call, shown)
        return block(state, call)

    @cached_property
    def _cells(self) -> list[tuple[Tensor, Tensor]]:
        """Per batch which cells are no padding, and which belong to the half that is fitted."""
        samples = self.case.question.sequences.samples
        found = []
        for batch in self.probe.batches:
            real = torch.arange(batch.ids.shape[1])[None] < batch.lengths[:, None]
            fit = torch.tensor([samples[index].document in self.fitted for index in batch.index])
            found.append((real.flatten(), (real & fit[:, None]).flatten()))
        return found


# (both versions of the block, the group, its input as rows [n, width], which rows belong to the half that is fitted)
Look = Callable[[Pair, InputGroup, Tensor, Tensor], None]


@contextmanager
def _unrounded(block: Block) -> Iterator[None]:
    with block.replaced({}, {}):
        yield
