import pytest
import torch

from subeight.models.fits import Fit, diagonal, norm_ratio, procrustes, row_pairs, row_ratios, sharpened, taken_up


@pytest.fixture
def weight():
    return torch.randn(96, 64, generator=torch.Generator().manual_seed(0))


def noise(weight, size, seed=1):
    return size * torch.randn(weight.shape, generator=torch.Generator().manual_seed(seed))


def test_a_fit_is_what_its_names_say(weight):
    other = 1.1 * weight + noise(weight, 0.2)
    fit = Fit.of(row_pairs(weight, other))
    a, c = weight.double(), other.double()
    assert fit.correlation == pytest.approx(float((a * c).sum() / (a.norm() * c.norm())), rel=1e-6)
    assert fit.slope == pytest.approx(float((a * c).sum() / a.square().sum()), rel=1e-6)
    assert fit.difference == pytest.approx(float((a - c).norm() / a.norm()), rel=1e-6)
    assert Fit.of([(weight[:50], other[:50]), (weight[50:], other[50:])]).difference == pytest.approx(fit.difference)


@pytest.mark.parametrize(
    ("slope", "size", "rounded"),
    [
        (1, 0, True),
        (1, 0.08, True),
        (1, 0.5, True),
        (1.05, 0, False),
        (0.9, 0.08, False),
        (-1, 0, False),
        (1, 2, False),
    ],
)
def test_what_rounding_could_have_done(slope, size, rounded, weight):
    assert Fit.of([(weight, slope * weight + noise(weight, size))]).is_rounding is rounded


def test_weights_of_zero(weight):
    assert Fit.of([(weight * 0, weight * 0)]).is_rounding
    assert not Fit.of([(weight, weight * 0)]).is_rounding
    assert not Fit.of([(weight * 0, weight)]).is_rounding


def test_row_ratios_are_regressions(weight):
    factor = torch.linspace(0.5, 2, 96)
    other = factor[:, None] * weight
    other[3] = noise(weight, 1)[3]
    other[4] = weight[4] = 0
    other[5] = -weight[5]
    found = row_ratios(weight, other)
    assert sorted(torch.nonzero(~found.sure).flatten().tolist()) == [3, 4, 5]
    assert torch.nonzero(~found.alive).flatten().tolist() == [4]
    torch.testing.assert_close(found.factor[6:].float(), factor[6:])


def test_a_diagonal_needs_both_sides(weight):
    s = torch.linspace(0.5, 2, 96)
    up, down = row_ratios(weight, weight * s[:, None]), row_ratios(weight, weight / s[:, None])
    still = row_ratios(weight, weight)
    found, sure = diagonal(down, up)
    torch.testing.assert_close(found, s)
    assert bool(sure.all())
    assert diagonal(still, still) is None
    assert diagonal(up, up) is None  # both multiplied: no move


def test_the_side_with_less_noise_tells_the_scale(weight):
    s = torch.linspace(0.5, 2, 96)
    noisy = row_ratios(weight, weight / s[:, None] + noise(weight, 0.3))
    found, _ = diagonal(noisy, row_ratios(weight, weight * s[:, None]))
    torch.testing.assert_close(found, s, rtol=1e-4, atol=0)


def test_a_bias_makes_scales_exact():
    s = torch.tensor([0.5, 1.0, 2.0, 3.0])
    bias = torch.tensor([1.0, -2.0, 0.0, 4.0])
    found = sharpened(s * 1.01, bias, bias / s)
    torch.testing.assert_close(found, torch.tensor([0.5, 1.0, 2.02, 3.0]))
    assert torch.equal(sharpened(s, bias, -bias), s)


def test_norm_ratios():
    ours = torch.tensor([1.0, 2.0, 0.0, 1.0, 1.0])
    assert norm_ratio(ours, ours * (1 + 1e-7), 1e-6) is None
    torch.testing.assert_close(
        norm_ratio(ours, torch.tensor([2.0, 1.0, 0.0, -1.0, 0.0]), 1e-6), torch.tensor([0.5, 2.0, 1.0, 1.0, 1.0])
    )


def test_readers_that_are_other_weights_have_no_vote(weight):
    s = torch.linspace(0.5, 2, 64)

    def reader(candidate):
        return lambda: [(weight, candidate)]

    follows, stays, other = reader(weight * s), reader(weight), reader(noise(weight, 5))
    assert taken_up([follows], s)
    assert taken_up([follows, other, other], s)
    assert not taken_up([stays, other], s)
    assert not taken_up([other], s)


def test_readers_whose_rows_were_scaled_too_still_tell(weight):
    s = torch.linspace(0.9, 1.1, 64)
    rows = torch.linspace(0.5, 2, 96)[:, None]
    assert taken_up([lambda: [(weight, (weight * s + noise(weight, 0.1)) * rows)]], s)
    assert not taken_up([lambda: [(weight, (weight + noise(weight, 0.1)) * rows)]], s)


@pytest.mark.parametrize("follows", [False, True])
def test_one_factor_for_all_channels_is_seen_by_the_plain_distance(follows, weight):
    s = torch.full((64,), 1.3)
    assert taken_up([lambda: [(weight, weight * s if follows else weight)]], s) is follows


def test_procrustes_finds_the_rotation_under_noise(weight):
    rotation = torch.linalg.qr(noise(torch.empty(64, 64), 1))[0]
    found, turned, plain = procrustes(row_pairs(weight, weight @ rotation))
    torch.testing.assert_close(found, rotation, rtol=0, atol=1e-5)
    assert turned < 1e-3 < 1 < plain
    found, turned, _ = procrustes(row_pairs(weight, weight @ rotation + noise(weight, 0.01)))
    torch.testing.assert_close(found @ found.T, torch.eye(64), rtol=0, atol=1e-5)
    assert 0.001 < turned < 0.02
    assert procrustes(row_pairs(weight[:32], (weight @ rotation)[:32]))[0] is None
