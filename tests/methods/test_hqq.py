import numpy as np
import pytest
import torch

from subeight.formats import Format, Scales, find_scales, quantize
from subeight.methods.base import build
from subeight.methods.round.hqq import Hqq, _shrunk, _Task
from tests.methods import problems
from tests.oracles.hqq import objective, turn
from tests.oracles.rtn import grid_values

GENERATOR = torch.Generator()
FORMATS = ["int4:g16:fp32", "int3:g20:asym:fp32", "int2:g16:asym:fp32", "nf4:g16:fp32"]


def outlying(width: int = 72) -> torch.Tensor:
    """Normal values with a few that are ten times as large."""
    weight = problems.make(rows=12, width=width).weight.clone()
    weight[:, ::19] *= 10
    return weight


def tied(weights: np.ndarray, scale: float, zero: float) -> bool:
    """Whether a value lies half-way between two codes, where float32 may take the other one."""
    return bool((np.abs((weights / scale + zero) % 1 - 0.5) < 1e-4).any())


@pytest.mark.parametrize("text", FORMATS)
def test_turns_of_the_oracle(text):
    weight, format = outlying(), Format.parse(text)
    group, grid = format.group, grid_values(format.grid)
    scales = find_scales(weight, format)
    for strength in (10.0, 40.0):
        fitted = _Task(weight, format).fitted(scales, 0.7, strength)
        effective, zeros, _ = problems.plain(scales, format, 72)
        for row in range(12):
            for at in range(-(-72 // group)):
                part = weight[row, at * group : (at + 1) * group].double().numpy()
                if tied(part, effective[row, at], zeros[row, at]):
                    continue
                scale, zero = turn(part, effective[row, at], zeros[row, at], grid, 0.7, strength, not format.symmetric)
                assert float(fitted.effective[row, at]) == pytest.approx(scale, rel=1e-4)
                assert fitted.zeros is None or int(fitted.zeros[row, at]) == zero
        scales = fitted


@pytest.mark.parametrize("text", FORMATS)
def test_no_group_is_worse_than_full_range_by_the_objective(text):
    weight, format = outlying(), Format.parse(text)
    rounded, plain = Hqq().round(weight, format, None, GENERATOR), find_scales(weight, format)
    found = Scales(rounded.scales, rounded.zeros)
    grid, totals = grid_values(format.grid), np.zeros(2)
    for row in range(12):
        for at in range(-(-72 // format.group)):
            part = weight[row, at * format.group : (at + 1) * format.group].double().numpy()
            losses = []
            for scales in (found, plain):
                effective, zeros, _ = problems.plain(scales, format, 72)
                losses.append(objective(part, effective[row, at], zeros[row, at], grid, 0.7))
            assert losses[0] <= losses[1] * (1 + 1e-5)
            totals += losses
    assert totals[0] < totals[1]


def test_it_loses_less_by_its_measure_than_the_search_for_the_least_square():
    weight, format = outlying(), Format.parse("int3:g20:sym")
    errors = [
        float((build(name, options).round(weight, format, None, GENERATOR).dequantize() - weight).abs().pow(0.7).mean())
        for name, options in (("hqq", {}), ("rtn", {"search": "mse"}))
    ]
    assert errors[0] < 0.97 * errors[1]


def test_the_shrinkage_moves_toward_the_least_of_its_objective():
    error = torch.linspace(-3, 3, 41, dtype=torch.float64)
    found = _shrunk(error, 1.0, 4.0)
    # with p = 1 it is the soft threshold, exactly: the minimum over a fine grid
    tried = torch.linspace(-4, 4, 8001, dtype=torch.float64)
    loss = tried.abs()[None] + 2.0 * (tried[None] - error[:, None]).square()
    assert torch.allclose(found, tried[loss.argmin(1)], atol=1e-3)
    assert (_shrunk(error, 0.5, 4.0).abs() <= error.abs()).all()


def test_what_fills_a_short_group_does_not_count():
    weight, format = outlying(), Format.parse("int4:g64:asym")
    alone = Hqq().round(weight[:, 64:], Format.parse("int4:g8:asym"), None, GENERATOR)
    together = Hqq().round(weight, format, None, GENERATOR)
    assert torch.equal(together.codes[:, 64:], alone.codes) and torch.equal(together.scales[:, 1:], alone.scales)


@pytest.mark.parametrize("planted", [{"p": 0.2}, {"strength": 100.0}])
def test_other_options_give_other_scales(planted):
    weight, format = outlying(), Format.parse("int3:g20:asym")
    one, other = (Hqq(**options).round(weight, format, None, GENERATOR) for options in ({}, planted))
    assert not torch.equal(one.scales, other.scales)


def test_powers_of_two_leave_nothing_to_fit():
    weight, format = outlying(96), Format.parse("mxfp4")
    assert torch.equal(Hqq().round(weight, format, None, GENERATOR).codes, quantize(weight, format).codes)
