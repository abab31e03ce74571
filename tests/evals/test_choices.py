import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from subeight.errors import InputError
from subeight.evals import Choice, TokenOutcomes, choice_numbers, flip_numbers, gather_choices
from subeight.evals.choices import pick
from tests.oracles import evals_stats as oracle


def question(reference, candidate, answer, category="choices"):
    return Choice(tuple(map(np.array, reference)), tuple(map(np.array, candidate)), answer, category)


def test_sum_and_mean_prefer_different_options():
    # the long option is likelier per token and less likely in total
    one = question([[-1.0], [-0.6, -0.6]], [[-1.0], [-0.4, -0.4]], 1)
    assert pick([one]).reference.tolist() == [0]
    assert pick([one]).candidate.tolist() == [1]
    assert pick([one], normalised=True).reference.tolist() == [1]
    got = choice_numbers([one])
    assert (got["accuracy"], got["accuracy_baseline"]) == (1.0, 0.0)
    assert (got["accuracy_norm"], got["accuracy_norm_baseline"]) == (1.0, 1.0)
    assert (got["flips"], got["changed"], got["wrong_to_right"], got["n"]) == (1.0, 1.0, 1, 1)


def test_change_between_wrong_options_is_no_flip():
    got = choice_numbers([question([[-1.0], [-2.0], [-9.0]], [[-2.0], [-1.0], [-9.0]], 2)])
    assert (got["changed"], got["flips"], got["accuracy"], got["mcnemar_p"]) == (1.0, 0.0, 0.0, 1.0)


def test_categories_hold_their_own_questions():
    right, wrong = [[-1.0], [-2.0]], [[-2.0], [-1.0]]
    asked = [question(right, right, 0, "a"), question(right, wrong, 0, "a"), question(wrong, right, 0, "b")]
    got = choice_numbers(asked)
    assert got["accuracy"] == got["accuracy_baseline"] == pytest.approx(2 / 3)
    assert got["categories"]["a"]["accuracy"] == 0.5
    assert got["categories"]["b"]["right_to_wrong"] == 0
    assert got["categories"]["b"]["wrong_to_right"] == 1


@given(st.lists(st.tuples(st.booleans(), st.booleans()), min_size=1, max_size=40))
def test_flips_by_counting(answers):
    before, after = zip(*answers, strict=True)
    got = flip_numbers(before, after)
    lost = sum(a and not b for a, b in answers)
    won = sum(b and not a for a, b in answers)
    assert (got["right_to_wrong"], got["wrong_to_right"]) == (lost, won)
    assert got["flips"] == pytest.approx((lost + won) / len(answers))
    assert got["mcnemar_p"] == pytest.approx(oracle.mcnemar(lost, won))
    assert got["accuracy"] - got["accuracy_baseline"] == pytest.approx((won - lost) / len(answers))
    assert got["accuracy_ci"][0] <= got["accuracy"] <= got["accuracy_ci"][1]


def test_gathering_finds_the_tokens_of_each_option_in_any_order():
    nll = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0, 6.0]).double()
    found = TokenOutcomes(nll, nll + 10, nll, nll > 0)
    one, two = gather_choices(found, [0, 1, 0, 1, 0, 1], [1, 0, 0, 1, 1, 1], [1, 0], ["x", "y"])
    assert [o.tolist() for o in one.reference] == [[-3.0], [-1.0, -5.0]]
    assert [o.tolist() for o in two.candidate] == [[-12.0], [-14.0, -16.0]]
    assert (one.answer, two.answer, two.category) == (1, 0, "y")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: question([[-1.0]], [[-1.0]], 0), "two options or more"),
        (lambda: question([[-1.0], []], [[-1.0], []], 0), "options of \\[1, 0\\] tokens"),
        (lambda: question([[-1.0], [-1.0]], [[-1.0], [-1.0, -2.0]], 0), "scored by both models"),
        (lambda: question([[-1.0], [-1.0]], [[-1.0], [-1.0]], 2), "answer 2 of 2 options"),
        (lambda: choice_numbers([]), "no questions"),
        (lambda: flip_numbers([True], [True, False]), "1 and 2 answers"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()
