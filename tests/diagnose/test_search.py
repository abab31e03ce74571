"""Group testing on losses that are known in closed form."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from subeight.diagnose.search import LEAF, Search
from subeight.evals.loss import Loss

PLACES = [f"model.layers.{block}.{kind}" for block in range(30) for kind in ("q", "k", "v", "o", "gate", "up", "down")]
PROMPTS = 40


def loss_of(value: float) -> Loss:
    """The same loss on every prompt, with a little spread that all measurements share."""
    spread = 1 + 0.1 * np.sin(np.arange(PROMPTS))
    return Loss(value * spread * 10, np.full(PROMPTS, 10.0), np.full(PROMPTS, "text"))


class Model:
    """Losses that add up over the places that are not restored."""

    def __init__(self, carried: dict[str, float]) -> None:
        self.carried = carried
        self.evaluations = 0
        self.forwards = 0.0

    def measure(self, restored: frozenset[str]) -> Loss:
        self.evaluations += 1
        self.forwards += 30 - min((int(name.split(".")[2]) for name in restored), default=0)
        return loss_of(sum(value for name, value in self.carried.items() if name not in restored))

    def search(self, expected: dict[str, float] | None = None) -> Search:
        position = {name: int(name.split(".")[2]) for name in PLACES}
        flat = dict.fromkeys(PLACES, 1.0)
        whole = loss_of(sum(self.carried.values()))
        return Search(expected or flat, position, whole, whole, self.measure, lambda: self.forwards)


def spread(total: float = 1.0) -> dict[str, float]:
    return dict.fromkeys(PLACES, total / len(PLACES))


def names(tests) -> set[str]:
    return {name for test in tests for name in test.names}


@settings(max_examples=30, deadline=None)
@given(st.integers(0, len(PLACES) - 1))
def test_one_culprit_is_found_without_knowing_where_to_look(place: int) -> None:
    model = Model({**spread(), PLACES[place]: 1.0})
    search = model.search()
    assert names(search.halve(PLACES, 1.0)) == {PLACES[place]}
    assert model.evaluations <= 22


def test_the_likeliest_place_is_found_with_one_measurement() -> None:
    culprit = PLACES[100]
    model = Model({**spread(), culprit: 2.0})
    search = model.search({**dict.fromkeys(PLACES, 1.0), culprit: 50.0})
    ordered = sorted(PLACES, key=lambda name: -search.expected[name])
    assert names(search.single(ordered)) == {culprit}
    assert model.evaluations == 2  # the culprit, and the next one that is none


def test_several_culprits_in_both_halves() -> None:
    model = Model({**spread(), PLACES[3]: 1.0, PLACES[200]: 1.0})
    search = model.search()
    assert names(search.halve(PLACES, 1.0)) == {PLACES[3], PLACES[200]}
    assert search.found == {PLACES[3], PLACES[200]}


def test_evenly_spread_damage_has_no_culprit_and_costs_little() -> None:
    model = Model(spread())
    search = model.search()
    assert search.halve(PLACES, 1.0) == []
    assert model.evaluations <= 8
    assert not search.found


def test_what_carries_less_than_a_leaf_is_no_culprit() -> None:
    share = 0.6 * LEAF
    model = Model({**spread(1 - share), PLACES[50]: share})
    assert model.search().halve(PLACES, 1.0) == []


def test_nothing_is_measured_twice() -> None:
    model = Model(spread())
    search = model.search()
    search.restore(PLACES[:3])
    search.restore(PLACES[:3])
    assert model.evaluations == 1
    assert [test.block_forwards for test in search.tests] == [30, 0]


def test_shares_are_of_the_whole_loss_also_after_a_culprit() -> None:
    model = Model({**dict.fromkeys(PLACES, 0.0), PLACES[0]: 3.0, PLACES[1]: 1.0})
    search = model.search()
    search.accept(search.restore([PLACES[0]]))
    assert search.restore([PLACES[1]]).share.value == pytest.approx(0.25)


def test_noise_does_not_make_a_culprit() -> None:
    generator = np.random.default_rng(0)
    model = Model(spread())
    search = model.search()

    def noisy(restored: frozenset[str]) -> Loss:
        loss = model.measure(restored)
        return Loss(loss.total + generator.normal(0, 40, PROMPTS), loss.count, loss.category)

    search.measure = noisy
    test = search.restore([PLACES[7]])
    assert not test.is_guilty
