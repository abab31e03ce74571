"""A model whose residual stream, and whose values inside each head, are turned: the same function in another basis.

R1 of QuaRot (Ashkboos et al. 2024, https://arxiv.org/abs/2404.00456) turns the stream: the embeddings and what writes
to it on one side, what reads it on the other, after the norms' weights have moved into their readers. R2 turns the
values of every head, between v and o. Both are folded into the weights as they are read, so blocks still stream. A
LayerNorm subtracts the mean, so where there are any the stream is turned around the direction of the mean, which stays.
"""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterable, Sequence
from functools import cached_property

import torch
from torch import Tensor, nn

from subeight.errors import ModelError, RecipeError
from subeight.formats.rotation import rotate
from subeight.models.block import Block, Written
from subeight.models.calls import Call
from subeight.models.folds import PROBE_TOKENS, Fold, ModelFolds, RandomWeights
from subeight.models.model import Model
from subeight.models.shell import Shell
from subeight.models.structure import LinearView
from subeight.models.weights import Weights

_TOLERANCE = 1e-3
_SMALLEST = 1e-6  # of a norm's weight that a bias is divided by


def rotated(model: Model, *, values: bool) -> Model:
    """`model` in the turned basis (with `values` those inside the heads too); its head is its own, where it was tied.

    Raises:
        RecipeError: its blocks do not read the stream through a norm and add to it (Gemma 2, OLMo 2).
    """
    turns = _Turns(model, values)
    turns.require_same_function()
    text = model.config.get_text_config(decoder=True)
    made = model.with_config({"tie_word_embeddings": False}) if text.tie_word_embeddings else copy.copy(model)
    made.weights = RotatedWeights(model.weights, turns)
    return made


class RotatedWeights:
    """The weights of a model, turned as they are read, in the dtype that is stored."""

    def __init__(self, weights: Weights, turns: _Turns) -> None:
        self._weights, self._turns = weights, turns

    def names(self) -> Iterable[str]:
        return self._turns.names(self._weights)

    def dtype(self, name: str) -> torch.dtype:
        return self._weights.dtype(self._turns.source(name))

    def has(self, name: str) -> bool:
        return self._weights.has(self._turns.source(name))

    def read(self, name: str) -> Tensor:
        stored = self._weights.read(self._turns.source(name))
        return self._turns.turned(name, stored.float(), self._weights).to(stored.dtype)


def _require_unbiased(view: LinearView, parameters: Sequence[str]) -> None:
    if view.expert is not None and f"{view.parameter}_bias" in parameters:
        raise ModelError(
            f"{view.info.name} is an expert with a bias, which no rotation of the stream turns; leave `rotate` out."
        )


