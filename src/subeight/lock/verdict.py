"""The verdict of a verification: the paired difference to the lock, against a tolerance and a team's own policy.

Passing means that the whole interval of the difference lies inside the tolerance: "not significant" is not a pass.
"""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from subeight.errors import RecordError
from subeight.evals.stats import Interval, paired_ratio
from subeight.lock.outcomes import Outcome

Verdict = Literal["pass", "regressed", "undecided"]
WORSE = {"kl": 1, "top1": -1, "nll": 1}  # which way a metric gets worse
_RULE = re.compile(r"\s*(?:(?P<category>[^:<>,]+):)?\s*(?P<metric>\w+)\s*(?P<sign>[<>])\s*(?P<limit>[-+.\deE]+)\s*")
POLICY_METRICS = ("kl", "kl_p99", "kl_max", "top1", "ppl", "ppl_ratio", "accuracy")
_EXAMPLE = "kl>0.02,top1<0.97,german:kl>0.05"


@dataclass(frozen=True)
class Difference:
    """How much worse than the lock a metric is today, paired by sample; above 0 is worse."""

    metric: str
    locked: float
    today: float
    worse: Interval
    tolerance: float
    verdict: Verdict
    more_tokens: int | None = None  # which would decide it; None where it is decided or no number would

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a record."""
        return {
            "metric": self.metric,
            "locked": self.locked,
            "today": self.today,
            "worse": self.worse.value,
            "worse_ci": self.worse.ci,
            "tolerance": self.tolerance,
            "verdict": self.verdict,
            "more_tokens": self.more_tokens,
        }


@dataclass(frozen=True)
class Rule:
    """One condition on which a team lets the verification fail: `german:kl>0.05`."""

    text: str
    category: str | None
    metric: str
    above: bool
    limit: float

    def hit(self, numbers: Mapping[str, Any]) -> str | None:
        """What to say where today's numbers meet the condition, else None; raises RecordError where there is no such
        number.
        """
        value = self._value(numbers)
        if not (value > self.limit if self.above else value < self.limit):
            return None
        where = f" in {self.category}" if self.category else ""
        return f"{self.metric}{where} is {value:.4g}, which --fail-on {self.text} forbids"

    def _value(self, numbers: Mapping[str, Any]) -> float:
        part: Mapping[str, Any] = numbers
        if self.category is not None:
            categories = numbers.get("categories") or {}
            if self.category not in categories:
                raise RecordError(
                    f"--fail-on {self.text}: this evaluation has no category {self.category!r}; it has "
                    f"{', '.join(sorted(categories)) or 'none'}."
                )
            part = categories[self.category]
        value = (part.get("choices") or {}).get("accuracy") if self.metric == "accuracy" else part.get(self.metric)
        if value is None:
            raise RecordError(f"--fail-on {self.text}: this evaluation has no {self.metric}; leave that condition out.")
        return float(value)


def parse_policy(text: str | None) -> list[Rule]:
    """`kl>0.02,top1<0.97,german:kl>0.05` as rules."""
    return [_rule(part) for part in (text or "").split(",") if part.strip()]


def _rule(part: str) -> Rule:
    found = _RULE.fullmatch(part)
    if found is None:
        raise RecordError(f"--fail-on was given {part.strip()!r}; write METRIC>NUMBER or METRIC<NUMBER, as {_EXAMPLE}.")
    try:
        limit = float(found["limit"])
    except ValueError as error:
        raise RecordError(
            f"--fail-on was given {part.strip()!r}, whose limit is not a number; write {_EXAMPLE}."
        ) from error
    if found["metric"] not in POLICY_METRICS:
        raise RecordError(
            f"--fail-on was given the metric {found['metric']!r}; choose one of {', '.join(POLICY_METRICS)}."
        )
    category = found["category"].strip() if found["category"] else None
    return Rule(part.strip(), category, found["metric"], found["sign"] == ">", limit)


def differences(locked: Outcome, today: Outcome, tolerance: Mapping[str, float], *, seed: int = 0) -> list[Difference]:
    """KL, top-1 agreement and the candidate's own loss of today against the lock, on the same samples.

    A stack that errs in both models alike shows in the loss alone: KL and agreement are measured between the two.
    """
    if not np.array_equal(locked.sample, today.sample) or not np.array_equal(locked.count, today.count):
        raise RecordError("The samples of the lock and of today are not the same; restore the lock's files from git.")
    return [
        _difference(metric, locked, today, sign * (today.total[metric] - locked.total[metric]), tolerance[metric], seed)
        for metric, sign in WORSE.items()
    ]


def _difference(
    metric: str, locked: Outcome, today: Outcome, worse: np.ndarray, tolerance: float, seed: int
) -> Difference:
    interval = paired_ratio(worse, locked.count, locked.clusters, seed=seed)
    if not worse.any():  # the same to the last bit: nothing is left to draw, also from one document
        interval = Interval(0.0, 0.0, 0.0, interval.clusters, interval.method)
    verdict = verdict_of(interval, tolerance)
    more = more_tokens(interval, tolerance, float(locked.count.sum())) if verdict == "undecided" else None
    return Difference(metric, locked.mean(metric), today.mean(metric), interval, tolerance, verdict, more)


def verdict_of(worse: Interval, tolerance: float) -> Verdict:
    """Pass or regressed only where the whole interval says so."""
    if worse.ci is None:
        return "undecided"
    if worse.high <= tolerance:
        return "pass"
    return "regressed" if worse.low > tolerance else "undecided"


def more_tokens(worse: Interval, tolerance: float, tokens: float) -> int | None:
    """How many further tokens would bring the interval to one side, as its width falls with their square root."""
    gap = tolerance - worse.value
    if worse.ci is None or gap == 0:
        return None
    width = worse.high - worse.value if gap > 0 else worse.value - worse.low
    return max(1, math.ceil(tokens * ((width / gap) ** 2 - 1)))


def overall(found: Sequence[Difference], broken: Sequence[str]) -> Verdict:
    """Regressed where any metric is, or a condition of the policy was met; undecided where any is."""
    verdicts = {difference.verdict for difference in found}
    if broken or "regressed" in verdicts:
        return "regressed"
    return "undecided" if "undecided" in verdicts else "pass"
