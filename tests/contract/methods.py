"""What every method must do, whoever wrote it: call `check_round` or `check_move` from a test of your own."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from subeight.errors import FormatError
from subeight.formats import Format, QTensor, quantize
from subeight.formats.scales import Scales, storable
from subeight.methods.base import Fit, Method, Move, Round, Select
from subeight.methods.polishing import ModelTask, Polish
from subeight.methods.tune import BlockTask, Tune
from subeight.models.stats import Stats

FORMATS = (
    "int4:g64:sym",
    "int4:g32:asym",
    "int3:g64:sym",
    "int2:g16:asym",
    "int8:channel:sym",
    "int8:tensor:sym",
    "int4:g64:sym:fp16",
    "nf4:g64",
    "fp8",
    "fp8_e5m2",
    "mxfp4",
    "nvfp4",
)
WIDTH = 172  # no multiple of any group: the last one is short


def variants(made: type[Method]) -> Iterator[dict[str, Any]]:
    """Every combination of the method's choices and switches; numbers stay at their defaults."""
    axes = {}
    for item in fields(made):
        if item.metadata.get("choices"):
            axes[item.name] = list(item.metadata["choices"])
        elif isinstance(item.default, bool):
            axes[item.name] = [False, True]
    for values in itertools.product(*axes.values()):
        yield dict(zip(axes, values, strict=True))


def problem(rows: int = 24, width: int = WIDTH, seed: int = 0) -> tuple[Tensor, Tensor]:
    """A weight with a few outliers and correlated inputs with loud channels."""
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, width, generator=generator) / math.sqrt(width)
    weight[torch.rand(rows, width, generator=generator) < 0.01] *= 6
    mixing = torch.randn(width, width, generator=generator) / math.sqrt(width)
    inputs = torch.randn(4 * width, width, generator=generator) @ (mixing + torch.eye(width))
    loud = torch.rand(width, generator=generator) < 0.05
    return weight, torch.where(loud, inputs * 8, inputs)


def check_round(method: Round, format: Format) -> None:
    """Codes on the grid, the same for the same seed, independent of neighbours, and nothing given is changed."""
    weight, inputs = problem()
    inputs[:, 5] = 0  # a channel that was never fed
    weight[3] = 0
    stats = Stats.from_inputs(inputs, method.needs)
    before = (weight.clone(), None if stats.hessian is None else stats.hessian.clone())
    rounded = _round(method, weight, format, stats)
    _check_grid(rounded, format, tuple(weight.shape))
    _check_values(rounded)
    assert torch.equal(weight, before[0])
    assert before[1] is None or torch.equal(stats.hessian, before[1])
    again = _round(method, weight, format, stats)
    assert _same(rounded, again)
    as_parameter = torch.nn.Parameter(weight.T.contiguous()).T
    assert _same(rounded, _round(method, as_parameter, format, stats))
    assert not rounded.dequantize().requires_grad
    if method.scope in ("linear", "group") and format.per not in ("tensor",) and format.grid != "nvfp4":
        # the engine stacks the linears of a group: rows must not see each other
        upper = _round(method, weight[:7], format, stats)
        assert torch.equal(rounded.rows(0, 7).dequantize(), upper.dequantize())
    with pytest.raises(FormatError):
        _round(method, weight.masked_fill(torch.eye(len(weight), WIDTH, dtype=torch.bool), math.nan), format, stats)


def task_of(
    weights: Mapping[str, Tensor],
    start: Mapping[str, QTensor],
    output: Callable[[Mapping[str, Tensor], int], Tensor],
    batches: int,
) -> BlockTask:
    """A block of linears whose output for a batch `output` computes; the baseline's is that of the given weights."""
    targets = [output(weights, number) for number in range(batches)]

    def loss(given: Mapping[str, Tensor], number: int) -> Tensor:
        return (output(given, number) - targets[number]).square().mean()

    def gradients(given: Mapping[str, Tensor], number: int) -> tuple[float, dict[str, Tensor]]:
        leaves = {name: value.detach().clone().requires_grad_() for name, value in given.items()}
        found = loss(leaves, number)
        return float(found.detach()), dict(zip(leaves, torch.autograd.grad(found, list(leaves.values())), strict=True))

    return BlockTask(weights, start, batches, gradients, lambda given, number: float(loss(given, number)))


