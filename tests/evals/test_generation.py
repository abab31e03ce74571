import pytest
from hypothesis import given
from hypothesis import strategies as st

from subeight.errors import InputError
from subeight.evals import generation_agreement
from subeight.evals.generation import first_difference

TEXTS = st.lists(st.lists(st.integers(0, 2), max_size=6), min_size=1, max_size=8)


@pytest.mark.parametrize(
    ("a", "b", "place"),
    [([1, 2, 3], [1, 2, 3], None), ([1, 2, 3], [1, 9, 3], 1), ([1, 2], [1, 2, 3], 2), ([], [], None), ([], [4], 0)],
)
def test_first_difference(a, b, place):
    assert first_difference(a, b) == place
    assert first_difference(b, a) == place


def test_agreement_by_hand():
    got = generation_agreement([[1, 2, 3, 4], [5, 6], [7, 8]], [[1, 2, 3, 4], [5, 9], [7, 8, 9, 9]])
    assert got["agreement"] == pytest.approx(1 / 3)
    assert got["prompts"] == 3
    assert got["first_difference"] == 1.5
    assert got["prefix_agreement"] == pytest.approx((1 + 0.5 + 0.5) / 3)
    assert 0 <= got["prefix_agreement_ci"][0] < got["prefix_agreement"] < got["prefix_agreement_ci"][1] <= 1


def test_equal_texts_agree_wholly_and_the_interval_knows_how_few_they_are():
    got = generation_agreement([[1, 2]] * 8, [[1, 2]] * 8)
    assert got["agreement"] == got["prefix_agreement"] == 1.0
    assert got["first_difference"] is None
    assert 0.6 < got["agreement_ci"][0] < 0.7 and got["agreement_ci"][1] == 1.0


@given(TEXTS, TEXTS)
def test_agreement_is_symmetric_and_bounded(a, b):
    count = min(len(a), len(b))
    got, turned = generation_agreement(a[:count], b[:count]), generation_agreement(b[:count], a[:count])
    assert got == turned
    assert 0 <= got["agreement"] <= got["prefix_agreement"] <= 1


def test_bad_input_is_one_sentence():
    with pytest.raises(InputError, match="1 and 2 generations"):
        generation_agreement([[1]], [[1], [2]])
