"""The gauge of a model: which of the many weights that compute one function it has.

Scales can be moved between a norm or a linear and its readers, and the residual stream of pre-norm blocks can be
rotated (https://arxiv.org/abs/2404.00456), without a change of the function. Two models can be compared weight by
weight, or swap them, only in one gauge: `align.py` finds how a candidate's was moved, from its weights alone, and the
`Gauge` brings the baseline's blocks there.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from subeight.models.block import Block
from subeight.models.folds import Fold, apply
from subeight.models.shell import Shell


@dataclass(frozen=True)
class Ends:
    """Full names of the parameters at both ends of the residual stream; None where there is no such single one."""

    embedding: str
    norm: str | None
    head: str
    offset: float = 0.0
    bias: str | None = None  # the norm's


@dataclass(frozen=True)
class BlockGauge:
    """How one block is brought into the gauge: norms that are folded before it is rotated, then scales per fold."""

    norms: tuple[Fold, ...] = ()
    scales: tuple[tuple[Fold, Tensor], ...] = ()


@dataclass(frozen=True)
class Gauge:
    """The candidate's gauge, for the baseline's weights.

    Attributes:
        rotation: [width, width] of the residual stream, where the candidate's is rotated.
        findings: what could not be aligned: a sentence for each linear or parameter, by name.
        differences: what is left between candidate and aligned baseline, relative, by name.
    """

    rotation: Tensor | None
    blocks: tuple[BlockGauge, ...]
    ends: Ends
    final: Tensor | None
    findings: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)

    @property
    def is_moved(self) -> bool:
        """Whether the candidate's gauge is not the baseline's."""
        ends = self.rotation is not None or self.final is not None
        return ends or any(block.scales for block in self.blocks)

    def apply(self, block: Block) -> None:
        """Brings a block of the baseline, just loaded, into the gauge; in bfloat16 its weights are rounded anew."""
        gauge = self.blocks[block.index]
        if self.rotation is not None:
            rotate(block, gauge.norms, self.rotation)
        for fold, s in gauge.scales:
            apply(block, fold, s)

    def shell(self, shell: Shell) -> None:
        """Brings embeddings, last norm and head of the baseline into the gauge; a tied head is untied for it."""
        ends = self.ends
        if ends.norm is None or (self.rotation is None and self.final is None):
            return
        if self.rotation is not None:
            turn = self.rotation.to(shell.device)
            gain = shell.parameter(ends.norm).float() + ends.offset
            head, embedding = shell.parameter(ends.head), shell.parameter(ends.embedding)
            shell.replace(ends.head, (head.float() * gain) @ turn)
            shell.replace(ends.embedding, embedding.float() @ turn)
            shell.replace(ends.norm, torch.full_like(gain, 1 - ends.offset))
        if self.final is not None:
            s = self.final.to(shell.device)
            shell.replace(ends.norm, (shell.parameter(ends.norm).float() + ends.offset) / s - ends.offset)
            shell.replace(ends.head, shell.parameter(ends.head).float() * s)
            if ends.bias is not None:
                shell.replace(ends.bias, shell.parameter(ends.bias).float() / s)


def rotate(block: Block, norms: tuple[Fold, ...], rotation: Tensor) -> None:
    """Rotates the residual stream of a block in place: norms into their readers, readers and writers turned."""
    get = block.stored.__getitem__ if block.stored else block.parameter
    turn = rotation.to(block.device)
    readers = {view.info.name for fold in norms for view in fold.readers}
    for fold in norms:
        weight = get(f"{fold.producer}.weight")
        gain = weight.to(turn.device).float() + fold.offset
        for view in fold.readers:
            value = view.of(get(view.parameter))
            value.copy_((value.to(turn.device).float() * gain) @ turn)
        weight.fill_(1 - fold.offset)
    for view in block.structure.linears():
        if view.info.name in readers or view.info.shape[0] != len(turn):
            continue
        value = view.of(get(view.parameter))
        value.copy_(turn.T @ value.to(turn.device).float())
        if view.bias is not None:
            bias = get(view.bias)
            bias.copy_(bias.to(turn.device).float() @ turn)
    for name, value in block.stored.items():
        block.parameter(name).copy_(value)
