import numpy as np
import pytest
import torch

from subeight.errors import InputError
from subeight.formats import Format, fake_quantize, quantize
from subeight.methods.move.smooth import Smooth, input_variance, mixed_error
from subeight.models.stats import Stats
from tests.methods import problems
from tests.oracles.smooth import smooth

INT8, TOKEN = Format.parse("int8:channel"), Format.parse("int8:token")


@pytest.mark.parametrize("alpha", [0.0, 0.5, 0.8, 1.0])
@pytest.mark.parametrize("producers", [72, 24])
def test_scales_of_the_oracle(producers, alpha):
    problem, other = problems.make(), problems.make(seed=1).weight
    problem.inputs[:, [4, 28, 52]] = 0  # one producer's channel was never fed
    channels = torch.arange(72) % producers
    s = Smooth(alpha=alpha).diagonal([problem.weight, other], [INT8, INT8], problem.stats, channels, producers)
    weights = [problem.weight.double().numpy(), other.double().numpy()]
    expected = smooth(weights, problem.inputs.double().numpy(), alpha, channels.tolist(), producers)
    assert np.allclose(s.numpy(), expected, rtol=1e-5)


def test_planted_errors_would_be_seen():
    problem, channels = problems.make(), torch.arange(72)
    right = Smooth(alpha=0.8).diagonal([problem.weight], [INT8], problem.stats, channels, 72)
    swapped = Smooth(alpha=0.2).diagonal([problem.weight], [INT8], problem.stats, channels, 72)
    assert not torch.allclose(swapped, right, rtol=1e-3)
    mean = Stats(1, absmax=problem.stats.absmean)
    assert not torch.allclose(
        Smooth(alpha=0.8).diagonal([problem.weight], [INT8], mean, channels, 72), right, rtol=1e-3
    )


@pytest.mark.parametrize("text", ["int8:token", "int8:tensor", "fp8:token", "int4:token"])
def test_expected_input_error_is_near_the_measured(text):
    """Within a factor of three for inputs without heavy tails: it ranks candidates, it is not reported."""
    x = problems.make(tokens=2000).inputs
    measured = (fake_quantize(x, Format.parse(text)) - x).square().mean()
    expected = input_variance(Format.parse(text), Stats.from_inputs(x)).mean()
    assert 1 / 3 < float(expected / measured) < 3


def test_search_finds_what_real_rounding_confirms():
    """Loud channels and 8-bit inputs: the found scales beat no smoothing when tokens are really rounded."""
    problem = problems.make(tokens=400)
    problem.inputs[:, [1, 30]] *= 60
    found = Smooth(search=True).diagonal([problem.weight], [INT8], problem.stats, torch.arange(72), 72, TOKEN)
    exact = problem.inputs @ problem.weight.T

    def loss(s):
        from_tokens = fake_quantize(problem.inputs / s, TOKEN)
        weight = quantize(problem.weight * s, INT8).dequantize()
        return float((from_tokens @ weight.T - exact).square().sum())

    assert loss(found) < 0.3 * loss(torch.ones(72))


def test_search_keeps_the_least_of_its_own_error():
    problem, channels = problems.make(), torch.arange(72)
    problem.inputs[:, 7] *= 40
    method = Smooth(search=True, alphas=(0.2, 0.5, 0.9))
    found = method.diagonal([problem.weight], [INT8], problem.stats, channels, 72, TOKEN)
    tried = [Smooth(alpha=a).diagonal([problem.weight], [INT8], problem.stats, channels, 72) for a in method.alphas]
    errors = [mixed_error([problem.weight], [INT8], TOKEN, problem.stats, s) for s in (torch.ones(72), *tried)]
    assert mixed_error([problem.weight], [INT8], TOKEN, problem.stats, found) == min(errors)


def test_ones_when_nothing_helps():
    problem = problems.make()
    s = Smooth(search=True).diagonal([problem.weight], [None], problem.stats, torch.arange(72), 72, None)
    assert torch.equal(s, torch.ones(72))


def test_without_statistics_it_says_so():
    with pytest.raises(InputError, match="absmax; give calibration text"):
        Smooth().diagonal([torch.ones(2, 4)], [INT8], Stats(1), torch.arange(4), 4)
    with pytest.raises(InputError, match="hessian; give calibration text"):
        Smooth(search=True).diagonal([torch.ones(2, 4)], [INT8], Stats(1, absmax=torch.ones(4)), torch.arange(4), 4)
