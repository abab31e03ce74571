"""Suspect 5, the layers: which linears carry the loss, found by swapping sets of them between candidate and baseline.

Places that stand out are tried first (a format below the others', wrong scales seen by forensics, quantized embeddings
or head), then the place whose difference shows most on the prompts, then sets by halving. What recovers much is found
guilty only if its format is the exception, or if rounding it anew recovers the loss as well: a linear that is merely
sensitive to the format that all others have is said, and not accused. Damage that is spread evenly is said, too.
"""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from subeight.diagnose.case import Case, Examined
from subeight.diagnose.exceptions import Group, exceptions_of
from subeight.diagnose.finding import Cause, Finding
from subeight.diagnose.guilt import Layers
from subeight.diagnose.search import HALF, Search
from subeight.diagnose.sites import Sites
from subeight.evals.loss import recovered
from subeight.probe.probe import Probe

_MOST = 8  # causes found one by one
_UNEXPLAINED = 0.7  # of the loss: where culprits leave more than this, sets are halved as well
_AS_MUCH = "rounding it anew in the same format costs as much"
_NOTHING = 1e-6  # nats (or share of prompts): less is no loss


def examine(case: Case) -> Examined:
    """Searches the linears for culprits; hands on a case in which they are restored."""
    began = time.monotonic()
    if case.gauge is None:
        return Finding("layers", "skipped", "The two models could not be aligned, so no linear can be swapped."), case
    if case.loss.value <= _NOTHING:
        return Finding("layers", "cleared", "Nothing is lost on these prompts, so there is nothing to search."), case
    probe = case.probe()
    at = _layers(case, probe)
    causes = _causes(case, at)
    sites, search = at.sites, at.search
    finding = Finding(
        suspect="layers",
        verdict="guilty" if causes else "cleared",
        evidence=_evidence(causes, search, sites),
        causes=tuple(causes),
        evaluations=probe.spent.evaluations,
        block_forwards=probe.spent.block_forwards,
        seconds=time.monotonic() - began,
        details=_details(sites, search),
    )
    names = frozenset(place for cause in causes for place in cause.places)
    swaps = case.swaps | sites.swaps(names)
    return finding, replace(case, swaps=swaps, loss=search.left if causes else case.loss)


def _layers(case: Case, probe: Probe) -> Layers:
    sites = Sites.of(case, probe)
    search = Search(
        expected=sites.expected,
        position=sites.position,
        whole=case.whole,
        start=probe.whole(),
        measure=lambda names: probe.restore(sites.swaps(names)),
        spent=lambda: probe.spent.block_forwards,
        seed=case.settings.seed,
    )
    return Layers(probe, sites, search)


def _causes(case: Case, at: Layers) -> list[Cause]:
    """The culprits: exceptions first, then the likeliest places, then by halving."""
    causes: list[Cause] = []
    for group in exceptions_of(case, at.sites):
        causes += _of_group(at, group)
    while len(causes) < _MOST and (cause := _likeliest(at)) is not None:
        causes.append(cause)
    search, sites = at.search, at.sites
    left = search.left.value / search.whole.value
    untried = [name for name in sites.names if name not in search.found and name not in sites.sensitive]
    if len(untried) > 1 and left >= (_UNEXPLAINED if causes else HALF):
        for test in search.halve(untried, left):
            cause = at.judge(test, sites.hints.get(test.names[0]))
            causes += [cause] if cause is not None else []
    return causes


def _of_group(at: Layers, group: Group) -> list[Cause]:
    """Restores places that stand out together, then, unless their format is what is odd, one by one."""
    test = at.search.restore(group.names)
    if not test.is_guilty or not group.is_out_of_proportion(test.share.value, at.sites):
        return []
    if group.kind == "format":
        at.search.accept(test)
        return [cause for cause in [at.judge(test, "format")] if cause is not None]
    causes = []
    for name in sorted(group.names, key=lambda name: -at.sites.expected[name]):
        one = at.search.restore([name])
        if one.is_guilty:
            at.search.accept(one)
            cause = at.judge(one, at.sites.hints.get(name))
            causes += [cause] if cause is not None else []
    return causes


def _likeliest(at: Layers) -> Cause | None:
    """The place of which most is expected, if it is a culprit."""
    known = at.search.found | at.sites.sensitive.keys()
    name = next((name for name in at.sites.ordered if name not in known), None)
    test = None if name is None else at.search.restore([name])
    if test is None or not test.is_guilty:
        return None
    at.search.accept(test)
    return at.judge(test, at.sites.hints.get(test.names[0]))


def _evidence(causes: Sequence[Cause], search: Search, sites: Sites) -> str:
    count = len(sites.names)
    if causes:
        total = recovered(search.start, search.left, search.whole)
        return f"Restoring {_listed(causes)} brings back {total.value:.0%} of the loss; {count} places were searched."
    largest = max((t for t in search.tests if t.what == "restore"), key=lambda t: t.share.value, default=None)
    most = ""
    if largest is not None:
        of = f"{len(largest.names)} of {count} places" if len(largest.names) > 1 else largest.names[0]
        most = f" The most that one test recovered is {largest.share.value:.0%}, with {of} restored."
    if sites.sensitive:
        name, share = max(sites.sensitive.items(), key=lambda item: item[1])
        return (
            f"No linear is broken. {name} is sensitive: it carries {share:.0%} of the loss, and "
            + ("its weight is no worse than the others'" if not sites.stands_out(name) else _AS_MUCH)
            + f".{most}"
        )
    return f"The damage is spread over the {count} places that were searched: no few of them carry it.{most}"


def _listed(causes: Sequence[Cause]) -> str:
    places = [place for cause in causes for place in cause.places]
    return ", ".join(places[:4]) + (f" and {len(places) - 4} more" if len(places) > 4 else "")


def _details(sites: Sites, search: Search) -> dict[str, Any]:
    tests = [
        {
            "what": test.what,
            "places": len(test.names),
            "names": list(test.names[:8]),
            "loss": test.loss.value,
            "loss_ci": test.loss.interval().ci,
            "recovered": test.share.value,
            "recovered_ci": test.share.ci,
            "block_forwards": test.block_forwards,
        }
        for test in search.tests
    ]
    curve = [
        {"restored": len(test.names), "bytes": sites.added(test.names), "recovered": test.share.value}
        for test in search.tests
        if test.what == "restore"
    ]
    all_of_it = search.start.value / search.whole.value
    everything = {"restored": len(sites.names), "bytes": sites.added(sites.names), "recovered": all_of_it}
    total = sum(sites.expected.values()) or 1.0
    prior = [
        {"name": name, "block": sites.position[name], "share": sites.expected[name] / total} for name in sites.ordered
    ]
    return {
        "prior": prior[:64],
        "tests": tests,
        "curve": sorted([*curve, everything], key=lambda point: point["restored"]),
        "weight_errors": dict(sites.errors),
        "sensitive": dict(sites.sensitive),
        "format": sites.usual_words,
    }
