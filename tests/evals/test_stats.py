import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from subeight.errors import InputError
from subeight.evals import (
    holm,
    mcnemar,
    mean_interval,
    paired_difference,
    paired_ratio,
    perplexity_interval,
    quantile_interval,
    share_interval,
)
from subeight.evals.stats import paired_p
from tests.oracles import evals_stats as oracle


def documents(rng: np.random.Generator, count: int, spread: float = 0.5):
    """Skewed values whose documents differ in length and level, as divergences do; and the true mean over tokens."""
    sizes = rng.integers(5, 60, size=count)
    clusters = np.repeat(np.arange(count), sizes)
    level = np.exp(spread * rng.normal(size=count))[clusters]
    return level * rng.exponential(size=len(clusters)), clusters, math.exp(spread**2 / 2)


def test_bootstrap_matches_the_loop():
    values, clusters, _ = documents(np.random.default_rng(0), 35)
    got = mean_interval(values, clusters, seed=3, resamples=400)
    expected = oracle.studentised(values, np.ones_like(values), clusters, 3, 400)
    assert (got.value, got.low, got.high) == pytest.approx(expected, rel=1e-9)
    assert got.method == "studentised" and not got.few and got.clusters == 35
    below = rng_ratio(values, clusters)
    got = paired_ratio(values, below, clusters, seed=3, resamples=400)
    assert (got.value, got.low, got.high) == pytest.approx(
        oracle.studentised(values, below, clusters, 3, 400), rel=1e-9
    )


def rng_ratio(values, clusters):
    return values * np.random.default_rng(9).uniform(0.5, 2.0, size=len(values)) + 0.1 * clusters


@pytest.mark.parametrize("count", [2, 7, 29])
def test_few_clusters_get_the_t_interval(count):
    values, clusters, _ = documents(np.random.default_rng(count), count)
    got = mean_interval(values, clusters)
    expected = oracle.linearised_t(values, np.ones_like(values), clusters)
    assert (got.value, got.low, got.high) == pytest.approx(expected, rel=1e-9)
    assert got.method == "t" and got.few
    below = rng_ratio(values, clusters)
    ratio = paired_ratio(values, below, clusters)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx(oracle.linearised_t(values, below, clusters), rel=1e-9)


def test_t_interval_of_equal_documents_is_the_textbook_one():
    values = np.random.default_rng(0).normal(size=12)
    got = mean_interval(values, np.arange(12))
    expected = stats.t.interval(0.95, 11, loc=values.mean(), scale=stats.sem(values))
    assert (got.low, got.high) == pytest.approx(expected)


@pytest.mark.parametrize(("count", "spread", "seed"), [(20, 0.25, 1), (40, 0.5, 2), (100, 0.5, 3)])
def test_intervals_cover_the_truth_as_often_as_they_say(count, spread, seed):
    rng = np.random.default_rng(seed)
    hits = 0
    for repetition in range(1000):
        values, clusters, truth = documents(rng, count, spread)
        got = mean_interval(values, clusters, seed=repetition, resamples=400)
        hits += got.low <= truth <= got.high
    assert 0.90 <= hits / 1000 <= 0.985


def test_resampling_tokens_instead_of_documents_would_be_too_narrow():
    values, clusters, _ = documents(np.random.default_rng(5), 60, spread=1.0)
    honest = mean_interval(values, clusters)
    naive = mean_interval(values, np.arange(len(values)))
    assert honest.high - honest.low > 2 * (naive.high - naive.low)


def test_pairing_removes_what_both_share():
    rng = np.random.default_rng(6)
    base, clusters, _ = documents(rng, 50, spread=1.0)
    worse = base + 0.05 + 0.01 * rng.normal(size=len(base))
    got = paired_difference(worse, base, clusters)
    assert 0.045 < got.low < 0.05 < got.high < 0.055
    alone = mean_interval(worse, clusters)
    assert alone.high - alone.low > 20 * (got.high - got.low)
    ratio = paired_ratio(2.5 * base, base, clusters)
    assert (ratio.value, ratio.low, ratio.high) == pytest.approx((2.5, 2.5, 2.5))


@given(
    seed=st.integers(0, 1000),
    scale=st.floats(0.01, 100),
    shift=st.floats(-10, 10),
    count=st.sampled_from([2, 10, 30, 45]),
)
@settings(max_examples=40, deadline=None)
def test_intervals_move_with_their_values(seed, scale, shift, count):
    rng = np.random.default_rng(seed)
    values, clusters, _ = documents(rng, count)
    got = mean_interval(values, clusters, resamples=200)
    moved = mean_interval(scale * values + shift, clusters, resamples=200)
    tolerance = 1e-7 * (scale + abs(shift))
    assert moved.value == pytest.approx(scale * got.value + shift, abs=tolerance)
    assert moved.low == pytest.approx(scale * got.low + shift, abs=tolerance)
    assert moved.high == pytest.approx(scale * got.high + shift, abs=tolerance)
    assert got.low <= got.high
    order = rng.permutation(len(values))
    shuffled = mean_interval(values[order], [f"document {c:04d}" for c in clusters[order]], resamples=200)
    assert (shuffled.low, shuffled.high) == pytest.approx((got.low, got.high))


def test_same_seed_same_interval_and_generators_are_taken():
    values, clusters, _ = documents(np.random.default_rng(0), 40)
    assert mean_interval(values, clusters, seed=1) == mean_interval(values, clusters, seed=1)
    assert mean_interval(values, clusters, seed=1) != mean_interval(values, clusters, seed=2)
    drawn = mean_interval(values, clusters, seed=np.random.default_rng(1))
    assert drawn == mean_interval(values, clusters, seed=1)


