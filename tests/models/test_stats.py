import torch

from subeight.models.stats import Stats
from tests.oracles.models_hessian import counted, hessian


def inputs():
    return torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(0))


def test_from_inputs_is_what_the_names_say():
    x = inputs()
    stats = Stats.from_inputs(x)
    assert stats.count == 150
    assert stats.weight == sum(counted(x.reshape(-1, 8)))
    assert torch.allclose(stats.hessian.double(), hessian(x.reshape(-1, 8)), rtol=1e-5, atol=1e-6)
    assert torch.equal(stats.absmax, x.abs().amax((0, 1)))
    assert torch.allclose(stats.absmean, x.abs().mean((0, 1)))


def test_a_massive_token_counts_with_its_length():
    x = torch.randn(40, 16, generator=torch.Generator().manual_seed(3))
    quiet, one, both = (Stats.from_inputs(part) for part in (x[:39], x[39:], torch.cat([x[:39], x[39:] * 2.0**10])))
    expected = quiet.hessian * quiet.weight + 2.0**10 * one.hessian * one.weight
    torch.testing.assert_close(both.hessian * both.weight, expected, rtol=1e-4, atol=1e-3)
    nothing = Stats.from_inputs(torch.cat([x, torch.zeros(3, 16)]))
    assert nothing.count == 43
    assert torch.equal(nothing.hessian, Stats.from_inputs(x).hessian)


def test_only_what_is_needed_is_gathered():
    stats = Stats.from_inputs(inputs(), {"absmax"})
    assert stats.hessian is None
    assert stats.absmean is None
    assert stats.absmax is not None


def test_rescaled_is_what_a_new_tap_would_gather():
    x, s = inputs().reshape(-1, 8), torch.linspace(0.3, 3, 8)
    x = torch.where(torch.rand(x.shape, generator=torch.Generator().manual_seed(1)) < 0.5, -x[:1].abs(), x[:1].abs())
    moved, tapped = Stats.from_inputs(x).rescaled(s), Stats.from_inputs(x / s)  # tokens of one length stay so
    assert moved.count == tapped.count
    for name in ("hessian", "absmax", "absmean"):
        assert torch.allclose(getattr(moved, name), getattr(tapped, name), rtol=1e-5, atol=1e-7)


def test_what_was_not_gathered_stays_missing():
    assert Stats(3).rescaled(torch.ones(8)) == Stats(3)
