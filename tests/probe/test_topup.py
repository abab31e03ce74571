import pytest
import torch

from subeight.probe.topup import top_up
from tests.oracles.experts import fewest


def drawn(seed, sequences=9, experts=4):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 12, (sequences, experts), generator=generator)


@pytest.mark.parametrize("seed", range(12))
def test_no_expert_stays_short_and_few_sequences_are_taken(seed):
    have, pool, least = drawn(100 + seed, 1)[0], drawn(seed), 24
    found = top_up(have, pool, least)
    best = fewest(have.tolist(), pool.tolist(), least)
    whole = have + pool[found.chosen].sum(0)
    assert len(set(found.chosen)) == len(found.chosen)
    if best is None:
        assert found.short
    else:
        assert bool((whole >= least).all()) and not found.short
        assert best <= len(found.chosen) <= best + 1
    assert found.short == {e: int(whole[e]) for e in range(4) if whole[e] < least}


def test_what_nobody_needs_is_not_taken():
    assert top_up(torch.tensor([9, 9]), drawn(0, 5, 2), 9).chosen == []
    found = top_up(torch.tensor([0, 50]), torch.tensor([[0, 90], [3, 0], [0, 90], [4, 1]]), 4)
    assert found.chosen == [3] and found.short == {}


def test_an_expert_that_nothing_reaches_is_told_and_stops_nothing():
    found = top_up(torch.tensor([0, 0, 5]), torch.tensor([[4, 0, 0], [4, 0, 0], [1, 0, 9]]), 8)
    assert found.chosen == [0, 1, 2] and found.short == {1: 0}


def test_for_an_expert_that_stays_short_only_what_pays_is_taken():
    pool = torch.tensor([[1, 0], [3, 0], [1, 9], [2, 0], [0, 300]])
    found = top_up(torch.tensor([0, 0]), pool, 256)
    assert found.chosen == [4, 1] and found.short == {0: 3}


def test_the_most_is_kept():
    found = top_up(torch.tensor([0]), torch.ones(10, 1, dtype=torch.long), 8, most=3)
    assert found.chosen == [0, 1, 2] and found.short == {0: 3}


def test_an_empty_pool_leaves_all_as_it_is():
    assert top_up(torch.tensor([1, 9]), torch.zeros(0, 2, dtype=torch.long), 4).short == {0: 1}
