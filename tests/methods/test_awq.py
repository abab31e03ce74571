import numpy as np
import pytest
import torch

from subeight.errors import InputError
from subeight.formats import Format
from subeight.methods.base import build
from subeight.methods.move.awq import Awq, scaled_error
from subeight.models.stats import Stats
from tests.methods import problems
from tests.oracles import awq as oracle

INT3 = Format.parse("int3:g16")


def loud(seed=0):
    """Inputs with a few loud channels: where AWQ has something to do."""
    problem = problems.make(rows=6, width=40, seed=seed, tokens=60)
    problem.inputs[:, [2, 17]] *= 20
    return problems.Problem(problem.weight, problems.alike(problem.inputs))


@pytest.mark.parametrize("duo", [True, False])
@pytest.mark.parametrize("shared", [False, True])
def test_scales_of_the_oracle(shared, duo):
    problem, other = loud(), problems.make(rows=4, width=40, seed=1).weight
    channels = torch.arange(40) % 20 if shared else torch.arange(40)
    producers = 20 if shared else 40
    s = Awq(grid=6, duo=duo).diagonal([problem.weight, other], [INT3, INT3], problem.stats, channels, producers)
    expected = oracle.awq(
        [problem.weight.double().numpy(), other.double().numpy()],
        problem.inputs.double().numpy(),
        3,
        16,
        channels.tolist(),
        producers,
        6,
        duo,
    )
    # the same candidate is chosen; its numbers are float32 powers
    assert np.allclose(s.numpy(), expected, rtol=1e-4)
    assert not np.allclose(expected, 1)


def test_error_through_the_hessian_is_the_error_on_tokens():
    problem = loud()
    s = torch.linspace(0.5, 2, 40)
    through = scaled_error([(problem.weight, INT3)], problem.stats.hessian, s) * len(problem.inputs) / 2
    x, weight = problem.inputs.double().numpy(), problem.weight.double().numpy()
    assert through == pytest.approx(oracle.loss([weight], x, s.double().numpy(), 3, 16), rel=1e-4)


def test_planted_errors_would_be_seen():
    problem, channels = loud(), torch.arange(40)
    right = Awq(grid=6).diagonal([problem.weight], [INT3], problem.stats, channels, 40)
    stats = problem.stats
    stats.absmean = stats.absmean.roll(1)
    assert not torch.allclose(Awq(grid=6).diagonal([problem.weight], [INT3], stats, channels, 40), right, rtol=1e-3)
    wrong_group = Format.parse("int3:g20")
    assert not torch.allclose(
        Awq(grid=6).diagonal([problem.weight], [wrong_group], problem.stats, channels, 40), right, rtol=1e-3
    )
    identity = Stats(1, hessian=torch.eye(40), absmean=problem.stats.absmean)
    assert not torch.allclose(Awq(grid=6).diagonal([problem.weight], [INT3], identity, channels, 40), right, rtol=1e-3)


def test_awq_before_rounding_lowers_the_output_error():
    problem = loud()
    s = Awq().diagonal([problem.weight], [INT3], problem.stats, torch.arange(40), 40)
    round_ = build("rtn")
    moved = round_.round(problem.weight * s, INT3, problem.stats.rescaled(s), torch.Generator()).dequantize() / s
    plain = round_.round(problem.weight, INT3, None, torch.Generator()).dequantize()
    assert problems.output_error(problem.weight, moved, problem.inputs) < 0.7 * problems.output_error(
        problem.weight, plain, problem.inputs
    )


def test_ones_when_nothing_helps():
    """Weights that lie on their grid already lose nothing, and no scale can better that."""
    weight = torch.randint(-4, 4, (6, 32), generator=torch.Generator().manual_seed(0)).float()
    weight[:, ::16], weight[:, 1::16] = -4, 3
    stats = Stats.from_inputs(problems.make(width=32).inputs)
    for formats in ([Format.parse("int3:g16:asym")], [None]):
        s = Awq().diagonal([weight], formats, stats, torch.arange(32), 32)
        assert torch.equal(s, torch.ones(32))


def test_weights_that_stay_as_they_are_have_no_say():
    problem, channels = loud(), torch.arange(40)
    alone = Awq().diagonal([problem.weight], [INT3], problem.stats, channels, 40)
    beside = Awq().diagonal([torch.randn(9, 40), problem.weight], [None, INT3], problem.stats, channels, 40)
    assert torch.equal(alone, beside)


def test_without_statistics_it_says_so():
    with pytest.raises(InputError, match="hessian and absmean; give calibration text"):
        Awq().diagonal([torch.ones(2, 4)], [INT3], Stats(1), torch.arange(4), 4)
