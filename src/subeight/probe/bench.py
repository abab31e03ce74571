"""Many variants of one place, measured together: they share the states in front of it, the suffix behind it, and the
baseline's softmax.

A variant is one model with other weights for a few linears of one block (or for embeddings or head). All variants go
through the suffix in one packed batch, and so does the model without any change where a control is wanted.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from subeight.evals.divergence import divergences
from subeight.evals.loss import Loss
from subeight.evals.passes import Computing, Pass, Sequences, places_of
from subeight.evals.scoring import Question, loss_of
from subeight.models.block import Block
from subeight.models.gauge import Gauge
from subeight.models.model import Model
from subeight.models.shell import Head, Shell
from subeight.probe.pairs import aligned_block, computing_with
from subeight.probe.trail import Trail
from subeight.text import EvaluationSet

Variant = Mapping[str, Tensor]  # other weights [out, in] by the linear's name

_ALIKE = 0.9  # lengths in a batch, the shortest over the longest
_PACKED = 8192  # tokens that go through a block at once


class Suffixes:
    """A model's blocks and shell, in a gauge where one is given; blocks stay in memory up to `max_memory` bytes.

    What is measured runs from some block to the last one, again and again, so the last ones stay.
    """

    def __init__(
        self, model: Model, computing: Computing, *, gauge: Gauge | None = None, max_memory: int | None = None
    ) -> None:
        self.model = model
        self.computing = computing
        self.shell = Shell(model, computing.dtype, computing.device)
        if gauge is not None:
            gauge.shell(self.shell)
        self.head: Head = self.shell.head()
        self._gauge = gauge
        self._limit = max_memory
        self._kept: dict[int, Block] = {}
        self._shell_names = set(model.skeleton.shell_parameters())

    def __len__(self) -> int:
        return len(self.model.skeleton.blocks)

    def __getitem__(self, index: int) -> Block:
        if index not in self._kept:
            block = aligned_block(self.model, self._gauge, self.computing, index)
            self._kept[index] = block
            size = sum(p.numel() * p.element_size() for p in block.module.parameters())
            while self._limit is not None and len(self._kept) > 1 and size * len(self._kept) > self._limit:
                del self._kept[min(other for other in self._kept if other != index)]
        return self._kept[index]

    def keep_shell(self, variant: Variant) -> None:
        """Computes with these embeddings or this head from now on."""
        self.shell = self.shell_with(variant)
        self.head = self.shell.head()

    def shell_with(self, variant: Variant) -> Shell:
        """The shell, with other embeddings or another head; the block calls of both are the same.

        A head that is tied to the embeddings goes with them.
        """
        shell = Shell(self.model, self.computing.dtype, self.computing.device, weights=False)
        given = {self.shell.parameter(f"{name}.weight").data_ptr(): value for name, value in variant.items()}
        for name in self._shell_names:
            own = self.shell.parameter(name)
            shell.replace(name, given.get(own.data_ptr(), own))
        return shell


def sequences_of(samples: EvaluationSet) -> Sequences:
    """The samples as a bench runs them: hardly padded, since variants fill a batch anyway."""
    return replace(Sequences.of(samples), least=_ALIKE)


@dataclass
class Cost:
    """What was computed: runs of one block over one token."""

    token_blocks: int = 0


class Bench:
    """Measures variants of one model on some samples against another model's final states.

    `against` None: the loss is the distance from the model itself, unchanged (damage). Otherwise it is the distance
    from the bench given, of the exact baseline on the same samples (rescue).
    """

    def __init__(
        self, suffixes: Suffixes, samples: EvaluationSet, *, metric: str = "kl", against: "Bench | None" = None
    ) -> None:
        self.suffixes = suffixes
        self.metric = metric
        self.cost = Cost()
        self._evaluation = samples
        self.sequences = sequences_of(samples)
        self.batches = self.sequences.batches()
        self._against = against or self
        self._trail = Trail(suffixes.computing)  # the unchanged model's
        self._own: Pass | None = None

    def whole(self) -> Pass:
        """The unchanged model's final states in front of every scored token, and its head."""
        if self._own is None:
            hidden = [self._final(self.suffixes.shell, state, n) for n, state in enumerate(self.states(self._end))]
            self._own = Pass(hidden, self.suffixes.head)
        return self._own

    def measure(self, index: int, variants: Sequence[Variant]) -> list[Loss]:
        """The loss of each variant of block `index` (-1: embeddings, tied head included; number of blocks: head)."""
        size = max(1, _PACKED // max(batch.ids.numel() for batch in self.batches))
        packs = [variants[start : start + size] for start in range(0, len(variants), size)]
        return [loss for pack in packs for loss in self._measure(index, pack)]

    def mixed(self, weights_of: Callable[[int], Variant]) -> Loss:
        """The loss of a model with other weights in every block; `weights_of` gives them block by block."""
        shell = self.suffixes.shell
        states = [shell.embed(batch.ids) for batch in self.batches]
        for index in range(self._end):
            with computing_with(self.suffixes[index], weights_of(index)) as block:
                states = [self._advanced(block, state, index) for state in states]
        hidden = [[self._final(shell, state, number)] for number, state in enumerate(states)]
        return self._losses(hidden, [self.suffixes.head])[0]

    @property
    def _end(self) -> int:
        return len(self.suffixes)

    @property
    def tokens(self) -> int:
        """Tokens of all samples, padding included: what one run of a block costs."""
        return sum(batch.ids.numel() for batch in self.batches)

    def _measure(self, index: int, variants: Sequence[Variant]) -> list[Loss]:
        shells = [self.suffixes.shell] * len(variants)
        if not 0 <= index < self._end:
            shells = [self.suffixes.shell_with(variant) for variant in variants]
        heads = [self.suffixes.head if shell is self.suffixes.shell else shell.head() for shell in shells]
        packed = self._started(index, variants, shells)
        for after in range(max(index + 1, 0), self._end):
            block = self.suffixes[after]  # where it is not kept it is read, once for all batches
            packed = [self._advanced(block, state, after) for state in packed]
        hidden: list[list[Tensor]] = []  # [batch][variant]
        for number, state in enumerate(packed):
            parts = state.chunk(len(variants))
            hidden.append([self._final(shell, part, number) for shell, part in zip(shells, parts, strict=True)])
        return self._losses(hidden, heads)

    def _started(self, index: int, variants: Sequence[Variant], shells: Sequence[Shell]) -> list[Tensor]:
        """The states behind the place [variants x rows, length, width], of each batch."""
        if index < 0:
            return [torch.cat([shell.embed(batch.ids) for shell in shells]) for batch in self.batches]
        states = self.states(index)
        if index >= self._end:
            return [torch.cat([state] * len(variants)) for state in states]
        parts: list[list[Tensor]] = [[] for _ in states]
        for variant in variants:
            with computing_with(self.suffixes[index], variant) as block:
                for state, mine in zip(states, parts, strict=True):
                    mine.append(self._advanced(block, state, index))
        return [torch.cat(mine) for mine in parts]

    def _advanced(self, block: Block, state: Tensor, index: int) -> Tensor:
        self.cost.token_blocks += state.shape[0] * state.shape[1]
        return block(state, self.suffixes.shell.call(tuple(state.shape[:2]), index))

    def states(self, index: int) -> list[Tensor]:
        """The unchanged model's states in front of block `index`, batch by batch [rows, length, width]."""
        if not len(self._trail):
            self._trail.append(self.suffixes.shell.embed(batch.ids) for batch in self.batches)
        while len(self._trail) <= index:
            at = len(self._trail) - 1
            block = self.suffixes[at]
            self._trail.append(self._advanced(block, state, at) for state in self._trail[at])
        return self._trail[index]

    def _final(self, shell: Shell, state: Tensor, number: int) -> Tensor:
        rows, columns = places_of(self.batches[number])
        final = shell.finish(state)
        return final[rows.to(final.device), columns.to(final.device) - 1]

    def _losses(self, hidden: list[list[Tensor]], heads: list[Head]) -> list[Loss]:
        reference = self._against.whole()
        if self.metric == "choices":
            question = self._question(reference)
            return [
                loss_of(question, Pass([parts[at] for parts in hidden], head), self.metric)
                for at, head in enumerate(heads)
            ]
        samples = self.sequences.samples
        totals = torch.zeros(len(heads), len(samples), dtype=torch.float64)
        for number, batch in enumerate(self.batches):
            rows, columns = places_of(batch)
            found = divergences(
                reference.hidden[number], hidden[number], [reference.head, *heads], batch.ids[rows, columns]
            )
            values = found.kl if self.metric == "kl" else found.nll
            totals.index_add_(1, torch.tensor(batch.index)[rows], values)
        counts = torch.tensor([sample.count for sample in samples], dtype=torch.float64).numpy()
        categories = [sample.category for sample in samples]
        return [Loss.of(total.numpy(), counts, categories) for total in totals]

    def _question(self, reference: Pass) -> Question:
        suffixes = self._against.suffixes
        return Question(suffixes.model, self._evaluation, self.sequences, reference, suffixes.computing, None, [])
