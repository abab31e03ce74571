"""What can absorb a per-channel scale: the norm or the linear whose output a group of linears reads.

Candidates come from watching (which norm wrote a tensor) and from widths (v -> o, up -> down); each is kept only
where scaling one side up and the other down leaves the block's output as it was, tried on random inputs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from subeight.models.block import Block, Written
from subeight.models.calls import Call
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.structure import InputGroup, LinearView, Structure

_TOLERANCE = 1e-4
PROBE_TOKENS = 64


@dataclass(frozen=True)
class Fold:
    """A producer that can be divided by s per channel while its readers' columns are multiplied by s.

    `producer` is a norm module (full name) or a linear (checkpoint name); `channels[j]` is the producer's channel
    that input column j reads (several columns read one channel under grouped-query attention); `offset` is 1 for
    norms that multiply by 1 + weight; `rows` is where the producer's channels start in a fused linear.
    """

    producer: str
    is_norm: bool
    readers: tuple[LinearView, ...]
    channels: tuple[int, ...]
    count: int
    offset: float = 0.0
    rows: int = 0
    view: LinearView | None = None

    @property
    def groups(self) -> set[str]:
        """Names of the InputGroups whose input is scaled."""
        return {reader.info.group for reader in self.readers}


def apply(block: Block, fold: Fold, s: Tensor) -> None:
    """Divides the producer's channels by `s` [count] and multiplies the readers' columns; the function stays.

    Where the block keeps its stored weights, those are changed and what it computes with follows them, so that the
    block computes with what will be written.
    """
    columns = s.detach().cpu().float()[torch.tensor(fold.channels)]
    get = block.stored.__getitem__ if block.stored else block.parameter
    changed = _divide(get, fold, s, set(block.parameters()))
    for view in fold.readers:
        weight = view.of(get(view.parameter))
        weight.copy_(weight.float() * columns.to(weight.device))
        changed.add(view.parameter)
    if block.stored:
        for name in changed:
            block.parameter(name).copy_(block.stored[name])


def _divide(get: Callable[[str], Tensor], fold: Fold, s: Tensor, known: set[str]) -> set[str]:
    """Divides the producer's channels; returns the names of the parameters that changed."""
    if fold.is_norm:
        names = [name for name in (f"{fold.producer}.weight", f"{fold.producer}.bias") if name in known]
        for name in names:
            offset = fold.offset if name.endswith(".weight") else 0.0
            value = get(name)
            value.copy_((value.float() + offset) / s.to(value.device) - offset)
        return set(names)
    view = fold.view
    assert view is not None, "a fold into a linear has its view"
    part = slice(fold.rows, fold.rows + fold.count)
    weight = view.of(get(view.parameter))[part]
    weight.copy_(weight.float() / s.to(weight.device)[:, None])
    if view.bias is None:
        return {view.parameter}
    bias = get(view.bias)[part]
    bias.copy_(bias.float() / s.to(bias.device))
    return {view.parameter, view.bias}


def find_folds(block: Block, call: Call, width: int, *, head_dim: int | None) -> list[Fold]:
    """Every fold of this block that keeps its function, in data order.

    Args:
        block: in float32, with `keep=False`; it is left as it was.
        call: the block's other arguments for a hidden state [1, 64, width].
        head_dim: width of one attention head, for v -> o under grouped-query attention; None where unknown.
    """
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, PROBE_TOKENS, width, generator=generator)
    before = block(hidden, call)
    found = []
    for candidate in _candidates(block, head_dim):
        s = torch.exp(0.5 * torch.randn(candidate.count, generator=generator))
        if _keeps(block, candidate, s, hidden, call, before):
            found.append(candidate)
    return _one_per_group(found)


def _keeps(block: Block, fold: Fold, s: Tensor, hidden: Tensor, call: Call, before: Tensor) -> bool:
    names = {view.parameter for view in fold.readers} | {f"{fold.producer}.weight", f"{fold.producer}.bias"}
    if fold.view is not None:
        names |= {fold.view.parameter} | ({fold.view.bias} if fold.view.bias else set())
    saved = {name: block.parameter(name).clone() for name in names & set(block.parameters())}
    scale = before.abs().mean()
    apply(block, fold, s)
    kept = bool((block(hidden, call) - before).abs().mean() <= _TOLERANCE * scale)
    if kept:
        # An expert that no token reached keeps any function: without the producer's half the output must differ.
        for name in {view.parameter for view in fold.readers}:
            block.parameter(name).copy_(saved[name])
        kept = bool((block(hidden, call) - before).abs().mean() > _TOLERANCE * scale)
    for name, value in saved.items():
        block.parameter(name).copy_(value)
    return kept


def _candidates(block: Block, head_dim: int | None) -> list[Fold]:
    groups = block.structure.groups
    found: list[Fold] = []
    for norm in dict.fromkeys(group.norm for group in groups if group.norm):
        readers = tuple(view for group in groups if group.norm == norm for view in group.linears)
        width = readers[0].info.shape[1]
        found += [Fold(norm, True, readers, tuple(range(width)), width, offset) for offset in (0.0, 1.0)]
    for group in groups:
        if group.norm is None:
            found += _from_linears(group, groups, head_dim)
    return found


