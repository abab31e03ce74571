"""The verdict follows from the whole interval, and the policy says what it wants in one sentence."""

import math

import numpy as np
import pytest

from subeight.errors import RecordError
from subeight.evals.stats import Interval
from subeight.lock.lockfile import default_tolerance, parse_tolerance
from subeight.lock.outcomes import Outcome
from subeight.lock.verdict import differences, more_tokens, overall, parse_policy, verdict_of

TOLERANCE = {"kl": 0.01, "top1": 0.01, "nll": 0.01}


def _outcome(kl, documents=40, tokens=50.0):
    count = np.full(documents, tokens)
    total = {"kl": count * kl, "top1": count * 0.9, "nll": count, "nll_baseline": count}
    names = np.asarray([f"d{n}" for n in range(documents)])
    return Outcome(np.arange(documents), names, np.full(documents, "text"), count, total)


def _interval(low, value, high):
    return Interval(value, low, high, 40, "studentised")


@pytest.mark.parametrize(
    ("interval", "verdict"),
    [
        (_interval(-0.001, 0.0, 0.01), "pass"),
        (_interval(-0.5, -0.4, -0.3), "pass"),  # better is no regression
        (_interval(-0.001, 0.0, 0.011), "undecided"),  # not significant is not a pass
        (_interval(0.0101, 0.02, 0.03), "regressed"),
        (_interval(0.005, 0.02, 0.03), "undecided"),
        (_interval(math.nan, 0.0, math.nan), "undecided"),
    ],
)
def test_the_whole_interval_decides(interval, verdict):
    assert verdict_of(interval, 0.01) == verdict


@pytest.mark.parametrize(("value", "low", "high"), [(0.002, -0.010, 0.034), (0.030, -0.010, 0.060)])
def test_the_tokens_that_would_decide_shrink_the_interval_to_the_tolerance(value, low, high):
    tokens = 1000
    more = more_tokens(_interval(low, value, high), 0.01, tokens)
    shrunk = math.sqrt(tokens / (tokens + more))
    nearest = value + (high - value) * shrunk if value < 0.01 else value - (value - low) * shrunk
    assert nearest == pytest.approx(0.01, rel=1e-3)


def test_no_number_of_tokens_decides_what_lies_on_the_tolerance():
    assert more_tokens(_interval(0.0, 0.01, 0.02), 0.01, 1000) is None


def test_the_same_outcomes_pass_even_as_one_document():
    one = _outcome(np.asarray([0.05]), documents=1)
    found = differences(one, one, TOLERANCE)
    assert [d.verdict for d in found] == ["pass"] * 3
    moved = differences(one, _outcome(np.asarray([0.051]), documents=1), TOLERANCE)
    assert moved[0].verdict == "undecided" and moved[0].more_tokens is None


def test_differences_are_paired():
    """Documents differ much more from each other than today differs from the lock."""
    rng = np.random.default_rng(0)
    base = rng.exponential(1.0, 40)
    found = differences(_outcome(base), _outcome(base + 0.002 + 0.0005 * rng.standard_normal(40)), TOLERANCE)
    assert found[0].verdict == "pass" and found[0].worse.low > 0
    assert differences(_outcome(base), _outcome(base + 0.02), TOLERANCE)[0].verdict == "regressed"
    assert overall(found, []) == "pass" and overall(found, ["a condition"]) == "regressed"


def test_a_stack_that_errs_in_both_models_alike_shows_in_the_loss():
    locked, today = _outcome(0.1), _outcome(0.1)
    today.total["nll"] = 1.05 * today.total["nll"]
    found = differences(locked, today, TOLERANCE)
    assert [d.verdict for d in found] == ["pass", "pass", "regressed"]
    assert found[2].metric == "nll" and found[2].worse.value == pytest.approx(0.05)


def test_other_samples_are_refused():
    with pytest.raises(RecordError, match="not the same"):
        differences(_outcome(0.1), _outcome(0.1, tokens=49.0), TOLERANCE)


def test_a_policy_is_read():
    rules = parse_policy(" kl>0.02, top1<0.97 ,german:kl>5e-2,")
    assert [(r.category, r.metric, r.above, r.limit) for r in rules] == [
        (None, "kl", True, 0.02), (None, "top1", False, 0.97), ("german", "kl", True, 0.05),
    ]  # fmt: skip
    numbers = {"kl": 0.03, "top1": 0.98, "categories": {"german": {"kl": 0.04}}}
    assert [rule.hit(numbers) is not None for rule in rules] == [True, False, False]
    assert parse_policy(None) == [] == parse_policy("")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("kl", "write METRIC>NUMBER"), ("kl>", "write METRIC>NUMBER"), ("kl>1-2", "whose limit is not a number"),
        ("perplexity>3", "the metric 'perplexity'; choose one of kl"), ("kl=0.1", "write METRIC>NUMBER"),
    ],
)  # fmt: skip
def test_a_policy_that_cannot_be_read_is_one_sentence(text, said):
    with pytest.raises(RecordError, match=said):
        parse_policy(text)


def test_tolerances():
    default = default_tolerance({"kl": 0.2})
    assert default == {"kl": 0.01, "top1": 0.01, "nll": 0.01} and default_tolerance({"kl": 0.0})["kl"] == 0.002
    assert parse_tolerance("0.5", default)["kl"] == 0.5
    assert parse_tolerance("top1=0.1", default) == {"kl": 0.01, "top1": 0.1, "nll": 0.01}
    for wrong in ("kl=-1", "kl=nan", "x=1", "kl="):
        with pytest.raises(RecordError, match="--tolerance was given"):
            parse_tolerance(wrong, default)
