from dataclasses import dataclass
from importlib import metadata
from typing import ClassVar

import pytest
import torch

from subeight.errors import RecipeError
from subeight.formats import Format, quantize
from subeight.methods import base
from subeight.methods.base import Round, build, describe, find_methods, option
from tests.contract.methods import check_round


@dataclass(frozen=True)
class Upwards(Round):
    """A method from another package."""

    name: ClassVar[str] = "upwards"
    share: float = option(0.5, "how far", low=0, high=1)
    times: int = 2

    def round(self, weight, format, stats, generator, notes=None):
        return quantize(weight, format)


@dataclass(frozen=True)
class Demanding(Round):
    name: ClassVar[str] = "demanding"
    must: int


@pytest.fixture
def installed(monkeypatch):
    """Pretends that packages which declare these entry points are installed."""

    def install(*targets: str) -> None:
        entries = [metadata.EntryPoint(f"m{i}", t, "subeight.methods") for i, t in enumerate(targets)]
        real = metadata.entry_points

        def entry_points(**wanted):
            return entries if wanted == {"group": "subeight.methods"} else real(**wanted)

        monkeypatch.setattr(metadata, "entry_points", entry_points)
        base._found.cache_clear()

    yield install
    monkeypatch.undo()
    base._found.cache_clear()


def test_our_own_are_found_by_their_files():
    assert {"rtn", "gptq", "awq", "smooth"} <= set(find_methods())


def test_what_is_found_is_a_copy():
    find_methods().clear()
    assert "rtn" in find_methods()


def test_a_method_from_outside(installed):
    installed(f"{__name__}:Upwards")
    method = build("upwards", {"share": 1, "times": 3})
    assert (method.share, method.times) == (1.0, 3)
    assert isinstance(method.share, float)
    check_round(method, Format.parse("int4:g64"))
    assert "| `share` | `0.5` | a number from 0 to 1 | how far |" in describe(Upwards)


def test_two_of_one_name_are_refused(installed):
    installed(f"{__name__}:Upwards", f"{__name__}:Upwards")
    with pytest.raises(RecipeError, match="two methods are called 'upwards'"):
        find_methods()


@pytest.mark.parametrize("target", ["torch:Tensor", "torch:float32", "subeight.methods.base:Round"])
def test_an_entry_point_that_is_no_method_is_named(installed, target):
    installed(target)
    with pytest.raises(RecipeError, match=f"entry point 'm0'.*{target}"):
        find_methods()


def test_an_option_without_default(installed):
    installed(f"{__name__}:Demanding")
    with pytest.raises(RecipeError, match="demanding needs a value for must"):
        build("demanding")
    assert build("demanding", {"must": 3}).must == 3


@pytest.mark.parametrize(
    ("name", "options", "words"),
    [
        ("gtpq", {}, ["'gtpq'", "gptq, hqq", "did you mean 'gptq'?"]),
        ("nothinglike", {}, ["'nothinglike' is not a method"]),
        ("gptq", {"dampening": 0.1}, ["no option 'dampening'", "did you mean 'damping'?"]),
        ("gptq", {"damping": -1}, ["damping was given as -1", "a number from 0 to 10"]),
        ("gptq", {"damping": "a lot"}, ["'a lot'", "a number"]),
        ("gptq", {"damping": True}, ["True"]),
        ("gptq", {"damping": float("nan")}, ["nan", "a number from 0 to 10"]),
        ("gptq", {"attempts": 1.5}, ["a whole number from 0 to 10"]),
        ("gptq", {"order": "actvation"}, ["activation | columns", "did you mean 'activation'?"]),
        ("gptq", {"order": 3}, ["activation | columns"]),
        ("rtn", {"search": None}, ["None", "absmax"]),
        ("awq", {"grid": 0}, ["a whole number from 1 to 200"]),
        ("awq", {"duo": 1}, ["true or false"]),
        ("smooth", {"alphas": []}, ["a list of numbers from 0 to 1"]),
        ("smooth", {"alphas": [0.5, 2]}, ["[0.5, 2]", "a list of numbers from 0 to 1"]),
        ("smooth", {"alphas": 0.5}, ["a list of numbers"]),
    ],
)
def test_bad_options_say_what_is_allowed(name, options, words):
    with pytest.raises(RecipeError) as caught:
        build(name, options)
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert "\n" not in message


def test_what_yaml_gives_is_taken():
    assert build("gptq", {"damping": 1}).damping == 1.0
    assert build("smooth", {"alphas": [0.5, 1]}).alphas == (0.5, 1.0)


def test_needs_follow_the_options():
    assert build("rtn").needs == frozenset()
    assert build("rtn", {"search": "output"}).needs == {"hessian"}
    assert build("smooth").needs == {"absmax"}
    assert build("smooth", {"search": True}).needs == {"absmax", "hessian"}
    assert build("awq").needs == {"hessian", "absmean"}


def test_a_base_class_does_nothing_in_silence():
    with pytest.raises(NotImplementedError):
        Round.round(build("rtn"), torch.ones(1, 1), Format.parse("int4"), None, torch.Generator())