def _from_linears(group: InputGroup, groups: Sequence[InputGroup], head_dim: int | None) -> list[Fold]:
    """Folds into an earlier linear whose rows, or a part of them, are as many as the group's columns or divide them."""
    width = group.width
    expert = group.linears[0].expert
    earlier = [view for other in groups if other.stage < group.stage for view in other.linears if view.expert == expert]
    found = []
    for view in reversed(earlier):
        rows = view.info.shape[0]
        for count, channels in _channel_maps(width, rows, head_dim):
            found += [
                Fold(view.info.name, False, group.linears, channels, count, rows=start, view=view)
                for start in dict.fromkeys((rows - count, 0))
            ]
    return found


def _channel_maps(width: int, rows: int, head_dim: int | None) -> list[tuple[int, tuple[int, ...]]]:
    maps = []
    if rows >= width:
        maps.append((width, tuple(range(width))))
    if head_dim and rows % head_dim == 0 and width % head_dim == 0:
        heads = width // head_dim
        # v alone has the key-value heads' rows; a fused q/k/v has them after those of all query heads and k.
        for kv_heads in (rows // head_dim, (rows // head_dim - heads) // 2):
            if 0 < kv_heads < heads and heads % kv_heads == 0:
                repeat = heads // kv_heads
                channels = tuple((j // head_dim // repeat) * head_dim + j % head_dim for j in range(width))
                maps.append((kv_heads * head_dim, channels))
    return maps


def _one_per_group(folds: list[Fold]) -> list[Fold]:
    """One fold for each set of readers; the first that kept the function wins (nearest producer)."""
    chosen: dict[frozenset[str], Fold] = {}
    for fold in folds:
        chosen.setdefault(frozenset(view.info.name for view in fold.readers), fold)
    return list(chosen.values())


def for_every_expert(folds: Sequence[Fold], groups: Sequence[InputGroup]) -> list[Fold]:
    """The folds, and those of experts that no token of the trial reached: a layer's experts all run the same code."""
    found = list(folds)
    have = {name for fold in folds for name in fold.groups}
    views = {view.info.name: view for group in groups for view in group.linears}
    patterns = [fold for fold in folds if fold.view is not None and fold.view.expert is not None]
    for group in groups:
        like = next((fold for fold in patterns if _alike(fold.readers[0], group.linears[0])), None)
        if group.name in have or like is None:
            continue
        expert = group.linears[0].expert
        view = next(v for v in views.values() if v.expert == expert and like.view and _alike(v, like.view))
        found.append(replace(like, producer=view.info.name, readers=group.linears, view=view))
    return found


def _alike(one: LinearView, other: LinearView) -> bool:
    """Whether two views are the same part of two experts."""
    return one.expert is not None and (one.parameter, one.rows) == (other.parameter, other.rows)


class RandomWeights:
    """Random numbers in place of a model's weights: what keeps the function on them keeps it on any."""

    def __init__(self, model: Model) -> None:
        self._shapes = {name: tuple(value.shape) for name, value in model.skeleton.model.state_dict().items()}
        self._generator = torch.Generator().manual_seed(0)

    def names(self) -> Iterable[str]:
        return self._shapes

    def dtype(self, name: str) -> torch.dtype:  # noqa: ARG002 - the same for all
        return torch.float32

    def has(self, name: str) -> bool:
        return name in self._shapes

    def read(self, name: str) -> Tensor:
        value = torch.randn(self._shapes[name], generator=self._generator)
        return value / self._shapes[name][-1] ** 0.5 if value.dim() > 1 else 1.0 + 0.1 * value


class ModelFolds:
    """The folds of every block of a model: alike blocks are tried once, on random weights; all experts are in."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self._shell = Shell(model, torch.float32, weights=False)
        self._known: dict[tuple, tuple[Structure, list[Fold]]] = {}

    def __getitem__(self, index: int) -> list[Fold]:
        skeleton, structure = self._model.skeleton, self._model.structures[index]
        key = skeleton.signature(index)
        if key not in self._known:
            block = Block(self._model, index, torch.float32, written=Written(RandomWeights(self._model), None))
            call = self._shell.call((1, PROBE_TOKENS), index)
            found = find_folds(block, call, skeleton.width, head_dim=skeleton.head_dim)
            self._known[key] = structure, for_every_expert(found, structure.groups)
        like, folds = self._known[key]
        views = {old.info.name: new for old, new in zip(like.linears(), structure.linears(), strict=True)}
        norms = {old.norm: new.norm for old, new in zip(like.groups, structure.groups, strict=True)}
        return [_placed(fold, views, norms) for fold in folds]


def _placed(fold: Fold, views: dict[str, LinearView], norms: dict[str | None, str | None]) -> Fold:
    """The fold of one block as that of another, whose linears and norms stand behind the first one's names."""
    view = views[fold.view.info.name] if fold.view else None
    producer = view.info.name if view else str(norms[fold.producer])
    return replace(fold, producer=producer, view=view, readers=tuple(views[v.info.name] for v in fold.readers))


def foldable_groups(model: Model) -> set[str]:
    """Names of the InputGroups whose producer can absorb a scale, before any weight is read."""
    folds = ModelFolds(model)
    return {name for index in range(len(model.skeleton.blocks)) for fold in folds[index] for name in fold.groups}
