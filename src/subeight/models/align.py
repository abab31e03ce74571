"""Finding the gauge of a candidate: by which scales and rotations its weights were moved away from the baseline's.

Norms show their scale exactly; linears show theirs by regression, through the folds that keep the function; the
embeddings show a rotation of the residual stream. What does not fit is a finding, and nothing is guessed.
"""

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor

from subeight.errors import ModelError
from subeight.models.block import Block
from subeight.models.calls import Call
from subeight.models.fits import Fit, diagonal, norm_ratio, procrustes, row_pairs, row_ratios, sharpened, taken_up
from subeight.models.folds import PROBE_TOKENS, Fold, ModelFolds, apply
from subeight.models.gauge import BlockGauge, Ends, Gauge, rotate
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.skeleton import Skeleton
from subeight.models.structure import LinearView

_KEEPS = 1e-3  # relative change of a block's output that alignment may cause, in float32
_VECTOR = 0.02  # relative difference of norms and biases that storing them in bfloat16 explains

Look = Callable[[Block, Block], None]


@dataclass
class _Left:
    """What is left between the candidate and the aligned baseline."""

    findings: dict[str, str] = field(default_factory=dict)
    differences: dict[str, float] = field(default_factory=dict)

    def linear(self, name: str, pairs: Iterable[tuple[Tensor, Tensor]]) -> None:
        """A weight that may have been rounded."""
        fit = Fit.of(pairs)
        self.differences[name] = fit.difference
        if not fit.is_rounding:
            self.findings.setdefault(
                name,
                f"{name} is not a rounding of the baseline's: correlation {fit.correlation:.2f}, slope "
                f"{fit.slope:.2f}, relative difference {fit.difference:.2g}.",
            )

    def other(self, name: str, ours: Tensor, theirs: Tensor) -> None:
        """A norm or a bias, which nobody rounds below 16 bits."""
        self.differences[name] = difference = Fit.of([(ours, theirs)]).difference
        if difference > _VECTOR:
            self.findings.setdefault(name, f"{name} is not the baseline's: relative difference {difference:.2g}.")


def align(baseline: Model, candidate: Model, *, device: torch.device | str = "cpu", look: Look | None = None) -> Gauge:
    """Finds the candidate's gauge from the two models' weights, block after block; two blocks in memory at a time.

    `look` is shown each pair of blocks in float32, the baseline's aligned, while they are there.

    Raises:
        ModelError: they are not two versions of one architecture.
    """
    require_alike(baseline, candidate)
    left = _Left()
    shell = Shell(baseline, torch.float32, device, weights=False)
    ends = _ends(baseline, shell)
    every_fold = ModelFolds(baseline)
    rotation = _rotation(baseline, candidate, ends, shell, every_fold, left)
    blocks = []
    for index in range(len(baseline.skeleton.blocks)):
        block = Block(baseline, index, torch.float32, device)
        other = Block(candidate, index, torch.float32, device)
        folds = every_fold[index]
        norms = tuple(fold for fold in folds if fold.is_norm)
        if rotation is not None:
            rotate(block, norms, rotation)
        exact = {fold: _exact(baseline, candidate, f"{fold.producer}.weight") for fold in norms}
        scales = _align_block(block, other, folds, exact, _probe(block, shell, baseline), left)
        blocks.append(BlockGauge(norms, scales))
        _compare(block, other, left)
        if look is not None:
            look(block, other)
    final = _align_ends(baseline, candidate, ends, rotation, left)
    return Gauge(rotation, tuple(blocks), ends, final, left.findings, left.differences)


def require_alike(baseline: Model, candidate: Model) -> None:
    """Raises ModelError where the two are not of one architecture and size."""
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
    place = next(name for name, module in skeleton.model.named_modules() if module is embedding)
    vectors = [name for name in skeleton.shell_parameters() if shell.parameter(name).shape == (skeleton.width,)]
    norms = [name for name in vectors if name.endswith(".weight")]
    norm = norms[0] if len(norms) == 1 else None
    offset = _offset(skeleton, norm) if norm else 0.0
    bias = next((name for name in vectors if norm and name == norm.removesuffix("weight") + "bias"), None)
    return Ends(f"{place}.weight", norm, _head_name(skeleton), offset, bias)