def check_tune(method: Tune, format: Format) -> None:
    """Codes on the grid for every weight of a block, the same for the same seed, never worse than what they were."""
    weights = {name: problem(rows, seed=seed)[0] for seed, (name, rows) in enumerate((("one", 24), ("two", 16)))}
    batches = problem()[1].split(172)
    before = {name: weight.clone() for name, weight in weights.items()}
    start = {name: quantize(weight, format) for name, weight in weights.items()}
    kept = {name: codes.codes.clone() for name, codes in start.items()}

    def output(given: Mapping[str, Tensor], number: int) -> Tensor:
        return torch.cat([batches[number] @ given[name].T for name in weights], 1).tanh()[None]

    task, notes = task_of(weights, start, output, len(batches)), [{}, {}]
    one, other = (method.tune(task, torch.Generator().manual_seed(7), each) for each in notes)
    assert one.keys() == weights.keys()
    for name, rounded in one.items():
        _check_grid(rounded, format, tuple(weights[name].shape))
        _check_values(rounded)
        assert _same(rounded, other[name])
        assert torch.equal(weights[name], before[name]) and torch.equal(start[name].codes, kept[name])
        assert not rounded.dequantize().requires_grad
    assert notes[0]["loss"] <= notes[0]["loss_before"]


def check_polish(method: Polish) -> None:
    """Parameters of the same names and shapes, the same for the same seed, a resumed run's too, never worse."""
    generator = torch.Generator().manual_seed(0)
    aims = {"a.scales": torch.rand(6, 3, generator=generator) + 0.5, "norm": torch.randn(5, generator=generator)}
    start = {name: value * 1.1 for name, value in aims.items()}
    noise = torch.randn(16, generator=generator)
    saved: list[dict[str, Tensor]] = []

    def gradients(given: Mapping[str, Tensor], rows: list[int]) -> tuple[float, dict[str, Tensor]]:
        shift = 0.01 * float(noise[rows].mean())
        return loss(given, rows), {name: 2 * (given[name] - aims[name] + shift) for name in aims}

    def loss(given: Mapping[str, Tensor], rows: list[int]) -> float:
        return sum(float((given[name] - aims[name]).square().sum()) for name in aims) + float(noise[rows].mean())

    def polished(kept: dict[str, Tensor] | None) -> tuple[dict[str, Tensor], dict[str, Any]]:
        notes: dict[str, Any] = {}
        keep = lambda state: saved.append({name: value.clone() for name, value in state.items()})  # noqa: E731
        task = ModelTask(start, 16, gradients, loss, keep, lambda: kept)
        return method.polish(task, torch.Generator().manual_seed(7), notes), notes

    before = {name: value.clone() for name, value in start.items()}
    one, notes = polished(None)
    assert {name: value.shape for name, value in one.items()} == {name: value.shape for name, value in start.items()}
    assert notes["loss_after"] < notes["loss_before"]
    assert all(torch.equal(start[name], before[name]) for name in start)
    for other, _ in (polished(None), polished(saved[0])):
        assert all(torch.equal(one[name], other[name]) for name in one)


def check_select(method: Select, format: Format) -> None:
    """Values of the weight itself, no more than planned, the same every time, rows in their places."""
    weight, inputs = problem()
    stats, kept = Stats.from_inputs(inputs, method.needs), weight.clone()
    sparse, again = (method.select(weight, format, stats) for _ in range(2))
    dense = sparse.dense(WIDTH)
    assert torch.equal(dense, again.dense(WIDTH))
    assert torch.equal(weight, kept)
    assert dense.shape == weight.shape
    assert torch.equal(dense, torch.where(dense != 0, weight.bfloat16().float(), 0.0))
    stored = sum(8 * value.nbytes for value in sparse.stored().values())
    assert stored <= method.extra_bits((len(weight), WIDTH))


