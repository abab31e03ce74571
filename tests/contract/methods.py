"""What every method must do, whoever wrote it: call `check_round` or `check_move` from a test of your own."""

import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any

import pytest
import torch
from torch import Tensor

from subeight.errors import FormatError
from subeight.formats import Format, QTensor, quantize
from subeight.formats.scales import Scales, storable
from subeight.methods.base import Method, Move, Round
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


def check_tune(method: Tune, format: Format) -> None:
    """Codes on the grid for every weight of a block, the same for the same seed, never worse than plain rounding."""
    weights = {name: problem(rows, seed=seed)[0] for seed, (name, rows) in enumerate((("one", 24), ("two", 16)))}
    batches = problem()[1].split(172)
    before = {name: weight.clone() for name, weight in weights.items()}

    def output(given: Mapping[str, Tensor], number: int) -> Tensor:
        return torch.cat([batches[number] @ given[name].T for name in weights], 1).tanh()[None]

    targets = [output(weights, number) for number in range(len(batches))]
    task = BlockTask(weights, dict.fromkeys(weights, format), targets, output)
    one, other = (method.tune(task, torch.Generator().manual_seed(7), {}) for _ in range(2))
    assert one.keys() == weights.keys()
    for name, rounded in one.items():
        _check_grid(rounded, format, tuple(weights[name].shape))
        _check_values(rounded)
        assert _same(rounded, other[name]) and torch.equal(weights[name], before[name])
        assert not rounded.dequantize().requires_grad
    found, plain = (
        sum(float(task.loss({name: q.dequantize() for name, q in codes.items()}, n)) for n in range(len(batches)))
        for codes in (one, {name: quantize(weight, format) for name, weight in weights.items()})
    )
    assert found <= plain * (1 + 1e-6)


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
    assert bool((rounded.scales > 0).all())
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
