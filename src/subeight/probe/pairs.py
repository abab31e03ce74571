"""The two versions of every block, the candidate's and the baseline's in its gauge, and mixtures of them."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from subeight.evals.passes import Computing
from subeight.models.block import Block
from subeight.models.gauge import Gauge
from subeight.models.model import Model
from subeight.models.structure import LinearView
from subeight.probe.swaps import Swaps


@dataclass(frozen=True)
class Pair:
    """One block twice: as the candidate has it, and as the baseline does, aligned to it."""

    candidate: Block
    baseline: Block

    @property
    def nbytes(self) -> int:
        """What both hold in memory."""
        blocks = (self.candidate, self.baseline)
        return sum(p.numel() * p.element_size() for block in blocks for p in block.module.parameters())

    @contextmanager
    def restored(self, swaps: Swaps) -> Iterator[Block]:
        """The candidate's block with some places the baseline's."""
        inputs = {name: how for name, how in self.candidate.inputs.items() if name not in swaps.inputs}
        with _mixed(self.candidate, self.baseline, swaps, inputs) as block:
            yield block

    @contextmanager
    def damaged(self, swaps: Swaps) -> Iterator[Block]:
        """The baseline's block with some places the candidate's."""
        inputs = {name: how for name, how in self.candidate.inputs.items() if name in swaps.inputs}
        with _mixed(self.baseline, self.candidate, swaps, inputs) as block:
            yield block


@contextmanager
def _mixed(block: Block, other: Block, swaps: Swaps, inputs: dict) -> Iterator[Block]:
    """`block`, computing with the other's weights where `swaps` says so."""
    replaced: dict[str, Tensor] = {}
    for view in block.structure.linears():
        given = swaps.given.get(view.info.name)
        if given is not None or view.info.name in swaps.weights:
            _place(block, other, view, given, replaced)
    for name in block.parameters():
        if name in swaps.parameters:
            replaced[name] = other.parameter(name)
    with block.replaced(replaced, inputs):
        yield block


def _place(block: Block, other: Block, view: LinearView, given: Tensor | None, replaced: dict[str, Tensor]) -> None:
    """Puts one linear's weight into `replaced`; experts and parts of fused weights share a parameter with others."""
    whole = view.expert is None and view.rows is None
    if whole and given is None:
        replaced[view.parameter] = other.parameter(view.parameter)
        return
    if view.parameter not in replaced:
        replaced[view.parameter] = block.parameter(view.parameter).clone()
    target = view.of(replaced[view.parameter])
    target.copy_(other.weight(view) if given is None else given.to(target.device, target.dtype))


@contextmanager
def computing_with(block: Block, weights: Mapping[str, Tensor]) -> Iterator[Block]:
    """`block`, computing with other weights [out, in] for some of its linears, while it lasts."""
    replaced: dict[str, Tensor] = {}
    for view in block.structure.linears():
        if view.info.name in weights:
            _place(block, block, view, weights[view.info.name], replaced)
    with block.replaced(replaced, block.inputs):
        yield block


def aligned_block(baseline: Model, gauge: Gauge | None, computing: Computing, index: int) -> Block:
    """A block of the baseline in a gauge, where it is rounded once, from float32, as the candidate was."""
    moved = gauge is not None and gauge.is_moved
    block = Block(baseline, index, torch.float32 if moved else computing.dtype, computing.device)
    if gauge is not None:
        gauge.apply(block)
    block.to(computing.dtype)
    return block


class Pairs:
    """The pairs of all blocks, kept in memory up to a limit, the last ones longest, and read again where they went."""

    def __init__(
        self, baseline: Model, candidate: Model, gauge: Gauge, computing: Computing, limit: int | None = None
    ) -> None:
        self._models = (baseline, candidate)
        self._gauge = gauge
        self._computing = computing
        self._limit = limit
        self._kept: dict[int, Pair] = {}

    def __len__(self) -> int:
        return len(self._models[1].skeleton.blocks)

    @property
    def all_fit(self) -> bool:
        """Whether no pair has to go for another."""
        return self._limit is None or self[0].nbytes * len(self) <= self._limit

    def __getitem__(self, index: int) -> Pair:
        if index in self._kept:
            return self._kept[index]
        pair = self._load(index)
        self._kept[index] = pair
        while self._limit is not None and len(self._kept) > 1 and pair.nbytes * len(self._kept) > self._limit:
            del self._kept[min(other for other in self._kept if other != index)]
        return pair

    def _load(self, index: int) -> Pair:
        baseline, candidate = self._models
        dtype, device = self._computing.dtype, self._computing.device
        return Pair(
            Block(candidate, index, dtype, device), aligned_block(baseline, self._gauge, self._computing, index)
        )