def check_fit(method: Fit, format: Format) -> None:
    """A product that lessens the error of the outputs, as large as planned, the same every time."""
    weight, inputs = problem()
    stats = Stats.from_inputs(inputs, method.needs)
    lost = weight - quantize(weight, format).dequantize()
    kept = lost.clone()
    thin, again = (method.fit(lost, stats) for _ in range(2))
    assert torch.equal(lost, kept)
    assert torch.equal(thin.dense(), again.dense())
    assert sum(8 * value.nbytes for value in thin.stored().values()) == method.extra_bits((len(weight), WIDTH))
    before, after = ((inputs @ error.T).square().sum() for error in (lost, lost - thin.dense()))
    assert float(after) < float(before)


def check_move(method: Move, formats: list[Format | None], inputs_format: Format | None) -> None:
    """A positive diagonal per producer channel that leaves the function as it was, the same every time."""
    for channels, producers in ((torch.arange(WIDTH), WIDTH), (torch.arange(WIDTH) % 43, 43)):
        x = problem()[1]
        x[:, 5] = 0
        weights = [problem(rows=8, seed=seed)[0] for seed in range(len(formats))]
        stats = Stats.from_inputs(x, method.needs)
        kept = [w.clone() for w in weights]
        s = method.diagonal(weights, formats, stats, channels, producers, inputs_format)
        assert s.shape == (producers,)
        assert s.dtype == torch.float32
        assert not s.requires_grad
        assert bool((torch.isfinite(s) & (s > 0)).all())
        assert all(torch.equal(a, b) for a, b in zip(weights, kept, strict=True))
        assert torch.equal(s, method.diagonal(weights, formats, stats, channels, producers, inputs_format))
        spread = s[channels]
        for weight in weights:
            exact = x.double() @ weight.double().T
            moved = (x / spread).double() @ (weight * spread).double().T
            assert float((exact - moved).abs().max()) <= 1e-5 * float(exact.abs().max())


def _round(method: Round, weight: Tensor, format: Format, stats: Stats) -> QTensor:
    return method.round(weight, format, stats, torch.Generator().manual_seed(7))


def _check_grid(rounded: QTensor, format: Format, shape: tuple[int, ...]) -> None:
    assert rounded.format == format
    assert rounded.shape == shape == tuple(rounded.codes.shape)
    assert rounded.codes.dtype == format.values.code_dtype
    assert rounded.codes.is_contiguous()
    if format.grid.startswith("int"):
        low, high = format.levels
        assert low <= int(rounded.codes.min()) and int(rounded.codes.max()) <= high
    elif format.values.code_dtype == torch.uint8:
        assert int(rounded.codes.max()) < 2**format.code_bits
    assert (rounded.zeros is None) == format.symmetric
    signed = format.symmetric and format.grid.startswith("int") and format.code_bits < 8
    assert bool((rounded.scales != 0 if signed else rounded.scales > 0).all())
    parts = Scales(rounded.scales, rounded.zeros, rounded.global_scale)
    stored = storable(format, parts.effective, rounded.global_scale)
    assert torch.allclose(stored, rounded.scales, rtol=1e-6, atol=0), "a scale that its type cannot hold"


def _check_values(rounded: QTensor) -> None:
    """What the next block sees is on the grid: rounding it again under the same scales changes nothing."""
    values = rounded.dequantize()
    assert bool(torch.isfinite(values).all())
    scales = Scales(rounded.scales, rounded.zeros, rounded.global_scale)
    again = quantize(values, rounded.format, scales)
    assert torch.equal(again.dequantize(), values)


def _same(a: QTensor, b: QTensor) -> bool:
    return torch.equal(a.codes.view(torch.uint8), b.codes.view(torch.uint8)) and torch.equal(a.scales, b.scales)