class _Turns:
    """Which parameter is turned how."""

    def __init__(self, model: Model, values: bool) -> None:
        self._model = model
        skeleton = model.skeleton
        self._values = values and skeleton.head_dim is not None
        folds = ModelFolds(model)
        self._shell = Shell(model, torch.float32, weights=False)
        self._tried: dict[tuple, list[int]] = {}
        self.readers: dict[str, list[tuple[LinearView, str]]] = defaultdict(list)  # with the norm that they read
        self.writers: dict[str, list[LinearView]] = defaultdict(list)
        self.offsets: dict[str, float] = {}  # of the norms that are emptied
        self.heads: dict[str, list[tuple[LinearView, str, int, int]]] = defaultdict(list)  # v: rows; o: columns
        self.biases: dict[str, list[tuple[str, LinearView, int, int]]] = defaultdict(list)
        for index, structure in enumerate(model.structures):
            known = {fold.producer: fold.offset for fold in folds[index] if fold.is_norm}
            for group in structure.groups:
                for view in group.linears:
                    if group.norm is not None and group.norm in known and group.width == skeleton.width:
                        self.offsets[group.norm] = known[group.norm]
                        self.readers[view.parameter].append((view, group.norm))
                    elif group.norm is None and view.info.shape[0] == skeleton.width:
                        _require_unbiased(view, skeleton.block_parameters(index))
                        self.writers[view.parameter].append(view)
                        if view.bias is not None:
                            self.biases[view.bias].append(("stream", view, 0, skeleton.width))
            if self._values:
                self._add_heads(index, folds[index])
        self._last = _last_norm(model)
        offset = next(iter(self.offsets.values()), 0.0)
        self.offsets |= {self._last: offset} if self._last is not None else {}

    def _add_heads(self, index: int, folds: Sequence[Fold]) -> None:
        """The linears between which values can be turned head by head: tried once for each kind of block."""
        key = self._model.skeleton.signature(index)
        if key not in self._tried:
            self._tried[key] = [at for at, fold in enumerate(folds) if self._turns_in_heads(index, fold)]
        for fold in (folds[at] for at in self._tried[key]):
            assert fold.view is not None
            self.heads[fold.view.parameter].append((fold.view, "rows", fold.rows, fold.count))
            if fold.view.bias is not None:
                self.biases[fold.view.bias].append(("heads", fold.view, fold.rows, fold.count))
            for reader in fold.readers:
                self.heads[reader.parameter].append((reader, "columns", 0, reader.info.shape[1]))

    def _turns_in_heads(self, index: int, fold: Fold) -> bool:
        width = self._model.skeleton.head_dim
        assert width is not None
        if fold.view is None or fold.count % width or fold.view.expert is not None:
            return False
        block, hidden, call = self._trial(index)
        before = block(hidden, call)
        rows = slice(fold.rows, fold.rows + fold.count)
        part = fold.view.of(block.parameter(fold.view.parameter))[rows]
        part.copy_(self._in_heads(part.T).T)
        if fold.view.bias is not None:
            bias = block.parameter(fold.view.bias)[rows]
            bias.copy_(self._in_heads(bias[None])[0])
        for reader in fold.readers:
            block.weight(reader).copy_(self._in_heads(block.weight(reader)))
        return bool((block(hidden, call) - before).abs().mean() <= _TOLERANCE * before.abs().mean())

    def _trial(self, index: int) -> tuple[Block, Tensor, Call]:
        """A block with random weights, and something for it to read."""
        width = self._model.skeleton.width
        hidden = torch.randn(1, PROBE_TOKENS, width, generator=torch.Generator().manual_seed(0))
        block = Block(self._model, index, torch.float32, written=Written(RandomWeights(self._model), None))
        return block, hidden, self._shell.call((1, PROBE_TOKENS), index)

    @cached_property
    def matrix(self) -> Tensor:
        """R1 [width, width]."""
        width = self._model.skeleton.width
        norms = [module for module in self._model.skeleton.model.modules() if isinstance(module, nn.LayerNorm)]
        return _around_the_mean(width) if norms else rotate(torch.eye(width))

    def names(self, weights: Weights) -> Iterable[str]:
        return dict.fromkeys([*weights.names(), *self._model.skeleton.shell_parameters()])

    def source(self, name: str) -> str:
        """The parameter that this one is made of: a tied head's is the embeddings'."""
        if name not in self._model.skeleton.tied_names:
            return name
        embedding = self._model.skeleton.model.get_input_embeddings()
        modules = {id(module): found for found, module in self._model.skeleton.model.named_modules()}
        return f"{modules[id(embedding)]}.weight"

    def turned(self, name: str, value: Tensor, weights: Weights) -> Tensor:
        """The parameter in the new basis; norms and biases that go with it are read from `weights`."""
        module, _, tail = name.rpartition(".")
        if module in self.offsets:
            return self._norm(module, tail, value, weights)
        value = value.clone()
        for view, norm in self.readers.get(name, ()):
            gain = weights.read(f"{norm}.weight").float() + self.offsets[norm]
            view.of(value).copy_((view.of(value) * gain) @ self.matrix)
        for view in self.writers.get(name, ()):
            view.of(value).copy_(self.matrix.T @ view.of(value))
        for view, side, start, count in self.heads.get(name, ()):
            part = view.of(value)
            if side == "rows":
                part[start : start + count] = self._in_heads(part[start : start + count].T).T
            else:
                part.copy_(self._in_heads(part))
        for kind, _, start, count in self.biases.get(name, ()):
            part = value[start : start + count]
            part.copy_(part @ self.matrix if kind == "stream" else self._in_heads(part[None])[0])
        return self._outside(name, value, weights)

    def _norm(self, module: str, tail: str, value: Tensor, weights: Weights) -> Tensor:
        """A norm that multiplies by 1; its bias is what its readers took over, turned."""
        if tail == "weight":
            return torch.ones_like(value) - self.offsets[module]
        gain = weights.read(f"{module}.weight").float() + self.offsets[module]
        safe = torch.where(gain.abs() < _SMALLEST, _SMALLEST, gain)
        return (value / safe) @ self.matrix

    def _in_heads(self, matrix: Tensor) -> Tensor:
        """The columns turned head by head."""
        width = self._model.skeleton.head_dim
        assert width is not None
        return rotate(matrix.unflatten(-1, (-1, width))).flatten(-2)

    def _outside(self, name: str, value: Tensor, weights: Weights) -> Tensor:
        skeleton = self._model.skeleton
        if name.startswith(f"{skeleton.blocks_name}.") or value.dim() != 2 or value.shape[1] != skeleton.width:
            return value
        head = skeleton.model.get_output_embeddings()
        owner = {id(module): found for found, module in skeleton.model.named_modules()}.get(id(head))
        if name == f"{owner}.weight" and self._last is not None:
            gain = weights.read(f"{self._last}.weight").float() + self.offsets[self._last]
            return (value * gain) @ self.matrix
        return value @ self.matrix

    def require_same_function(self) -> None:
        """Raises RecipeError unless every kind of block computes in the new basis what it computed in the old."""
        model = self._model
        seen = set()
        for index in range(len(model.skeleton.blocks)):
            if (key := model.skeleton.signature(index)) in seen:
                continue
            seen.add(key)
            before, hidden, call = self._trial(index)
            values = {name: before.parameter(name) for name in before.parameters()}
            after = Block(model, index, torch.float32, written=Written(RotatedWeights(_Held(values), self), None))
            expected = before(hidden, call) @ self.matrix
            miss = (after(hidden @ self.matrix, call) - expected).abs().mean() / expected.abs().mean()
            if not float(miss) <= _TOLERANCE:
                raise RecipeError(
                    f"rotate: {model.skeleton.block_name(index)} of {model.label} computes something else when its "
                    "stream is turned (it has norms after its linears, or reads the stream without one); leave rotate "
                    "out, or rotate inside the linears with formats such as int4:g64:sym:had."
                )