def _offset(skeleton: Skeleton, norm: str) -> float:
    """1 for norms that multiply by 1 + weight: with weights of zero they still let something through."""
    module = copy.deepcopy(skeleton.model.get_submodule(norm.removesuffix(".weight"))).to_empty(device="cpu")
    for parameter in module.parameters():
        parameter.data.zero_()
    hidden = torch.randn(1, skeleton.width, generator=torch.Generator().manual_seed(0))
    return float(bool(module(hidden).abs().sum() > 0))


def _rotation(
    baseline: Model, candidate: Model, ends: Ends, shell: Shell, every_fold: ModelFolds, left: _Left
) -> Tensor | None:
    """The rotation of the residual stream that the embeddings show; None where there is none, or none that can be."""
    embeddings = [model.weights.read(ends.embedding) for model in (baseline, candidate)]
    if Fit.of(row_pairs(*embeddings)).difference <= _VECTOR:
        return None
    found, turned, plain = procrustes(row_pairs(*embeddings))
    if turned > min(plain / 2, 0.3):
        return None
    place = ends.embedding.removesuffix(".weight")
    if found is None:
        left.findings[place] = f"{place} differs by a rotation that it does not determine; nothing was rotated."
        return None
    outside = set(baseline.skeleton.shell_parameters()) - {ends.embedding, ends.norm, ends.head}
    alike = {baseline.skeleton.signature(index): index for index in range(len(baseline.skeleton.blocks))}
    if (
        ends.norm is None
        or outside
        or not all(_turns(baseline, i, shell, every_fold[i], found) for i in alike.values())
    ):
        left.findings[place] = f"{place} differs by a rotation, which blocks of this architecture cannot follow."
        return None
    return found


def _turns(model: Model, index: int, shell: Shell, folds: list[Fold], rotation: Tensor) -> bool:
    """Whether a block, rotated, gives the rotated output for a rotated input."""
    block = Block(model, index, torch.float32, shell.device)
    call, hidden = _probe(block, shell, model)
    before = block(hidden, call)
    rotate(block, tuple(fold for fold in folds if fold.is_norm), rotation)
    return _same(block(hidden @ rotation.to(hidden.device), call), before @ rotation.to(before.device))


def _probe(block: Block, shell: Shell, model: Model) -> tuple[Call, Tensor]:
    hidden = torch.randn(1, PROBE_TOKENS, model.skeleton.width, generator=torch.Generator().manual_seed(1))
    return shell.call((1, PROBE_TOKENS), block.index), hidden.to(block.device)


def _same(after: Tensor, before: Tensor) -> bool:
    return bool((after - before).norm() <= _KEEPS * before.norm())


def _exact(baseline: Model, candidate: Model, name: str) -> float:
    """The relative rounding of a parameter as the two models store it."""
    return max(torch.finfo(model.weights.dtype(name)).eps for model in (baseline, candidate))


def _align_block(
    block: Block, other: Block, folds: list[Fold], exact: dict[Fold, float], probe: tuple[Call, Tensor], left: _Left
) -> tuple[tuple[Fold, Tensor], ...]:
    """Finds the scales between `block` and `other` and applies them to `block`, whose function must stay."""
    call, hidden = probe
    before: Tensor | None = None
    saved: dict[str, Tensor] = {}
    scales = []
    for fold in folds:
        s = _norm_scale(block, other, fold, exact[fold], left) if fold.is_norm else _scale(block, other, fold, left)
        if s is not None:
            if before is None:
                before = block(hidden, call)
                saved = {name: block.parameter(name).clone() for name in block.parameters()}
            apply(block, fold, s)
            scales.append((fold, s))
    if before is None or _same(block(hidden, call), before):
        return tuple(scales)
    left.findings[block.prefix] = f"The scales found for {block.prefix} change what it computes; they are left out."
    for name, value in saved.items():
        block.parameter(name).copy_(value)
    return ()


def _norm_scale(block: Block, other: Block, fold: Fold, exact: float, left: _Left) -> Tensor | None:
    """By what a norm was divided: the ratio of its weights, where its readers were multiplied by it."""
    name = f"{fold.producer}.weight"
    s = norm_ratio(block.parameter(name) + fold.offset, other.parameter(name) + fold.offset, exact)
    readers = [partial(_pair, block, other, view) for view in fold.readers]
    if s is None or taken_up(readers, s):
        return s
    left.findings[name] = _unread(name, s)
    return None


