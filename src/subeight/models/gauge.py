"""The gauge of a model: which of the many weights that compute one function it has.

Scales can be moved between a norm or a linear and its readers, and the residual stream of pre-norm blocks can be
rotated (https://arxiv.org/abs/2404.00456), without a change of the function. Two models can be compared weight by
weight, or swap them, only in one gauge: `align` finds how a candidate's was moved, from its weights alone, and the
`Gauge` brings the baseline's blocks there. What cannot be brought there is a finding; nothing is guessed.
"""

import copy
from dataclasses import dataclass, field

import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.models.block import Block
from subeight.models.fits import Fit, diagonal, procrustes, row_pairs, row_ratios, sharpened
from subeight.models.folds import PROBE_TOKENS, Fold, apply, find_folds, for_every_expert
from subeight.models.model import Model
from subeight.models.shell import Call, Shell
from subeight.models.skeleton import Skeleton

_KEEPS = 1e-3  # relative change of a block's output that alignment may cause, in float32
_VECTOR = 0.02  # relative difference of norms and biases that storing them in bfloat16 explains


@dataclass(frozen=True)
class Ends:
    """Full names of the parameters at both ends of the residual stream; None where there is no such single one."""

    embedding: str
    norm: str | None
    head: str
    offset: float = 0.0


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


def align(baseline: Model, candidate: Model, *, device: torch.device | str = "cpu") -> Gauge:
    """Finds the candidate's gauge from the two models' weights, block after block; at most two blocks in memory.

    Raises:
        ModelError: they are not two versions of one architecture.
    """
    _require_alike(baseline, candidate)
    findings: dict[str, str] = {}
    differences: dict[str, float] = {}
    shell = Shell(baseline, torch.float32, device, weights=False)
    ends = _ends(baseline, shell)
    rotation = _rotation(baseline, candidate, ends, shell, findings)
    blocks = []
    for index in range(len(baseline.skeleton.blocks)):
        block, other = (Block(model, index, torch.float32, device) for model in (baseline, candidate))
        blocks.append(_align_block(block, other, shell, rotation, baseline, candidate, findings))
        for name, fit, is_vector in _left(block, other):
            differences[name] = fit.difference
            if not (fit.difference <= _VECTOR if is_vector else fit.is_rounding):
                findings.setdefault(name, _sentence(name, fit))
    final = _align_ends(baseline, candidate, ends, rotation, findings, differences)
    return Gauge(rotation, tuple(blocks), ends, final, findings, differences)


def _require_alike(baseline: Model, candidate: Model) -> None:
    shapes = [{name: p.shape for name, p in m.skeleton.model.named_parameters()} for m in (baseline, candidate)]
    heads = {_head_name(m.skeleton) for m in (baseline, candidate)}
    for name in sorted((shapes[0].keys() ^ shapes[1].keys()) - heads):
        raise ModelError(
            f"{candidate.label} and {baseline.label} are not two versions of one model: only one of them has {name}."
        )
    for name in sorted(shapes[0].keys() & shapes[1].keys()):
        if shapes[0][name] != shapes[1][name]:
            raise ModelError(
                f"{candidate.label} and {baseline.label} are not two versions of one model: {name} is "
                f"{list(shapes[1][name])} in one and {list(shapes[0][name])} in the other."
            )


def _head_name(skeleton: Skeleton) -> str:
    head = skeleton.model.get_output_embeddings()
    return f"{next(name for name, module in skeleton.model.named_modules() if module is head)}.weight"


def _ends(model: Model, shell: Shell) -> Ends:
    skeleton = model.skeleton
    embedding = skeleton.model.get_input_embeddings()
    names = {id(module): name for name, module in skeleton.model.named_modules()}
    vectors = [name for name in skeleton.shell_parameters() if shell.parameter(name).shape == (skeleton.width,)]
    norms = [name for name in vectors if name.endswith(".weight")]
    return Ends(
        embedding=f"{names[id(embedding)]}.weight",
        norm=norms[0] if len(norms) == 1 else None,
        head=_head_name(skeleton),
        offset=_offset(skeleton, norms[0]) if len(norms) == 1 else 0.0,
    )


def _offset(skeleton: Skeleton, norm: str) -> float:
    """1 for norms that multiply by 1 + weight: with weights of zero they still let something through."""
    module = copy.deepcopy(skeleton.model.get_submodule(norm.removesuffix(".weight"))).to_empty(device="cpu")
    for parameter in module.parameters():
        parameter.data.zero_()
    return float(bool(module(torch.ones(1, skeleton.width)).abs().sum() > 0))


def _rotation(
    baseline: Model, candidate: Model, ends: Ends, shell: Shell, findings: dict[str, str]
) -> Tensor | None:
    """The rotation of the residual stream that the embeddings show; None where there is none, or none that can be."""
    pairs = row_pairs(*(model.weights.read(ends.embedding) for model in (baseline, candidate)))
    found, turned, plain = procrustes(pairs)
    if plain <= _VECTOR or turned > min(plain / 2, 0.3):
        return None
    place = ends.embedding
    if found is None:
        findings[place] = f"{place} differs by a rotation that it does not determine; nothing was rotated."
        return None
    outside = set(baseline.skeleton.shell_parameters()) - {ends.embedding, ends.norm, ends.head}
    alike = {baseline.skeleton.signature(index): index for index in range(len(baseline.skeleton.blocks))}
    if ends.norm is None or outside or not all(_turns(baseline, index, shell, found) for index in alike.values()):
        findings[place] = f"{place} differs by a rotation, which blocks of this architecture cannot follow."
        return None
    return found


