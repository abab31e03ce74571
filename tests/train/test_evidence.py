"""What tokens tell of codes, beside a quadratic loss whose optimum is found from noisy gradients."""

import pytest
import torch

from subeight.train.evidence import PLACED, SPREAD, evidence

CURVES = torch.tensor([4.0, 0.25])  # of one token, for each of two groups


def _slopes(tokens: int, seed: int) -> torch.Tensor:
    """Gradients [1, 2, 4000] of the mean loss over tokens whose own gradients have the mean square of the curves."""
    noise = torch.randn(1, 2, 4000, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return noise * (CURVES.double()[None, :, None] / tokens).sqrt()


@pytest.mark.parametrize("tokens", [1, 64, 2048])
def test_it_does_not_depend_on_how_many_tokens_the_gradient_is_of(tokens: int) -> None:
    found = evidence([_slopes(tokens, 0)], tokens, 100)
    wanted = sum(c * c * 100 * SPREAD / (1 + c * 100 * SPREAD) for c in CURVES.tolist()) / CURVES.sum().item()
    assert found["at_most"] == pytest.approx(wanted, rel=0.02)
    assert found["decided"] == 1.0  # both: 0.25 * 100 is above 16


def test_the_share_won_back_is_that_of_a_simulated_estimate() -> None:
    """Optima drawn with the spread of rounding, each estimated from n noisy tokens and shrunk as is best."""
    drawn = torch.Generator().manual_seed(1)
    learned, lost, left = 30, 0.0, 0.0
    for curve in CURVES.double():
        optimum = torch.randn(200_000, generator=drawn, dtype=torch.float64) * SPREAD**0.5
        seen = optimum + torch.randn(200_000, generator=drawn, dtype=torch.float64) / (curve * learned).sqrt()
        best = seen * (seen * optimum).mean() / seen.square().mean()
        lost += float(curve * optimum.square().mean())
        left += float(curve * (optimum - best).square().mean())
    assert evidence([_slopes(8, 2)], 8, learned)["at_most"] == pytest.approx(1 - left / lost, rel=0.03)


def test_half_of_the_codes_need_the_tokens_of_the_middle_one() -> None:
    slopes = torch.tensor([1.0, 2.0, 4.0, 8.0])[None, :, None]
    found = evidence([slopes], 1, 0)
    assert found["tokens_for_half"] == pytest.approx(PLACED**-2 / 16) and found["decided"] == found["at_most"] == 0.0
    assert evidence([slopes], 1, 4)["decided"] == 0.75


def test_without_any_slope_nothing_can_be_learned() -> None:
    found = evidence([torch.zeros(2, 3, 4)], 5, 100)
    assert found == {"decided": 0.0, "at_most": 0.0, "tokens_for_half": float("inf")}
