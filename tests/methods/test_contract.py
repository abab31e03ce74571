"""Every method that can be found, with every choice it offers, in every kind of format."""

import inspect
import re
from pathlib import Path

import pytest

from subeight.formats import Format
from subeight.methods.base import MOVES, Fit, Method, Move, Round, Select, build, describe, find_methods
from subeight.methods.polishing import Polish
from subeight.methods.tune import Tune
from subeight.models.stats import GATHERED
from tests.contract.methods import (
    FORMATS,
    check_fit,
    check_move,
    check_polish,
    check_round,
    check_select,
    check_tune,
    variants,
)

DOCS = Path(__file__).parents[2] / "docs" / "methods.md"
METHODS = find_methods()


def _cases(kind: type[Method]) -> list:
    return [
        pytest.param(name, options, id="-".join([name, *map(str, options.values())]))
        for name, made in METHODS.items()
        if issubclass(made, kind)
        for options in variants(made)
    ]


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize(("name", "options"), _cases(Round))
def test_rounds(name, options, text):
    check_round(build(name, options), Format.parse(text))


@pytest.mark.parametrize("text", [text for text in FORMATS if text.startswith("int")])
@pytest.mark.parametrize(("name", "options"), _cases(Tune))
def test_tunes(name, options, text):
    check_tune(build(name, options), Format.parse(text))


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize(("name", "options"), _cases(Select))
def test_selects(name, options, text):
    check_select(build(name, options), Format.parse(text))


@pytest.mark.parametrize("text", FORMATS)
@pytest.mark.parametrize(("name", "options"), _cases(Fit))
def test_fits(name, options, text):
    check_fit(build(name, options), Format.parse(text))


@pytest.mark.parametrize(("name", "options"), _cases(Polish))
def test_polishes(name, options):
    check_polish(build(name, options))


@pytest.mark.parametrize("inputs", [None, "int8:token", "int8:tensor", "fp8:token"])
@pytest.mark.parametrize(
    "formats", [["int4:g64:sym"], ["int3:g32:asym", None, "int8:channel"], [None], ["mxfp4", "nf4:g64"]]
)
@pytest.mark.parametrize(("name", "options"), _cases(Move))
def test_moves(name, options, formats, inputs):
    parsed = [None if text is None else Format.parse(text) for text in formats]
    check_move(build(name, options), parsed, None if inputs is None else Format.parse(inputs))


@pytest.mark.parametrize("name", METHODS)
def test_says_what_it_is(name):
    made = METHODS[name]
    module = inspect.getmodule(made)
    assert made.name == name == Path(module.__file__).stem
    assert made.move == Path(module.__file__).parent.name
    assert made.move in MOVES
    assert made.scope in ("linear", "group", "block", "model")
    assert build(name).needs <= GATHERED | {"states", "text"}
    assert re.search(r"https://\S+", module.__doc__), "name the paper"
    assert made.__doc__


@pytest.mark.parametrize("name", METHODS)
def test_documented_as_it_is(name):
    text = DOCS.read_text(encoding="utf-8")
    assert f"\n## {name}\n" in text
    assert describe(METHODS[name]) in text, f"docs/methods.md: write this table\n{describe(METHODS[name])}"