def test_level_widens():
    values, clusters, _ = documents(np.random.default_rng(0), 40)
    wide, narrow = mean_interval(values, clusters, level=0.99), mean_interval(values, clusters, level=0.8)
    assert wide.low < narrow.low < narrow.value < narrow.high < wide.high


def test_perplexity_is_the_exponential_of_the_mean():
    values, clusters, _ = documents(np.random.default_rng(0), 40)
    mean, ppl = mean_interval(values, clusters), perplexity_interval(values, clusters)
    assert ppl.value == pytest.approx(math.exp(values.mean()))
    assert (ppl.low, ppl.high) == (math.exp(mean.low), math.exp(mean.high))


def test_one_cluster_has_no_interval():
    got = mean_interval([1.0, 2.0, 6.0], [7, 7, 7])
    assert got.value == 3.0 and got.ci is None and got.method == "none"
    assert got.exp().ci is None


def test_values_that_never_vary_have_an_interval_of_no_width():
    got = mean_interval(np.zeros(120), np.repeat(np.arange(40), 3))
    assert got.ci == [0.0, 0.0]


def test_ratio_without_denominator_is_not_a_number():
    nothing = paired_ratio(np.ones(40), np.zeros(40), np.arange(40))
    assert math.isnan(nothing.value) and nothing.ci is None
    single = np.zeros(40)
    single[3] = 1.0
    assert paired_ratio(np.ones(40), single, np.arange(40)).method == "t"


def test_rare_events_fall_back_to_the_t_interval():
    # one document of 40 has all the errors: a third of the resamples have none, and no spread to divide by
    errors = np.zeros(400)
    errors[:5] = 1.0
    got = mean_interval(errors, np.repeat(np.arange(40), 10))
    expected = oracle.linearised_t(errors, np.ones(400), np.repeat(np.arange(40), 10))
    assert got.method == "t"
    assert (got.value, got.low, got.high) == pytest.approx(expected)


def test_quantile_matches_a_loop_over_resamples():
    values, clusters, _ = documents(np.random.default_rng(4), 33)
    got = quantile_interval(values, clusters, 0.99, seed=5, resamples=60)
    rng = np.random.default_rng(5)
    parts = oracle.by_document(values, clusters)
    drawn = [
        oracle.weighted_quantile([x for g in rng.integers(33, size=33) for x in parts[g]], 0.99) for _ in range(60)
    ]
    assert got.value == oracle.weighted_quantile(values, 0.99)
    assert got.ci == pytest.approx(list(np.quantile(drawn, [0.025, 0.975])))
    assert quantile_interval(values, clusters % 20, 0.99).ci is None


@pytest.mark.parametrize(("b", "c"), [(0, 0), (5, 0), (3, 11), (40, 41), (7, 7)])
def test_mcnemar_counts_both_tails(b, c):
    assert mcnemar(b, c) == pytest.approx(oracle.mcnemar(b, c))
    assert mcnemar(b, c) == mcnemar(c, b)


def test_holm_by_hand():
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_share_is_honest_at_the_ends():
    everything = share_interval(20, 20)
    assert everything.value == 1.0 and 0.8 < everything.low < 0.9 and everything.high == 1.0
    assert everything.few
    # Wilson's interval solves (p - value)^2 = z^2 p (1 - p) / n at both ends
    half = share_interval(30, 100)
    for end in half.ci:
        assert (end - 0.3) ** 2 == pytest.approx(1.959964**2 * end * (1 - end) / 100, rel=1e-5)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: mean_interval([], []), "no values"),
        (lambda: mean_interval([1.0, math.nan], [0, 1]), "NaN"),
        (lambda: mean_interval([1.0, 2.0], [0]), "1 cluster ids were given for 2"),
        (lambda: paired_difference([1.0], [1.0, 2.0], [0]), "1 and 2 values"),
        (lambda: share_interval(3, 2), "3 successes of 2"),
        (lambda: mcnemar(-1, 2), "-1 and 2 flips"),
    ],
)
def test_bad_input_is_one_sentence(call, message):
    with pytest.raises(InputError, match=message):
        call()


def test_paired_p_is_that_of_a_t_test_on_documents_of_one_size():
    rng = np.random.default_rng(0)
    documents = np.repeat(np.arange(12), 5)
    a = rng.normal(size=60)
    b = a + np.repeat(rng.normal(0.3, 0.5, size=12), 5)
    means = (a - b).reshape(12, 5).mean(1)
    expected = stats.ttest_1samp(means, 0.0).pvalue
    assert paired_p(a, b, documents) == pytest.approx(expected, rel=1e-9)
    assert paired_p(a, a, documents) == 1.0
    assert paired_p(a, a + 1, documents) == 0.0
    assert paired_p(a[:5], b[:5], documents[:5]) == 1.0


def test_paired_p_is_small_as_often_as_it_says():
    """Documents of many sizes without a difference: about one in twenty below 0.05."""
    rng = np.random.default_rng(1)
    small = 0
    for _ in range(400):
        documents = np.repeat(np.arange(30), rng.integers(1, 20, size=30))
        a = rng.normal(size=len(documents)) + rng.normal(size=30)[documents]
        b = rng.normal(size=len(documents)) + rng.normal(size=30)[documents]
        small += paired_p(a, b, documents) < 0.05
    assert 8 <= small <= 36
