"""Packages are flipped one at a time, or by halves, until the guilty one is named; what cannot be is said."""

import numpy as np
import pytest

from subeight.errors import UndecidedError
from subeight.lock.outcomes import Outcome
from subeight.lock.replay import replay
from subeight.lock.stacks import Change


def _outcome(worse):
    count = np.full(5, 10.0)
    kl = count * (0.1 + worse * np.asarray([1.0, 2.0, 0.5, 0.0, 1.0]))
    names = np.asarray(list("abcde"))
    return Outcome(np.arange(5), names, names, count, {"kl": kl, "top1": count, "nll": 3 * kl, "nll_baseline": count})


def _package(name, before="1", after="2"):
    return Change(name, before, after, "low", package=True)


class Fake:
    """Environments whose result follows from which packages are today's."""

    def __init__(self, effect, names, refused=()):
        self.effect, self.names, self.refused, self.runs = effect, set(names), refused, []

    def fetch(self, package, version):
        return "no index has it" if package in self.refused else None

    def run(self, pins):
        self.runs.append(dict(pins))
        return _outcome(self.effect(self.names - pins.keys()))


def _replay(names, effect, **options):
    fake = Fake(effect, names, **options)
    found = replay([_package(name) for name in names], _outcome(0), _outcome(effect(set(names))), fake)
    return found, fake


def _named(found):
    return [[change.what for change in group] for group in found.guilty]


def test_one_package_needs_one_run():
    found, fake = _replay(["torch"], lambda new: "torch" in new)
    assert _named(found) == [["torch"]] and found.pins == {"torch": "1"}
    assert (found.share, found.left, len(fake.runs)) == (0.0, 0.0, 1)
    assert "torch (1 -> 2) is guilty: with torch==1" in found.words[1]


@pytest.mark.parametrize("guilty", ["a", "c", "d"])
def test_a_few_packages_are_flipped_one_at_a_time(guilty):
    found, fake = _replay(list("abcd"), lambda new: 1.0 * (guilty in new))
    assert _named(found) == [[guilty]]
    assert len(fake.runs) == 6  # all old, each alone, and the guilty one alone old
    assert fake.runs[-1] == {guilty: "1"}


@pytest.mark.parametrize("place", [0, 7, 15])
def test_many_packages_are_bisected(place):
    names = [f"p{n:02}" for n in range(16)]
    found, fake = _replay(names, lambda new: 1.0 * (names[place] in new))
    assert _named(found) == [[names[place]]]
    assert len(fake.runs) <= 11


def test_two_packages_are_both_named_with_their_noise_around_them():
    found, _ = _replay(list("abcdefgh"), lambda new: 0.6 * ("b" in new) + 0.4 * ("g" in new) + 0.01 * ("d" in new))
    assert _named(found) == [["b"], ["g"]]
    assert found.left == pytest.approx(0.01 / 1.01)


@pytest.mark.parametrize("names", ["abc", "abcdefgh"])
def test_packages_that_err_only_together_are_named_together(names):
    pair = {names[0], names[-1]}
    found, _ = _replay(list(names), lambda new: 1.0 * (pair <= new))
    (group,) = _named(found)
    assert pair <= set(group)
    assert "together with" in found.words[1] and "are guilty" in found.words[1]


def test_an_innocent_package_is_not_named():
    """Something else of the machine carries the difference."""
    fake = Fake(lambda new: 1.0, ["torch"])
    found = replay([_package("torch"), Change("cpu", "x", "y", "medium")], _outcome(0), _outcome(1), fake)
    assert found.guilty == [] and found.share == 1.0
    assert "none of these packages" in found.words[0] and "cpu: x -> y (not a package)" in found.words[1]


def test_half_of_the_difference_is_said_to_be_elsewhere():
    found, _ = _replay(["a", "b"], lambda new: 0.5 + 0.5 * ("a" in new))
    assert _named(found) == [["a"]] and found.share == pytest.approx(0.5)
    assert "50% of the difference is left" in found.words[0]


def test_what_cannot_be_rebuilt_is_said():
    changes = [
        _package("gone"), _package("fresh", before=None), _package("subeight"),
        Change("python", "3.11", "3.12", "medium"),
    ]  # fmt: skip
    found = replay(changes, _outcome(0), _outcome(1), Fake(lambda new: 1.0, [], refused=("gone",)))
    assert found.guilty == [] and found.tests == []
    text = " ".join(found.words)
    for reason in ("no index has it", "not installed then", "Subeight itself", "not a package"):
        assert reason in text


def test_no_difference_needs_no_run():
    fake = Fake(lambda new: 0.0, ["a"])
    found = replay([_package("a")], _outcome(0), _outcome(0), fake)
    assert "nothing to replay" in found.words[0] and fake.runs == []


def test_an_old_stack_that_does_not_run_ends_the_replay_with_its_reason():
    class Broken(Fake):
        def run(self, pins):
            raise UndecidedError("With a==1 the locked evaluation does not run: ImportError")

    found = replay([_package("a")], _outcome(0), _outcome(1), Broken(lambda new: 1.0, ["a"]))
    assert found.words == ["With a==1 the locked evaluation does not run: ImportError"] and found.guilty == []
