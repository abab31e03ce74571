"""Group testing: which few of many places carry a loss, found with few measurements.

A test restores a set of places and measures the share of the loss that comes back. The likeliest place is tried alone;
then sets are halved, and only halves that recover enough are looked into. Sets are arbitrary: they follow what is
expected of each place, not the order of the layers; of two halves the later one in the model is measured, because only
what follows it must be computed again. Where damage is spread evenly every set recovers its share, and the search ends
after a few halvings without a culprit.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field

from subeight.evals.loss import Loss, recovered
from subeight.evals.stats import Interval

LEAF = 0.15  # of the loss: a single place that recovers less is no culprit
HALF = 0.2  # of the loss: a set that recovers less is not looked into
SURE = 0.05  # the lower end that the interval of a culprit's share must pass
_ONLY = 0.15  # of a set's share: a half that recovers less than this of it is left out


@dataclass(frozen=True)
class Test:
    """One measurement: which places were restored (on top of `with_`), what was left, and the share recovered."""

    what: str  # "restore", "damage" or "round anew"
    names: tuple[str, ...]
    loss: Loss
    share: Interval
    block_forwards: float = 0.0

    @property
    def is_guilty(self) -> bool:
        """Whether a single place that recovers so much is a culprit."""
        return self.share.value >= LEAF and (self.share.ci or [0.0])[0] >= SURE


@dataclass
class Search:
    """The search over the places in `expected`; `measure` restores a set of them and returns what is left."""

    expected: Mapping[str, float]  # what each place is expected to carry; only the order and the sums matter
    position: Mapping[str, int]  # the block of each place
    whole: Loss  # what shares are of: the loss as it was met
    start: Loss  # with nothing restored
    measure: Callable[[frozenset[str]], Loss]
    spent: Callable[[], float] = lambda: 0.0
    seed: int = 0
    found: frozenset[str] = frozenset()  # the culprits so far: restored in every further test
    tests: list[Test] = field(default_factory=list)
    _known: dict[frozenset[str], Loss] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._known[frozenset()] = self.start

    @property
    def left(self) -> Loss:
        """The loss with the culprits so far restored."""
        return self.with_restored(self.found)

    def with_restored(self, names: Collection[str]) -> Loss:
        """The loss with just these places restored; never measured twice."""
        chosen = frozenset(names)
        if chosen not in self._known:
            self._known[chosen] = self.measure(chosen)
        return self._known[chosen]

    def restore(self, names: Collection[str]) -> Test:
        """Measures what restoring these places, on top of the culprits so far, brings back."""
        return self.test("restore", names, lambda: self.with_restored(self.found | frozenset(names)))

    def test(self, what: str, names: Collection[str], measure: Callable[[], Loss], before: Loss | None = None) -> Test:
        """Measures something that was done to these places, and notes it; `before` is the loss without it."""
        spent = self.spent()
        loss = measure()
        share = recovered(before or self.left, loss, self.whole, seed=self.seed)
        test = Test(what, tuple(sorted(names)), loss, share, self.spent() - spent)
        self.tests.append(test)
        return test

    def accept(self, test: Test) -> None:
        """Counts the places of a test among the culprits from now on."""
        self.found |= frozenset(test.names)

    def single(self, names: Sequence[str]) -> list[Test]:
        """Tries places one by one, in the order given, as long as each is a culprit."""
        guilty = []
        for name in names:
            test = self.restore([name])
            if not test.is_guilty:
                break
            guilty.append(test)
            self.accept(test)
        return guilty

    def halve(self, names: Collection[str], share: float) -> list[Test]:
        """The culprits inside a set that recovers `share` of the loss: halves, quarters, down to single places."""
        if len(names) == 1:
            test = self.restore(names)
            if test.is_guilty:
                self.accept(test)
                return [test]
            return []
        early, late = self._halves(names)
        of_late = self.restore(late)
        recovered_late = min(max(of_late.share.value, 0.0), share)
        guilty: list[Test] = []
        if len(late) == 1 and of_late.is_guilty:
            self.accept(of_late)
            guilty.append(of_late)
        elif len(late) > 1 and recovered_late >= max(HALF, _ONLY * share):
            guilty += self.halve(late, recovered_late)
        rest = share - recovered_late
        if rest >= max(HALF, _ONLY * share):
            guilty += self.halve(early, rest)
        return guilty

    def _halves(self, names: Collection[str]) -> tuple[list[str], list[str]]:
        """Two parts of like expectation: what stands earlier in the model, and what stands later."""
        ordered = sorted(names, key=lambda name: (self.position[name], name))
        # a place of which nothing is expected still counts for its number
        floor = sum(self.expected.get(name, 0.0) for name in names) / len(names)
        weights = [self.expected.get(name, 0.0) + floor + 1e-12 for name in ordered]
        half, so_far, cut = sum(weights) / 2, 0.0, 1
        for at, weight in enumerate(weights[:-1], start=1):
            so_far += weight
            cut = at
            if so_far >= half:
                break
        return ordered[:cut], ordered[cut:]