def _pair(block: Block, other: Block, view: LinearView) -> list[tuple[Tensor, Tensor]]:
    return [(block.weight(view), other.weight(view))]


def _unread(name: str, s: Tensor) -> str:
    by = float((s - 1).abs().max())
    return f"{name} differs from the baseline's by a factor of up to {1 + by:.3g}, which its readers do not take up."


def _scale(block: Block, other: Block, fold: Fold, left: _Left) -> Tensor | None:
    """By what the rows of a linear were divided: regression of its rows, and of its readers' columns."""
    view = fold.view
    assert view is not None, "a fold into a linear has its view"
    part = slice(fold.rows, fold.rows + fold.count)
    written = row_ratios(block.weight(view)[part], other.weight(view)[part])
    read = row_ratios(_columns(block, fold), _columns(other, fold))
    found = diagonal(written, read)
    if found is None:
        return None
    s, sure = found
    if view.bias is not None:
        s = sharpened(s, block.parameter(view.bias)[part], other.parameter(view.bias)[part])
    if not bool(sure.all()):
        lost = int((~sure).sum())
        left.findings[fold.producer] = f"{lost} of {fold.count} channels of {fold.producer} are not the baseline's."
    return s


def _columns(block: Block, fold: Fold) -> Tensor:
    """The readers' columns as rows, one per channel of the producer; those that share a channel lie side by side."""
    order = torch.argsort(torch.tensor(fold.channels), stable=True).to(block.device)
    return torch.cat([block.weight(view)[:, order].T.reshape(fold.count, -1) for view in fold.readers], 1)


def _compare(block: Block, other: Block, left: _Left) -> None:
    linears = list(block.structure.linears())
    for view in linears:
        left.linear(view.info.name, _pair(block, other, view))
    for name in block.parameters():
        if all(name != view.parameter for view in linears):
            left.other(name, block.parameter(name), other.parameter(name))


def _align_ends(baseline: Model, candidate: Model, ends: Ends, rotation: Tensor | None, left: _Left) -> Tensor | None:
    """Compares what lies outside the blocks; returns by what the last norm was divided, if the head took it up."""
    models = (baseline, candidate)
    embeddings = [model.weights.read(ends.embedding) for model in models]
    turned = ((a if rotation is None else a @ rotation, c) for a, c in row_pairs(*embeddings))
    left.linear(ends.embedding.removesuffix(".weight"), turned)
    for name in set(baseline.skeleton.shell_parameters()) - {ends.embedding, ends.norm, ends.head, ends.bias}:
        left.other(name, *(model.weights.read(name) for model in models))
    ours, theirs = _gain(baseline, ends), _gain(candidate, ends)
    final = None
    if not (baseline.skeleton.tied and candidate.skeleton.tied):
        heads = [e if m.skeleton.tied else m.weights.read(ends.head) for m, e in zip(models, embeddings, strict=True)]
        del embeddings
        folded = ours
        if rotation is not None:
            ours = torch.ones_like(ours)

        def pairs() -> Iterator[tuple[Tensor, Tensor]]:
            for a, c in row_pairs(*heads):
                yield (a if rotation is None else (a * folded) @ rotation), c

        final = norm_ratio(ours, theirs, _exact(baseline, candidate, ends.norm) if ends.norm else 0.0)
        if final is not None and not taken_up([pairs], final):
            left.findings[str(ends.norm)], final = _unread(str(ends.norm), final), None
        s = torch.ones_like(ours) if final is None else final
        left.linear(ends.head.removesuffix(".weight"), ((a * s, c) for a, c in pairs()))
        ours = ours / s
    if ends.norm is not None:
        left.other(ends.norm, ours, theirs)
    if ends.bias is not None:
        bias = baseline.weights.read(ends.bias).float()
        left.other(ends.bias, bias if final is None else bias / final, candidate.weights.read(ends.bias))
    return final


def _gain(model: Model, ends: Ends) -> Tensor:
    """What the last norm multiplies by; ones where there is none."""
    if ends.norm is None:
        return torch.ones(model.skeleton.width)
    return model.weights.read(ends.norm).float() + ends.offset
