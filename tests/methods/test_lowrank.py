import numpy as np
import pytest
import torch

from subeight.errors import InputError
from subeight.formats import Format, quantize
from subeight.methods.apart.lowrank import LowRank
from subeight.models.stats import Stats
from tests.methods import problems
from tests.oracles.apart import least_output_error, output_error


def lost_of(problem: problems.Problem) -> torch.Tensor:
    return problem.weight - quantize(problem.weight, Format.parse("int2:g24:asym")).dequantize()


def left_over(method: LowRank, problem: problems.Problem, lost: torch.Tensor) -> float:
    corrected = lost - method.fit(lost, problem.stats).dense()
    return output_error(corrected.double().numpy(), problem.inputs.double().numpy())


@pytest.mark.parametrize("rank", [1, 3, 8])
def test_nothing_of_this_rank_does_better_for_the_outputs(rank):
    problem = problems.make(rows=24)
    lost = lost_of(problem)
    best = least_output_error(lost.double().numpy(), problem.inputs.double().numpy(), rank)
    found = left_over(LowRank(rank=rank), problem, lost)
    whole = output_error(lost.double().numpy(), problem.inputs.double().numpy())
    assert best <= found * (1 + 1e-9)
    assert found == pytest.approx(best, abs=2e-4 * whole)  # the factors are kept in 16 bits


def test_each_metric_is_the_better_the_more_it_knows():
    problem = problems.make(rows=24)
    lost = lost_of(problem)
    errors = [left_over(LowRank(rank=4, metric=metric), problem, lost) for metric in ("eigen", "diagonal", "weights")]
    assert errors == sorted(errors)


def test_full_rank_leaves_nothing():
    problem = problems.make(rows=10)
    lost = lost_of(problem)
    thin = LowRank(rank=64).fit(lost, problem.stats)
    assert thin.left.shape == (10, 10)
    assert np.allclose(thin.dense().numpy(), lost.numpy(), atol=2e-2 * float(lost.abs().max()))


def test_channels_that_were_never_fed_are_no_trouble():
    problem = problems.make(rows=10)
    problem.inputs[:, 7] = 0
    thin = LowRank(rank=3).fit(lost_of(problem), problem.stats)
    assert bool(torch.isfinite(thin.dense()).all())
    unfed = Stats(0, hessian=torch.zeros(72, 72))
    assert bool(torch.isfinite(LowRank(rank=3).fit(lost_of(problem), unfed).dense()).all())


def test_without_statistics_it_says_what_to_do():
    with pytest.raises(InputError, match="choose metric: weights"):
        LowRank().fit(torch.ones(3, 4), None)
