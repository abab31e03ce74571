import numpy as np
import pytest
import torch

from subeight.inspect.weights import error_shares, moments, sampled, tails, x_ray_weight
from subeight.models.linear_info import LinearInfo
from tests.oracles import inspect_weights as oracle


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def info(weight, kind="linear"):
    return LinearInfo("model.layers.0.x", tuple(weight.shape), 0, "g", None, kind, torch.float32)


def planted(count=24, size=30.0):
    """Normal weights with a few far larger ones, each in a group of its own."""
    weight = normal(64, 192) * 0.02
    rows = torch.randperm(64, generator=torch.Generator().manual_seed(1))[:count]
    weight[rows, 7] = size * 0.02 * (1 + torch.arange(count) / count)
    return weight


@pytest.mark.parametrize("make", [lambda: normal(16, 172), planted, lambda: normal(24, 130) ** 3])
def test_errors_and_shares_are_the_oracles(make):
    weight = make()
    errors, shares = error_shares(weight)
    wide = weight.double().numpy()
    for name, bits in (("int4", 4), ("int3", 3)):
        assert errors[name] == pytest.approx(oracle.relative_error(wide, bits), rel=1e-4)
        for apart, part in (("top0.1%", 0.001), ("top1%", 0.01)):
            count = max(1, round(part * weight.numel()))
            assert shares[name][apart] == pytest.approx(oracle.share(wide, bits, count), abs=2e-4)


def test_moments_are_those_of_float64():
    weight = normal(300, 1024) ** 3 + 0.1
    wide = weight.double().numpy()
    centred = wide - wide.mean()
    found = moments(weight)
    assert found.absmax == float(weight.abs().max())
    assert found.rms == pytest.approx(np.sqrt((wide**2).mean()), rel=1e-9)
    assert found.kurtosis == pytest.approx((centred**4).mean() / (centred**2).mean() ** 2 - 3, rel=1e-6)
    assert moments(torch.full((4, 8), 0.5)).kurtosis == 0.0


def test_a_few_planted_values_cause_the_error_and_are_named_so():
    found = x_ray_weight(info(planted()), planted())
    assert found["error_share"]["int4"]["top1%"] > 0.7
    assert found["tails"] == "few" and "set them apart" in found["means"]
    assert found["range_over_rms"] > 15


def test_light_heavy_and_exact_weights_are_told_apart():
    light = x_ray_weight(info(normal(128, 512)), normal(128, 512))
    assert light["tails"] == "light" and "gptq" in light["means"]
    assert light["error_share"]["int4"] == pytest.approx({"top0.1%": 0.056, "top1%": 0.246}, abs=0.015)
    generator = torch.Generator().manual_seed(0)
    laplace = torch.empty(128, 512).exponential_(generator=generator) * (normal(128, 512) > 0).float().mul(2).sub(1)
    heavy = x_ray_weight(info(laplace), laplace)
    assert heavy["tails"] == "heavy" and "rotation" in heavy["means"]
    zero = x_ray_weight(info(torch.zeros(4, 64)), torch.zeros(4, 64))
    assert zero["error"]["int4"] == 0 and "loses nothing" in zero["means"]
    assert "high precision" in x_ray_weight(info(laplace, "router"), laplace)["means"]


def test_large_matrices_answer_by_a_fixed_sample_of_rows():
    weight = normal(512, 256)
    part = sampled(weight, values=64 * 256)
    assert part.shape == (64, 256) and torch.equal(part, sampled(weight, values=64 * 256))
    assert all(bool((weight == row).all(1).any()) for row in part)
    whole, few = error_shares(weight)[1]["int4"], error_shares(part)[1]["int4"]
    assert few["top1%"] == pytest.approx(whole["top1%"], abs=0.03)
    assert sampled(weight).shape == weight.shape


def test_tails_by_their_limits():
    assert tails({"top0.1%": 0.25, "top1%": 0.3}) == tails({"top0.1%": 0.1, "top1%": 0.5}) == "few"
    assert tails({"top0.1%": 0.1, "top1%": 0.3}) == tails({"top0.1%": 0.05, "top1%": 0.35}) == "heavy"
    assert tails({"top0.1%": 0.09, "top1%": 0.34}) == "light"
