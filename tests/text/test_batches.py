import pytest
from hypothesis import given
from hypothesis import strategies as st

from subeight.errors import TextError
from subeight.text import Sample, batches


def sample(length, first=1):
    ids = tuple(range(first, first + length))
    return Sample(ids, (False, *[True] * (length - 1)), "text", "a")


@given(st.lists(st.integers(1, 40), max_size=30), st.integers(1, 100))
def test_every_sample_is_in_one_batch_as_it_was(lengths, max_tokens):
    samples = [sample(length, first=index + 1) for index, length in enumerate(lengths)]
    made = batches(samples, max_tokens, pad=0)
    assert sorted(index for batch in made for index in batch.index) == list(range(len(samples)))
    for batch in made:
        rows, width = batch.ids.shape
        assert rows == 1 or rows * width <= max_tokens
        assert batch.scored.shape == batch.ids.shape and width == int(batch.lengths.max())
        for row, index in enumerate(batch.index):
            length = int(batch.lengths[row])
            assert tuple(batch.ids[row, :length].tolist()) == samples[index].ids
            assert tuple(batch.scored[row, :length].tolist()) == samples[index].scored
            assert not batch.ids[row, length:].any() and not batch.scored[row, length:].any()


def test_equal_lengths_go_together_and_far_ones_apart():
    made = batches([sample(4), sample(16), sample(4), sample(16), sample(15)], max_tokens=64)
    assert [batch.index for batch in made] == [(1, 3, 4), (0, 2)]
    assert int(batches([sample(3), sample(2)], 64, pad=9)[0].ids[1, 2]) == 9


def test_no_room():
    with pytest.raises(TextError, match="hold nothing"):
        batches([sample(4)], 0)


def test_no_sample_is_shorter_than_the_least_share_of_the_longest() -> None:
    made = batches([sample(10), sample(9), sample(8), sample(3)], max_tokens=1000, least=0.9)
    assert [batch.lengths.tolist() for batch in made] == [[10, 9], [8], [3]]
    assert [batch.lengths.tolist() for batch in batches([sample(10), sample(5), sample(4)], 1000)] == [[10, 5], [4]]
