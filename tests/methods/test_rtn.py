import numpy as np
import pytest
import torch

from subeight.errors import InputError
from subeight.formats import Format, find_scales
from subeight.methods.base import build
from subeight.methods.scales import RATIOS
from subeight.models.stats import Stats
from tests.methods import problems
from tests.oracles.rtn import absmax_scales, clipped_scales, grid_values, rtn

GENERATOR = torch.Generator()


@pytest.mark.parametrize("text", ["int4:g16", "int3:g20:asym", "int8:channel", "nf4:g16", "fp8", "mxfp4", "nvfp4"])
def test_codes_of_the_oracle(text):
    problem, format = problems.make(), Format.parse(text)
    rounded = build("rtn").round(problem.weight, format, None, GENERATOR)
    scales, zeros, group = problems.plain(find_scales(problem.weight, format), format, 72)
    expected = rtn(problem.weight.double().numpy(), scales, zeros, group, grid_values(format.grid))
    # the value is code times scale in float32: equal codes differ by its rounding only, other codes by a whole step
    assert np.allclose(rounded.dequantize().numpy(), expected, rtol=1e-6, atol=1e-9)


def test_scales_of_the_oracle():
    problem = problems.make()
    rounded = build("rtn").round(problem.weight, Format.parse("int4:g16"), None, GENERATOR)
    assert np.array_equal(rounded.scales.numpy(), absmax_scales(problem.weight.double().numpy(), 4, 16))


@pytest.mark.parametrize("group", [16, 20, 72])
def test_output_search_is_the_oracles_on_tokens(group):
    problem, format = problems.make(), Format.parse(f"int3:g{group}")
    rounded = build("rtn", {"search": "output"}).round(problem.weight, format, problem.stats, GENERATOR)
    x = problem.inputs.double().numpy()
    expected = clipped_scales(problem.weight.double().numpy(), x, 3, group, RATIOS)
    assert np.array_equal(rounded.scales.numpy(), expected)
    assert len(np.unique(expected / absmax_scales(problem.weight.double().numpy(), 3, group))) > 3


def test_a_wrong_block_of_the_hessian_would_be_seen():
    problem, format = problems.make(), Format.parse("int3:g16")
    method, stats = build("rtn", {"search": "output"}), problem.stats
    right = method.round(problem.weight, format, stats, GENERATOR)
    stats.hessian = stats.hessian.roll((16, 16), (0, 1))
    assert not torch.equal(method.round(problem.weight, format, stats, GENERATOR).scales, right.scales)


@pytest.mark.parametrize(
    "text", ["int3:g32", "int4:channel", "int4:tensor", "int3:g32:asym", "nf4:g64", "nvfp4", "mxfp4"]
)
def test_output_search_never_costs_the_searched_groups(text):
    problem, format = problems.make(width=128), Format.parse(text)
    diagonal = problem.stats.hessian.diagonal().diag()  # no coupling of groups: the groups' errors are the output's
    stats = Stats(1, hessian=diagonal)
    errors = {}
    for search in ("absmax", "output"):
        rounded = build("rtn", {"search": search}).round(problem.weight, format, stats, GENERATOR)
        errors[search] = float(((rounded.dequantize() - problem.weight).square() * diagonal.diagonal()).sum())
    assert errors["output"] < errors["absmax"]


def test_beyond_the_widest_group_the_diagonal_serves():
    problem, format = problems.make(rows=4, width=300), Format.parse("int3:channel")
    method, stats = build("rtn", {"search": "output"}), problem.stats
    whole = method.round(problem.weight, format, stats, GENERATOR)
    stats.hessian = stats.hessian.diagonal().diag()
    assert torch.equal(method.round(problem.weight, format, stats, GENERATOR).scales, whole.scales)


def test_output_search_without_a_hessian_says_so():
    with pytest.raises(InputError, match="without a Hessian; give calibration text"):
        build("rtn", {"search": "output"}).round(torch.ones(2, 4), Format.parse("int4"), None, GENERATOR)
