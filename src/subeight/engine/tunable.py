"""A quantized model with fixed codes as a function of its continuous parameters, with gradients, block by block.

Memory: the codes, what each block reads of the sequences of one step, and one block's graph (computed again on the way
back) or all of them; the blocks where they are resident, else one at a time, read once forward and once backward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from subeight.evals.divergence import mean_divergence
from subeight.formats import QTensor, Thin
from subeight.formats.rotation import rotate
from subeight.formats.scales import Scales, grouped, storable
from subeight.methods.polishing import Parameters
from subeight.models.block import Block
from subeight.models.calls import Call
from subeight.models.shell import Head, Shell

SCALES, LEFT, RIGHT = "scales", "left", "right"
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
    keeps_graphs: bool = False

    def start(self) -> dict[str, Tensor]:
        """The parameters as they are: effective scales of codes, and every vector of the blocks and the last norm."""
        found: dict[str, Tensor] = {}
        for name, weight in ((n, w) for codes in self.codes for n, w in codes.items()):
            if is_tunable(weight):
                found[f"{name}.{SCALES}"] = _effective(weight).clone()
            if weight.thin is not None:
                found |= {f"{name}.{LEFT}": weight.thin.left.clone(), f"{name}.{RIGHT}": weight.thin.right.clone()}
        for index in range(len(self.codes)):
            found |= _vectors(self.block(index))
        return found | {name: self.shell.parameter(name).float().clone() for name in self._outside()}

    def loss(self, parameters: Parameters, rows: list[int]) -> float:
        """Mean KL(baseline || this) of these sequences."""
        total = 0.0
        with torch.no_grad():
            for part in (rows[at : at + STEP] for at in range(0, len(rows), STEP)):
                hidden = self._entering(parameters, part)
                for index in range(len(self.codes)):
                    hidden = self._placed(index, parameters)(hidden, self._call(part, index))
                total += mean_divergence(self.targets[part], self.shell.finish(hidden), self.heads)[0] * len(part)
        return total / len(rows)

    def gradients(self, parameters: Parameters, rows: list[int]) -> tuple[float, dict[str, Tensor]]:
        """The loss, and its gradient to every parameter."""
        hidden, traces = self._traces(parameters, rows)
        outside = {name: self.shell.parameter(name).requires_grad_() for name in self._outside()}
        with torch.enable_grad():
            last = hidden.requires_grad_()
            final = self.shell.finish(last)
        loss, slope = mean_divergence(self.targets[rows], final.detach(), self.heads, slope=True)
        assert slope is not None
        back, *slopes = torch.autograd.grad(final, [last, *outside.values()], slope.to(final.dtype))
        found = dict(zip(outside, (value.float() for value in slopes), strict=True))
        for index in reversed(range(len(self.codes))):
            kept = traces.pop()
            trace = self._trace(parameters, index, kept) if isinstance(kept, Tensor) else kept
            back, own = self._backward(trace, back)
            found |= {n: torch.zeros_like(parameters[n]) if value is None else value for n, value in own.items()}
        return loss, {name: found[name] for name in parameters}

    def _outside(self) -> list[str]:
        return [name for name in self.shell.names() if self.shell.parameter(name).dim() == 1]

    def _entering(self, parameters: Parameters, rows: list[int]) -> Tensor:
        for name in self._outside():
            self.shell.replace(name, parameters[name])
        return self.shell.embed(self.ids[rows])

    def _traces(self, parameters: Parameters, rows: list[int]) -> tuple[Tensor, list[_Trace | Tensor]]:
        """The last block's output; for each block its graph, or where these are not kept what it read."""
        hidden = self._entering(parameters, rows)
        traces: list[_Trace | Tensor] = []
        for index in range(len(self.codes)):
            if self.keeps_graphs:
                traces.append(trace := self._trace(parameters, index, hidden))
                hidden = trace.output.detach()
            else:
                traces.append(hidden)
                with torch.no_grad():
                    hidden = self._placed(index, parameters)(hidden, self._call(rows, index))
        return hidden, traces

    def _trace(self, parameters: Parameters, index: int, hidden: Tensor) -> _Trace:
        block, first = self._placed(index, parameters), hidden.detach().requires_grad_()
        inside = {name: block.parameter(name).requires_grad_() for name in block.parameters()}
        return _Trace(index, block, first, inside, block(first, self._call(range(len(hidden)), index)))

    def _backward(self, trace: _Trace, slope: Tensor) -> tuple[Tensor, dict[str, Tensor | None]]:
        """The gradient to what the block read, and to its parameters: None for those that no token reached."""
        inside = trace.inside
        back, *slopes = torch.autograd.grad(trace.output, [trace.first, *inside.values()], slope, allow_unused=True)
        for value in inside.values():
            value.requires_grad_(False)
        by_name: dict[str, Tensor | None] = dict(zip(inside, slopes, strict=True))
        found = {name: _wide(value) for name, value in by_name.items() if inside[name].dim() == 1}
        for view in trace.block.structure.linears():
            weight, whole = self.codes[trace.index].get(view.info.name), by_name[view.parameter]
            if weight is not None:
                slope_of_it = None if whole is None else view.of(whole).float()
                found |= {f"{view.info.name}.{part}": value for part, value in self._parts(slope_of_it, weight).items()}
        return back, found

    @staticmethod
    def _parts(slope: Tensor | None, weight: QTensor) -> dict[str, Tensor | None]:
        """The gradients to what can be tuned of a weight, from that to the weight itself [out, in]."""
        found: dict[str, Tensor | None] = {}
        if is_tunable(weight):
            found[SCALES] = None if slope is None else _to_scales(slope, weight)
        if weight.thin is not None:
            found[LEFT] = None if slope is None else slope @ weight.thin.right.T
            found[RIGHT] = None if slope is None else weight.thin.left.T @ slope
        return found

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


@dataclass(frozen=True)
class _Trace:
    """One block's graph for the sequences of a step."""

    index: int
    block: Block
    first: Tensor
    inside: dict[str, Tensor]
    output: Tensor


def is_tunable(weight: QTensor) -> bool:
    """Whether its scales are continuous: those of mxfp4 are powers of two."""
    return weight.format.grid != "mxfp4"


def rescaled(name: str, weight: QTensor, parameters: Parameters) -> QTensor:
    """The codes of the linear `name` with the scales and the correction of the parameters, as they are stored."""
    if weight.thin is not None and f"{name}.{LEFT}" in parameters:
        weight = replace(weight, thin=Thin.of(parameters[f"{name}.{LEFT}"], parameters[f"{name}.{RIGHT}"]))
    ideal = parameters.get(f"{name}.{SCALES}")
    if ideal is None:
        return weight
    if not weight.format.grid.startswith("int"):
        ideal = ideal.clamp_min(0.0)
    return replace(weight, scales=storable(weight.format, ideal, weight.global_scale))


def graph_bytes(blocks: int, tokens: int, width: int, dtype: torch.dtype) -> int:
    """What the graphs of all blocks take: 17 numbers per token and channel (Korthikanti et al. 2022, 34 bytes in
    16 bits, https://arxiv.org/abs/2205.05198, without the scores, which attention here does not keep)."""
    return blocks * tokens * width * 17 * dtype.itemsize


def _wide(value: Tensor | None) -> Tensor | None:
    return None if value is None else value.float()


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
    slope = rotate(slope) if weight.format.rotated else slope.float()
    per_group = (grouped(slope, weight.format) * values).sum(-1)
    return per_group.sum(0, keepdim=True) if weight.format.per == "tensor" else per_group
