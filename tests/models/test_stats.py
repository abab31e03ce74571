import torch

from subeight.models.stats import Stats


def inputs():
    return torch.randn(3, 50, 8, generator=torch.Generator().manual_seed(0))


def test_from_inputs_is_what_the_names_say():
    x = inputs()
    stats = Stats.from_inputs(x)
    hessian = torch.zeros(8, 8, dtype=torch.float64)
    for row in x.reshape(-1, 8).double():
        hessian += 2 / 150 * torch.outer(row, row)
    assert stats.count == 150
    assert torch.allclose(stats.hessian.double(), hessian, rtol=1e-5)
    assert torch.equal(stats.absmax, x.abs().amax((0, 1)))
    assert torch.allclose(stats.absmean, x.abs().mean((0, 1)))


def test_only_what_is_needed_is_gathered():
    stats = Stats.from_inputs(inputs(), {"absmax"})
    assert stats.hessian is None
    assert stats.absmean is None
    assert stats.absmax is not None


def test_rescaled_is_what_a_new_tap_would_gather():
    x, s = inputs(), torch.linspace(0.3, 3, 8)
    moved, tapped = Stats.from_inputs(x).rescaled(s), Stats.from_inputs(x / s)
    assert moved.count == tapped.count
    for name in ("hessian", "absmax", "absmean"):
        assert torch.allclose(getattr(moved, name), getattr(tapped, name), rtol=1e-5, atol=1e-7)


def test_what_was_not_gathered_stays_missing():
    assert Stats(3).rescaled(torch.ones(8)) == Stats(3)
