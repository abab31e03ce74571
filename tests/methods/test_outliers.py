import numpy as np
import pytest
import torch

from subeight.errors import InputError
from subeight.formats import Format, quantize
from subeight.methods.apart.outliers import Outliers, _per_value
from subeight.models.stats import Stats
from tests.methods import problems
from tests.oracles.apart import best_gain, rounding_error

FORMAT = Format.parse("int3:g12:sym:fp32")


def problem_with_outliers(rows: int = 8, width: int = 48) -> problems.Problem:
    problem = problems.make(rows=rows, width=width)
    generator = torch.Generator().manual_seed(5)
    loud = torch.rand(problem.weight.shape, generator=generator) < 0.04
    return problems.Problem(torch.where(loud, problem.weight * 6, problem.weight), problem.inputs)


def weighted(problem: problems.Problem, rounded: torch.Tensor) -> float:
    cost = problem.stats.hessian.diagonal()
    return float(((rounded - problem.weight).square() * cost).sum())


def rounded_with(problem: problems.Problem, method: Outliers) -> tuple[float, int]:
    sparse = method.select(problem.weight, FORMAT, problem.stats)
    dense = sparse.dense(problem.weight.shape[1])
    rounded = quantize(problem.weight - dense, FORMAT).dequantize() + dense
    return weighted(problem, rounded), len(sparse.values)


def test_one_value_of_each_group_is_the_one_that_gains_most():
    """With a budget of one value for each group at most: all ways are tried by the oracle."""
    problem = problem_with_outliers()
    weight, cost = problem.weight.double().numpy(), problem.stats.hessian.diagonal().double().numpy()
    found, count = rounded_with(problem, Outliers(percent=20, most=1))
    expected = 0.0
    for row in weight:
        for start in range(0, len(row), 12):
            part = slice(start, start + 12)
            error = rounding_error(row[part], cost[part], 8, FORMAT.values.peak)
            expected += error - max(0.0, best_gain(row[part], cost[part], 1, 8, FORMAT.values.peak))
    assert count <= 8 * 4
    assert found <= expected * 1.05  # the extreme or the worst rounded is nearly always the best


def test_the_budget_goes_where_it_gains_most():
    problem = problem_with_outliers()
    plain = weighted(problem, quantize(problem.weight, FORMAT).dequantize())
    errors = [rounded_with(problem, Outliers(percent=percent)) for percent in (1, 3, 8)]
    assert [count for _, count in errors] == [int(8 * 48 * percent / 100) for percent in (1, 3, 8)]
    assert plain > errors[0][0] > errors[1][0] > errors[2][0]
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):  # no random choice of as many values does better
        chosen = torch.randperm(8 * 48, generator=generator)[: errors[1][1]]
        dense = torch.zeros(8 * 48)
        dense[chosen] = problem.weight.flatten()[chosen]
        rest = quantize(problem.weight - dense.view(8, 48), FORMAT).dequantize() + dense.view(8, 48)
        assert weighted(problem, rest) > errors[1][0]


def test_whole_columns_are_the_costliest_ones():
    problem = problem_with_outliers()
    sparse = Outliers(percent=5, kind="columns").select(problem.weight, FORMAT, problem.stats)
    columns = sorted({int(column) for column in sparse.columns})
    assert len(columns) == 2 and len(sparse.values) == 16
    lost = (quantize(problem.weight, FORMAT).dequantize() - problem.weight).square().sum(0)
    assert columns == sorted((lost * problem.stats.hessian.diagonal()).topk(2).indices.tolist())


def test_gains_are_those_of_the_least_concave_curve():
    """Two values that gain only together count half of it each, and one after them no more than what it adds."""
    errors = torch.tensor([10.0, 9.5, 4.0, 3.0, 2.9]).view(5, 1, 1)
    assert _per_value(errors).flatten().tolist() == pytest.approx([3.0, 3.0, 1.0, 0.1])


def test_planned_bits_are_enough_for_what_is_stored():
    problem = problem_with_outliers()
    for kind in ("values", "columns"):
        method = Outliers(percent=3, kind=kind)
        sparse = method.select(problem.weight, FORMAT, problem.stats)
        assert sum(8 * value.nbytes for value in sparse.stored().values()) <= method.extra_bits((8, 48))


def test_nothing_is_taken_where_nothing_gains():
    problem = problems.make()
    unfed = Stats(0, hessian=torch.zeros(72, 72))
    assert len(Outliers().select(problem.weight, Format.parse("int4:g24"), unfed).values) == 0
    assert np.isfinite(rounded_with(problem_with_outliers(), Outliers(percent=0))[0])


def test_without_statistics_it_says_what_to_do():
    with pytest.raises(InputError, match="give calibration text"):
        Outliers().select(torch.ones(3, 4), FORMAT, None)
