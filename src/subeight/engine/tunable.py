"""A quantized model with fixed codes as a function of its continuous parameters, with gradients, block by block.

Memory: the codes, what each block reads of the sequences of one step, one block's graph, and the blocks themselves if
they are resident; else one at a time, read from the disk once forward and once backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from subeight.evals.divergence import mean_divergence
from subeight.formats import QTensor
from subeight.formats.scales import Scales, grouped, storable
from subeight.methods.polishing import Parameters
from subeight.models.block import Block
from subeight.models.calls import Call
from subeight.models.shell import Head, Shell

SCALES = "scales"
STEP = 8  # sequences whose loss is computed together


@dataclass
class Tunable:
    """The quantized model on its calibration text.

    `block` loads one as the loop left it, `codes` are its linears'; `targets` are the baseline's final hidden states of
    every sequence [sequences, length, width], `heads` the baseline's head and this model's own.
    """

    block: Callable[[int], Block]
    codes: Sequence[Mapping[str, QTensor]]
    shell: Shell
    ids: Tensor
    targets: Tensor
    heads: tuple[Head, Head]

    def start(self) -> dict[str, Tensor]:
        """The parameters as they are: effective scales of codes, and every vector of the blocks and the last norm."""
        found = {
            f"{name}.{SCALES}": _effective(weight).clone()
            for codes in self.codes
            for name, weight in codes.items()
            if weight.format.grid != "mxfp4"  # its scales are powers of two
        }
        for index in range(len(self.codes)):
            found |= _vectors(self.block(index))
        return found | {name: self.shell.parameter(name).float().clone() for name in self._outside()}

    def loss(self, parameters: Parameters, rows: list[int]) -> float:
        """Mean KL(baseline || this) of these sequences."""
        total = 0.0
        with torch.no_grad():
            for part in (rows[at : at + STEP] for at in range(0, len(rows), STEP)):
                hidden, _ = self._forward(parameters, part, keep=False)
                total += mean_divergence(self.targets[part], self.shell.finish(hidden), self.heads)[0] * len(part)
        return total / len(rows)

    def gradients(self, parameters: Parameters, rows: list[int]) -> tuple[float, dict[str, Tensor]]:
        """The loss, and its gradient to every parameter."""
        hidden, states = self._forward(parameters, rows, keep=True)
        outside = {name: self.shell.parameter(name).requires_grad_() for name in self._outside()}
        with torch.enable_grad():
            last = hidden.requires_grad_()
            final = self.shell.finish(last)
        loss, slope = mean_divergence(self.targets[rows], final.detach(), self.heads, slope=True)
        assert slope is not None
        back, *slopes = torch.autograd.grad(final, [last, *outside.values()], slope.to(final.dtype))
        found = dict(zip(outside, (value.float() for value in slopes), strict=True))
        for index in reversed(range(len(self.codes))):
            back, own = self._backward(parameters, index, states.pop(), back)
            found |= own
        return loss, {name: found[name] for name in parameters}

    def _outside(self) -> list[str]:
        return [name for name in self.shell.names() if self.shell.parameter(name).dim() == 1]

    def _forward(self, parameters: Parameters, rows: list[int], *, keep: bool) -> tuple[Tensor, list[Tensor]]:
        for name in self._outside():
            self.shell.replace(name, parameters[name])
        hidden, states = self.shell.embed(self.ids[rows]), []
        for index in range(len(self.codes)):
            if keep:
                states.append(hidden)
            hidden = self._placed(index, parameters)(hidden, self._call(rows, index))
        return hidden, states

    def _backward(
        self, parameters: Parameters, index: int, hidden: Tensor, slope: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        block = self._placed(index, parameters)
        names = block.parameters()
        inside = [block.parameter(name).requires_grad_() for name in names]
        with torch.enable_grad():
            first = hidden.detach().requires_grad_()
            output = block(first, self._call([0] * len(hidden), index))
            back, *slopes = torch.autograd.grad(output, [first, *inside], slope, allow_unused=True)
        for value in inside:
            value.requires_grad_(False)
        by_name = {name: value for name, value in zip(names, slopes, strict=True) if value is not None}
        found = {name: by_name.get(name) for name in names if name in parameters}
        for view in block.structure.linears():
            weight = self.codes[index].get(view.info.name)
            if weight is not None and f"{view.info.name}.{SCALES}" in parameters:
                whole = by_name.get(view.parameter)
                found[f"{view.info.name}.{SCALES}"] = None if whole is None else _to_scales(view.of(whole), weight)
        return back, {
            name: torch.zeros_like(parameters[name]) if slope is None else slope.float()
            for name, slope in found.items()
        }

    def _placed(self, index: int, parameters: Parameters) -> Block:
        """The block with these parameters, as they will be stored."""
        block = self.block(index)
        with torch.no_grad():
            for view in block.structure.linears():
                name = view.info.name
                if name in self.codes[index]:
                    block.set_weight(view, rescaled(name, self.codes[index][name], parameters).dequantize(block.dtype))
            for name in block.parameters():
                if name in parameters:
                    block.parameter(name).copy_(parameters[name])
        return block

    def _call(self, rows: Sequence[int], index: int) -> Call:
        return self.shell.call((len(rows), self.ids.shape[1]), index)


def rescaled(name: str, weight: QTensor, parameters: Parameters) -> QTensor:
    """The codes of the linear `name` with the scales of the parameters, as they are stored."""
    ideal = parameters.get(f"{name}.{SCALES}")
    if ideal is None:
        return weight
    return replace(weight, scales=storable(weight.format, ideal.clamp_min(0.0), weight.global_scale))


def _effective(weight: QTensor) -> Tensor:
    return Scales(weight.scales, weight.zeros, weight.global_scale).effective.float()


def _vectors(block: Block) -> dict[str, Tensor]:
    """Norms and biases of a block."""
    values = {name: block.parameter(name) for name in block.parameters()}
    return {name: value.float().clone() for name, value in values.items() if value.dim() == 1}


def _to_scales(slope: Tensor, weight: QTensor) -> Tensor:
    """The gradient to the effective scales, from that to the weight [out, in]."""
    values = grouped(weight.format.values.values(weight.codes), weight.format)
    if weight.zeros is not None:
        values = values - weight.zeros.float()[..., None]
    per_group = grouped(slope.float(), weight.format).mul_(values).sum(-1)
    return per_group.sum(0, keepdim=True) if weight.format.per == "tensor" else per_group