class _Held:
    """Weights out of a dictionary."""

    def __init__(self, values: dict[str, Tensor]) -> None:
        self._values = values

    def names(self) -> Iterable[str]:
        return self._values

    def dtype(self, name: str) -> torch.dtype:
        return self._values[name].dtype

    def has(self, name: str) -> bool:
        return name in self._values

    def read(self, name: str) -> Tensor:
        return self._values[name].clone()


def _last_norm(model: Model) -> str | None:
    """The norm after the blocks: the module of one vector outside of them."""
    names = [name for name in model.skeleton.shell_parameters() if name.endswith(".weight")]
    vectors = [name for name in names if model.skeleton.model.get_parameter(name).dim() == 1]
    return vectors[-1].removesuffix(".weight") if vectors else None


def _around_the_mean(width: int) -> Tensor:
    """An orthogonal matrix that leaves the direction of the mean as it is."""
    generator = torch.Generator().manual_seed(width)
    inner, upper = torch.linalg.qr(torch.randn(width - 1, width - 1, generator=generator, dtype=torch.float64))
    turn = torch.eye(width, dtype=torch.float64)
    turn[1:, 1:] = inner * upper.diagonal().sign()
    axis = torch.ones(width, dtype=torch.float64) / width**0.5
    axis[0] -= 1.0
    mirror = torch.eye(width, dtype=torch.float64) - 2 * torch.outer(axis, axis) / axis.square().sum()
    return (mirror @ turn @ mirror).float()
