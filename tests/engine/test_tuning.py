"""How far a block's output is from the baseline's, when its linears are tuned together."""

import torch

from subeight.engine.tuning import _distance


def test_the_distance_is_a_share_of_each_tokens_own_square() -> None:
    generator = torch.Generator().manual_seed(0)
    target = torch.randn(2, 5, 8, generator=generator)
    target[0, 0] *= 3000  # a massive token
    output = target + 0.1 * torch.randn(2, 5, 8, generator=generator)
    wanted = [
        sum((float(o) - float(t)) ** 2 for o, t in zip(out, want, strict=True)) / sum(float(t) ** 2 for t in want)
        for out, want in zip(output.flatten(0, 1), target.flatten(0, 1), strict=True)
    ]
    torch.testing.assert_close(float(_distance(output, target)), sum(wanted) / len(wanted), rtol=1e-5, atol=0)


def test_a_massive_token_weighs_no_more_than_another() -> None:
    target = torch.ones(1, 2, 4)
    target[0, 0] *= 3000
    output = (target * 1.1).requires_grad_()
    (slope,) = torch.autograd.grad(_distance(output, target), output)
    moved = (slope * target).sum(-1)  # what one per cent more of the token would change
    torch.testing.assert_close(moved[0, 0], moved[0, 1], rtol=1e-4, atol=0)


def test_a_token_of_nothing_is_no_division_by_zero() -> None:
    assert torch.isfinite(_distance(torch.zeros(1, 1, 4), torch.zeros(1, 1, 4)))
