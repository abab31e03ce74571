"""The old stack rebuilt, the old result reproduced, and the changed packages flipped until the guilty one is named.

Every experiment changes packages alone: same machine, same models, same token ids. What cannot be rebuilt (another
processor, another Python, a version that no index has) is said, never guessed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from subeight.errors import UndecidedError
from subeight.lock.outcomes import Outcome
from subeight.lock.stacks import Change

SHARE = 0.1  # of the difference: the least that counts as carrying it, the most that counts as gone
ONE_BY_ONE = 4  # more packages than that are bisected
_OWN = "subeight"
_SHOWN = 6


class Rebuilder(Protocol):
    """Runs the locked evaluation with some packages as they were; all others are today's."""

    def fetch(self, package: str, version: str) -> str | None: ...

    def run(self, pins: Mapping[str, str]) -> Outcome: ...


@dataclass
class Replay:
    """What flipping packages showed.

    `guilty` are groups of packages that carry the difference, each alone, or together where none does alone; `share` is
    what is left of the difference with the old versions of all that could be rebuilt, `left` with those of the guilty.
    """

    guilty: list[list[Change]] = field(default_factory=list)
    share: float | None = None
    left: float | None = None
    impossible: list[str] = field(default_factory=list)
    tests: list[dict[str, Any]] = field(default_factory=list)
    repaired: Outcome | None = None  # what came out with the guilty packages old
    words: list[str] = field(default_factory=list)

    @property
    def pins(self) -> dict[str, str]:
        """The guilty packages at their old versions."""
        return {change.what: change.before for group in self.guilty for change in group if change.before is not None}

    def to_dict(self) -> dict[str, Any]:
        """As it stands in a record."""
        return {
            "guilty": [[change.to_dict() for change in group] for group in self.guilty],
            "share": self.share,
            "left": self.left,
            "impossible": self.impossible,
            "tests": self.tests,
            "words": self.words,
        }


def replay(changes: Sequence[Change], locked: Outcome, today: Outcome, rebuilder: Rebuilder) -> Replay:
    """Reproduces the locked result with the old packages, then finds which of them carry the difference."""
    found = Replay()
    try:
        return _replayed(changes, locked, today, rebuilder, found)
    except UndecidedError as error:  # an old stack that does not run: what was found before it stands
        found.words.append(str(error))
        return found


def _replayed(
    changes: Sequence[Change], locked: Outcome, today: Outcome, rebuilder: Rebuilder, found: Replay
) -> Replay:
    flips = _Flips(locked, today, rebuilder, found)
    if not flips.whole.any():
        found.words.append("Every sample gives the locked numbers, so there is nothing to replay.")
        return found
    flips.packages = _rebuildable(changes, rebuilder, found)
    if not flips.packages:
        found.words += ["No package that changed can be rebuilt as it was.", *_not_rebuilt(found)]
        return found
    found.share = flips.left({*flips.packages})
    if found.share > 1 - SHARE:
        found.words += [
            f"With {_listed(flips.packages.values())} as they were, {found.share:.0%} of the difference is left: it is "
            "none of these packages.",
            *_not_rebuilt(found),
        ]
        return found
    found.guilty = [[flips.packages[name] for name in group] for group in flips.search(list(flips.packages))]
    found.left = flips.left({*found.pins})
    found.repaired = flips.outcomes[frozenset(found.pins)]
    found.words += _concluded(found)
    return found


@dataclass
class _Flips:
    """The experiments, each set of old packages run once."""

    locked: Outcome
    today: Outcome
    rebuilder: Rebuilder
    found: Replay
    packages: dict[str, Change] = field(default_factory=dict)
    outcomes: dict[frozenset[str], Outcome] = field(default_factory=dict)
    _kept: dict[frozenset[str], float] = field(default_factory=dict)

    @property
    def whole(self) -> npt.NDArray[np.float64]:
        return _vector(self.today) - _vector(self.locked)

    def left(self, old: set[str]) -> float:
        """How much of today's difference to the lock is there with these packages old: 1 all of it, 0 nothing."""
        key = frozenset(old)
        if not key:
            return 1.0
        if key not in self._kept:
            pins = {name: str(self.packages[name].before) for name in sorted(key)}
            outcome = self.outcomes[key] = self.rebuilder.run(pins)
            self._kept[key] = _projected(_vector(outcome) - _vector(self.locked), self.whole)
            pinned = [f"{name}=={version}" for name, version in pins.items()]
            self.found.tests.append({"pinned": pinned, "share": self._kept[key]})
        return self._kept[key]

    def carries(self, names: Sequence[str]) -> bool:
        """Whether these packages, taken to today's versions alone, bring back a share of what the old ones removed."""
        base = self.left({*self.packages})
        return self.left({*self.packages} - {*names}) - base >= SHARE * (1 - base)

    def search(self, names: list[str]) -> list[list[str]]:
        """The groups within `names`, which carry the difference together, that cannot be taken apart further."""
        if len(names) == 1:
            return [names]
        middle = len(names) // 2
        parts = [[name] for name in names] if len(names) <= ONE_BY_ONE else [names[:middle], names[middle:]]
        groups = [group for part in parts if self.carries(part) for group in self.search(part)]
        return groups or [names]


def _vector(outcome: Outcome) -> npt.NDArray[np.float64]:
    return np.concatenate([outcome.total["kl"], outcome.total["nll"]])


def _projected(part: npt.NDArray[np.float64], whole: npt.NDArray[np.float64]) -> float:
    return float(part @ whole / (whole @ whole))


def _rebuildable(changes: Sequence[Change], rebuilder: Rebuilder, found: Replay) -> dict[str, Change]:
    packages = {}
    for change in changes:
        reason = _reason(change, rebuilder)
        if reason is None:
            packages[change.what] = change
        else:
            found.impossible.append(f"{change} ({reason})")
    return packages


def _reason(change: Change, rebuilder: Rebuilder) -> str | None:
    """Why this change cannot be taken back, else None."""
    if not change.package:
        return "not a package"
    if change.what == _OWN:
        return "Subeight itself stays as it is"
    if change.before is None:
        return "it was not installed then, and hiding it is not tried"
    return rebuilder.fetch(change.what, change.before)


def _not_rebuilt(found: Replay) -> list[str]:
    if not found.impossible:
        return []
    more = f"; and {len(found.impossible) - _SHOWN} more" if len(found.impossible) > _SHOWN else ""
    return [f"Not rebuilt: {'; '.join(found.impossible[:_SHOWN])}{more}."]


def _concluded(found: Replay) -> list[str]:
    share, left = found.share or 0.0, found.left or 0.0
    reproduced = "the locked result is reproduced" if share <= SHARE else f"{share:.0%} of the difference is left"
    named = " and ".join(_listed(group, joined=" together with ") for group in found.guilty)
    plural = "are" if sum(map(len, found.guilty)) > 1 else "is"
    pins = ", ".join(f"{name}=={version}" for name, version in found.pins.items())
    words = [
        f"With the changed packages as they were, {reproduced}.",
        f"{named} {plural} guilty: with {pins} and everything else of today, {left:.0%} of the difference is left.",
    ]
    return [*words, *(_not_rebuilt(found) if share > SHARE else [])]


def _listed(changes: Any, joined: str = ", ") -> str:
    shown = [f"{change.what} ({change.before} -> {change.after or 'absent'})" for change in changes]
    more = [f"{len(shown) - _SHOWN} more"] if len(shown) > _SHOWN else []
    return joined.join([*shown[:_SHOWN], *more])