def _turns(model: Model, index: int, shell: Shell, rotation: Tensor) -> bool:
    block = Block(model, index, torch.float32, shell.device)
    folds = _folds(block, shell, model)
    call, hidden = _probe(block, shell, model)
    before = block(hidden, call)
    rotate(block, tuple(fold for fold in folds if fold.is_norm), rotation)
    return _same(block(hidden @ rotation.to(hidden.device), call), before @ rotation.to(before.device))


def _probe(block: Block, shell: Shell, model: Model) -> tuple[Call, Tensor]:
    hidden = torch.randn(1, PROBE_TOKENS, model.skeleton.width, generator=torch.Generator().manual_seed(1))
    return shell.call((1, PROBE_TOKENS), block.index), hidden.to(block.device)


def _folds(block: Block, shell: Shell, model: Model) -> list[Fold]:
    call = shell.call((1, PROBE_TOKENS), block.index)
    found = find_folds(block, call, model.skeleton.width, head_dim=model.skeleton.head_dim)
    return for_every_expert(found, block.structure.groups)


def _same(after: Tensor, before: Tensor) -> bool:
    return bool((after - before).norm() <= _KEEPS * before.norm())


def _align_block(
    block: Block,
    other: Block,
    shell: Shell,
    rotation: Tensor | None,
    baseline: Model,
    candidate: Model,
    findings: dict[str, str],
) -> BlockGauge:
    """Brings `block` into the gauge of `other` and says how."""
    folds = _folds(block, shell, baseline)
    norms = tuple(fold for fold in folds if fold.is_norm)
    call, hidden = _probe(block, shell, baseline)
    if rotation is not None:
        rotate(block, norms, rotation)
        hidden = hidden @ rotation.to(hidden.device)
    before = block(hidden, call)
    saved = {name: block.parameter(name).clone() for name in block.parameters()}
    scales = []
    for fold in folds:
        name = f"{fold.producer}.weight"
        exact = max(torch.finfo(m.weights.dtype(name)).eps for m in (baseline, candidate)) if fold.is_norm else 0.0
        s = _norm_scale(block, other, fold, exact, findings) if fold.is_norm else _scale(block, other, fold, findings)
        if s is not None:
            apply(block, fold, s)
            scales.append((fold, s))
    if _same(block(hidden, call), before):
        return BlockGauge(norms, tuple(scales))
    findings[block.prefix] = f"The scales found for {block.prefix} change what it computes; it was left as it is."
    for name, value in saved.items():
        block.parameter(name).copy_(value)
    return BlockGauge(norms)


def _norm_scale(block: Block, other: Block, fold: Fold, exact: float, findings: dict[str, str]) -> Tensor | None:
    """By what a norm was divided: the ratio of its weights, where its readers were multiplied by it."""
    name = f"{fold.producer}.weight"
    ours, theirs = (b.parameter(name).float() + fold.offset for b in (block, other))
    ratio = torch.where((ours == 0) & (theirs == 0), 1.0, ours / theirs)
    sure = torch.isfinite(ratio) & (ratio > 0)
    s = torch.where(sure, ratio, 1.0)
    if bool(((s - 1).abs() <= 2 * exact).all()):
        return None
    plain = scaled = 0.0
    for view in fold.readers:
        mine, its = block.weight(view), other.weight(view)
        plain += float((its - mine).square().sum())
        scaled += float((its - mine * s).square().sum())
    if scaled < plain:
        return s
    findings[name] = f"{name} differs from the baseline's by up to {float((s - 1).abs().max()):.2g}, its readers do not."
    return None


def _scale(block: Block, other: Block, fold: Fold, findings: dict[str, str]) -> Tensor | None:
    """By what the rows of a linear were divided: regression of its rows, and of its readers' columns."""
    view = fold.view
    assert view is not None, "a fold into a linear has its view"
    part = slice(fold.rows, fold.rows + fold.count)
    written = row_ratios(block.weight(view)[part], other.weight(view)[part])
    order = torch.argsort(torch.tensor(fold.channels), stable=True).to(block.device)
    sides = [
        torch.cat([b.weight(v)[:, order].T.reshape(fold.count, -1) for v in fold.readers], 1) for b in (block, other)
    ]
    found = diagonal(written, row_ratios(*sides))
    if found is None:
        return None
    s, sure = found
    if view.bias is not None:
        s = sharpened(s, block.parameter(view.bias)[part], other.parameter(view.bias)[part])
    if not bool(sure.all()):
        lost = int((~sure).sum())
        findings[fold.producer] = f"{lost} of {fold.count} channels of {fold.producer} are not the baseline's."
    return s


def _left(block: Block, other: Block) -> list[tuple[str, Fit, bool]]:
    """What is left between two blocks: linears by the checkpoint's names, then every other parameter."""
    linears = list(block.structure.linears())
    seen = {view.parameter for view in linears}
    found = [(v.info.name, Fit.of([(block.weight(v), other.weight(v))]), False) for v in linears]
    rest = [name for name in block.parameters() if name not in seen]
    return found + [(name, Fit.of([(block.parameter(name), other.parameter(name))]), True) for name in rest]


def _sentence(name: str, fit: Fit) -> str:
    return (
        f"{name} is not a rounding of the baseline's: correlation {fit.correlation:.2f}, slope {fit.slope:.2f}, "
        f"relative difference {fit.difference:.2g}."
    )


def _align_ends(
    baseline: Model,
    candidate: Model,
    ends: Ends,
    rotation: Tensor | None,
    findings: dict[str, str],
    differences: dict[str, float],
) -> Tensor | None:
    """Compares what lies outside the blocks; returns by what the last norm was divided, where the head took it up."""
