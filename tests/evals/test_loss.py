"""Losses per prompt: means over tokens, shares that were recovered, categories."""

import numpy as np
import pytest
import torch

from subeight.errors import InputError
from subeight.evals.loss import Loss, prompt_loss, recovered, token_loss
from subeight.evals.numbers import Places
from subeight.evals.tokens import TokenOutcomes


def outcomes(kl: list[float], reference: list[float], candidate: list[float]) -> TokenOutcomes:
    columns = [torch.tensor(values, dtype=torch.float64) for values in (reference, candidate, kl)]
    return TokenOutcomes(*columns, torch.ones(len(kl), dtype=torch.bool))


PLACES = Places.of([0, 0, 0, 1], category=["a", "a", "a", "b"])


def test_kl_and_nll_are_sums_by_prompt() -> None:
    given = outcomes([0.1, 0.2, 0.3, 0.4], [1, 1, 1, 2], [1, 2, 1, 2.5])
    kl, nll = token_loss(given, PLACES), token_loss(given, PLACES, "nll")
    assert kl.total.tolist() == pytest.approx([0.6, 0.4])
    assert kl.count.tolist() == [3, 1]
    assert kl.value == pytest.approx(0.25)
    assert nll.total.tolist() == pytest.approx([1.0, 0.5])
    assert list(kl.categories()) == ["b", "a"]  # the worst first


def test_an_unknown_metric_is_refused() -> None:
    with pytest.raises(InputError, match="kl, nll"):
        token_loss(outcomes([0.0] * 4, [0] * 4, [0] * 4), PLACES, "accuracy")


def test_shares_are_ratios_of_sums_over_the_same_prompts() -> None:
    before = Loss(np.array([3.0, 1.0, 2.0]), np.array([10.0, 10.0, 10.0]), np.array(["a"] * 3))
    after = Loss(np.array([1.0, 1.0, 1.0]), before.count, before.category)
    assert recovered(before, after).value == pytest.approx(0.5)
    assert recovered(after, before).value == pytest.approx(-1.0)
    assert recovered(before, after, before.minus(after)).value == pytest.approx(1.0)
    assert recovered(before.minus(before), after).value == 0.0


def test_the_interval_of_a_share_tells_one_prompt_from_many() -> None:
    count = np.ones(40)
    everywhere = Loss(np.full(40, 1.0), count, np.full(40, "a"))
    one = Loss(np.r_[0.0, np.full(39, 1.0)], count, everywhere.category)
    half = Loss(np.full(40, 0.5), count, everywhere.category)
    assert recovered(everywhere, half).low == pytest.approx(0.5)
    assert recovered(everywhere, one).low < 0.005


def test_prompts_right_or_wrong() -> None:
    loss = prompt_loss([True, False, False, True], ["a", "a", "b", "b"])
    assert loss.value == 0.5
    assert loss.categories()["a"].value == 0.5


def test_what_is_never_negative_has_an_interval_from_zero_on() -> None:
    two = Loss(np.array([1.0, 9.0]), np.array([10.0, 10.0]), np.array(["a", "a"]))
    found = two.interval()
    assert found.low == 0.0
    assert found.high > 1.0
    assert two.minus(Loss(two.total[::-1], two.count, two.category)).interval().low < -1  # a difference may be
