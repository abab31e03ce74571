"""What tokens tell of codes, beside estimates of a simulated optimum from noisy gradients."""

import pytest
import torch

from subeight.train.evidence import PLACED, evidence

CURVES = torch.tensor([4.0, 0.25])  # of one token, for each of two groups


def _slopes(tokens: int, seed: int) -> torch.Tensor:
    """Gradients [1, 2, 4000] of the mean loss over tokens whose own gradients have the mean square of the curves."""
    noise = torch.randn(1, 2, 4000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise * (CURVES.double()[None, :, None] / tokens).sqrt()


@pytest.mark.parametrize("tokens", [1, 64, 2048])
def test_it_does_not_depend_on_how_many_tokens_the_gradient_is_of(tokens: int) -> None:
    slopes = [_slopes(tokens, 0)]
    assert [evidence(slopes, tokens, learned)["decided"] for learned in (3, 5, 60, 70)] == [0.0, 0.5, 0.5, 1.0]


def test_what_is_decided_is_placed_within_a_quarter_of_a_code() -> None:
    """A loss of curvature F in each token, whose gradient has the mean square F: its optimum from n of them."""
    learned, curve = 64, CURVES[1].double()
    noise = torch.randn(20_000, learned, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    placed = (noise * curve.sqrt()).mean(1) / curve  # one Newton step from the optimum itself
    assert float(placed.square().mean().sqrt()) == pytest.approx(PLACED, rel=0.02)
    slopes = [_slopes(8, 2)[:, 1:]]
    assert [evidence(slopes, 8, n)["decided"] for n in (learned - 6, learned + 6)] == [0.0, 1.0]


def test_half_of_the_codes_need_the_tokens_of_the_middle_one() -> None:
    slopes = torch.tensor([1.0, 2.0, 4.0, 8.0])[None, :, None]
    found = evidence([slopes], 1, 0)
    assert found == {"decided": 0.0, "tokens_for_half": PLACED**-2 / 16}
    assert evidence([slopes], 1, 4)["decided"] == 0.75


def test_without_any_slope_nothing_can_be_learned() -> None:
    assert evidence([torch.zeros(2, 3, 4)], 5, 100) == {"decided": 0.0, "tokens_for_half": float("inf")}
