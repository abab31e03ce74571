"""One variable at a time: some places restored in the candidate, or quantized alone in the baseline, and measured.

The states in front of every block are computed once for each of the two models; a measurement starts at the first
block that it touches and recomputes only what follows. What it costs is counted in runs of one block over all prompts.
"""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from subeight.evals.checks import Check
from subeight.evals.loss import Loss
from subeight.evals.passes import Computing, Pass, places_of
from subeight.evals.scoring import Question, loss_of
from subeight.models.block import Block
from subeight.models.gauge import Gauge
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.streamed import Streamed
from subeight.models.whole import Whole
from subeight.probe.ends import Shells
from subeight.probe.pairs import Pairs
from subeight.probe.prior import Effects, effects_of
from subeight.probe.swaps import Swaps
from subeight.probe.trail import SHARE, Trail


@dataclass
class Spent:
    """What measuring cost so far: losses of a whole model, and runs of one block over all prompts."""

    evaluations: int = 0
    block_forwards: float = 0.0


class Probe:
    """Measures mixtures of a candidate and its baseline on the prompts of one question.

    Args:
        baseline, candidate: two versions of one architecture; `gauge` brings the baseline's weights into the
            candidate's (`models.align`).
        base: what is restored in every measurement (the repairs so far).
        max_memory: bytes that both models' blocks may take; None keeps all of them.
    """

    def __init__(
        self,
        baseline: Model,
        candidate: Model,
        gauge: Gauge,
        question: Question,
        computing: Computing,
        *,
        metric: str = "kl",
        base: Swaps | None = None,
        max_memory: int | None = None,
    ) -> None:
        self.candidate = candidate
        self.question = question
        self.metric = metric
        self.spent = Spent()
        self.pairs = Pairs(baseline, candidate, gauge, computing, max_memory)
        self.shells = Shells(baseline, candidate, gauge, computing)
        self.batches = question.sequences.batches()
        self._place = {linear.name: linear.block for linear in candidate.linears}
        self._base = {True: base or Swaps(), False: Swaps()}
        self._trails = {True: Trail(computing), False: Trail(computing)}
        self._computing = computing
        self._prefix = f"{candidate.skeleton.blocks_name}."

    def whole(self) -> Loss:
        """The loss of the candidate, with what `base` restores."""
        return self.restore(Swaps())

    def restore(self, swaps: Swaps) -> Loss:
        """The loss of the candidate where these places are the baseline's."""
        return self._measure(swaps, restore=True)

    def damage(self, swaps: Swaps) -> Loss:
        """The loss of the baseline where these places are the candidate's."""
        return self._measure(swaps, restore=False)

    def effects(self) -> Effects:
        """How strongly each linear's difference shows in the residual stream; one watched pass of the candidate."""
        trail = self._trails[True] = Trail(self._computing)
        trail.append(self._embedded(self.shells.mixed(self._base[True], restore=True)))
        found = Effects({})
        for index in range(len(self.pairs)):
            calls = [self.call(number, index) for number in range(len(self.batches))]
            states, part = effects_of(self.pairs[index], trail[index], calls, self.batches, self._base[True])
            trail.append(states)
            found = found | part
            self.spent.block_forwards += 2  # the block, and its differences' products once more
        return found

    def first_block(self, swaps: Swaps) -> int:
        """The first block whose computation these swaps change; the number of blocks where none is."""
        if self.shells.before(swaps):
            return 0
        return min((self._block_of(name) for name in swaps.names), default=len(self.pairs))

    def call(self, batch: int, index: int, *, restore: bool = True) -> tuple[tuple, dict]:
        """The other arguments of block `index` for a batch."""
        shell = self.shells.candidate if restore else self.shells.baseline
        return shell.call(tuple(self.batches[batch].ids.shape), index)

    def _block_of(self, name: str) -> int:
        block = self._place.get(name)
        if block is None and name.startswith(self._prefix):
            block = int(name.removeprefix(self._prefix).split(".")[0])
        return len(self.pairs) if block is None else block

    def _measure(self, swaps: Swaps, *, restore: bool) -> Loss:
        both = self._base[True] | swaps if restore else swaps
        shell = self.shells.mixed(both, restore=restore)
        self.spent.evaluations += 1
        if self.question.check is not None:
            return self._checked(self.question.check, both, shell, restore=restore)
        start = self.first_block(swaps)
        if start == 0 and self.shells.before(swaps):
            states = self._embedded(shell)
        else:
            states = self._trail_to(start, restore=restore)
        for index in range(start, len(self.pairs)):
            states = self._advance(states, index, both, restore=restore)
        return loss_of(self.question, self._finished(shell, states), self.metric)

    def _checked(self, check: Check, swaps: Swaps, shell: Shell, *, restore: bool) -> Loss:
        """The share of answers that a whole mixture gets wrong; its blocks stay in memory where all of them may."""
        self.spent.block_forwards += len(self.pairs)

        @contextmanager
        def mixed(index: int) -> Iterator[Block]:
            pair = self.pairs[index]
            with pair.restored(swaps) if restore else pair.damaged(swaps) as block:
                yield block

        if not self.pairs.all_fit:
            return check.loss(Streamed(self.candidate, shell, room=self._computing.room // SHARE, block=mixed))
        with ExitStack() as stack:
            blocks = [stack.enter_context(mixed(index)) for index in range(len(self.pairs))]
            return check.loss(Whole.of(self.candidate, blocks, shell))

    def _trail_to(self, index: int, *, restore: bool) -> list[Tensor]:
        """The states in front of a block of the candidate (as `base` has it) or of the baseline."""
        trail, base = self._trails[restore], self._base[restore]
        if not len(trail):
            trail.append(self._embedded(self.shells.mixed(base, restore=restore)))
        while len(trail) <= index:
            at = len(trail) - 1
            trail.append(self._advance(trail[at], at, base, restore=restore))
        return trail[index]

    def _embedded(self, shell: Shell) -> list[Tensor]:
        return [shell.embed(batch.ids) for batch in self.batches]

    def _advance(self, states: list[Tensor], index: int, swaps: Swaps, *, restore: bool) -> list[Tensor]:
        pair = self.pairs[index]
        self.spent.block_forwards += 1
        with pair.restored(swaps) if restore else pair.damaged(swaps) as block:
            return [block(state, self.call(n, index, restore=restore)) for n, state in enumerate(states)]

    def _finished(self, shell: Shell, states: list[Tensor]) -> Pass:
        hidden = []
        for state, batch in zip(states, self.batches, strict=True):
            rows, columns = places_of(batch)
            final = shell.finish(state)
            hidden.append(final[rows.to(final.device), columns.to(final.device) - 1])
        return Pass(hidden, shell.head())


@torch.no_grad()
def aligned_weight(probe: Probe, name: str) -> Tensor:
    """The baseline's weight [out, in] of a linear in the candidate's gauge, float32."""
    block = probe._place[name]
    if block is None:
        return probe.shells.baseline.parameter(f"{name}.weight").float()
    pair = probe.pairs[block]
    view = next(view for view in pair.baseline.structure.linears() if view.info.name == name)
    return pair.baseline.weight(view).float()
