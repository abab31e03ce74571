"""The page of a diagnosis: the verdict first, the suspects in order, the repair, and no gap that breaks it."""

import copy
import itertools
import re

import pytest

from subeight.records import Coordinates, Record
from subeight.report import render
from subeight.report.sections import diagnose

from . import diagnose_fixtures as fixtures
from .diagnose_fixtures import CULPRIT, PAIR
from .fixtures import BREAKOUT, HOSTILE
from .test_markup import Reader
from .test_page import body, sections

EVERY = fixtures.every()


def text_of(record):
    return re.sub(r"\s+", " ", Reader(body(render([record]))).text)


def test_the_story_is_told_in_order():
    assert sections(render([EVERY["culprit"]])) == [
        "The verdict", "Where the loss is", "Suspect by suspect", "Baseline: cleared", "Stack: cleared",
        "Kernels: cleared", "Calibration: cleared", "Layers: guilty", "The prescription", "What was not tested",
        "The five coordinates", "The stack", "Do it again",
    ]  # fmt: skip


def test_a_culprit_is_named_with_its_share_its_price_and_its_repair():
    text = text_of(EVERY["culprit"])
    for words in (
        "layers · scales", CULPRIT, "95.1 %", "92.1 to 98.1", "664 kB", "+1.9 %",
        "the loss goes from 0.847 (0.745 to 0.949) to 0.0415 (0.0332 to 0.0498) for 664 kB more",
        f"Restore {CULPRIT} from the baseline",
        "--recipe runs/diagnose-smollm2/repair.yaml",
        "17 evaluations, 132 block forwards",
        "is number 193: looking at the weights would not have found it", "--only layers",
        "Interactions of more than two linears were not searched",
    ):  # fmt: skip
        assert words in text, words
    summary = text.split("The verdict", 2)
    assert "are wrong: 8 of its groups" in summary[0] + summary[1]


def test_the_strip_has_five_steps_each_with_its_verdict():
    page = render([EVERY["rope"]])
    strip = re.search(r'<ol class="steps">.*?</ol>', page, flags=re.DOTALL).group()
    assert re.findall(r'<li class="(\w+)"', strip) == ["guilty"] + ["skipped"] * 4
    assert re.findall(r"<b>(\w+)</b>", strip) == ["Baseline", "Stack", "Kernels", "Calibration", "Layers"]
    assert "Stack, kernels, calibration and layers: Not examined" in text_of(EVERY["rope"])


def test_a_config_fault_says_which_field_to_set():
    text = text_of(EVERY["rope"])
    assert "In the candidate's config.json, set rope_theta to 100000.0." in text
    assert "and it adds no bytes" in text and "config.rope_theta" in text
    assert "Stack: cleared" not in text


def test_a_pair_is_named_with_both():
    page = render([EVERY["pair"]])
    places = re.search(r'<div class="places">.*?</div>', page).group()
    assert all(name in Reader(places).text for name in PAIR)


def test_nothing_found_and_evenly_spread_are_answers():
    assert "The damage is spread evenly" in text_of(EVERY["spread"])
    nothing = text_of(EVERY["nothing"])
    assert "Nothing was found guilty, and that is an answer" in nothing and "Not decided: stack." in nothing
    for record in (EVERY["spread"], EVERY["nothing"]):
        assert not {"The prescription"} & set(sections(render([record])))


def test_hostile_texts_are_shown_and_do_nothing():
    for record in EVERY.values():
        read = Reader(body(render([record])))
        assert HOSTILE in read.text and "img" not in read.elements and read.elements.count("script") == 1
        assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert BREAKOUT in Reader(body(render([EVERY["culprit"]]))).text


@pytest.mark.parametrize("name", ["culprit", "rope"])
def test_any_number_may_be_missing_or_strange(name):
    record = EVERY[name]
    for place, value in zip(places(record.numbers), itertools.cycle((None, "?", -1, [], {}))):
        broken = copy.deepcopy(record.numbers)
        hold(broken, place[:-1])[place[-1]] = value
        made = Record(kind="diagnose", coordinates=Coordinates(), numbers=broken, subject=record.subject)
        assert "Suspect by suspect" in quick(made)


def places(numbers, depth=3):
    """Keys of the record's mappings, and of the first of every list."""
    for key, value in numbers.items():
        yield [key]
        inner = value[0] if isinstance(value, list) and value else value
        step = [key, 0] if isinstance(value, list) else [key]
        if isinstance(inner, dict) and depth:
            yield from ([*step, *rest] for rest in places(dict(list(inner.items())[:6]), depth - 1))


def hold(numbers, path):
    for key in path:
        numbers = numbers[key]
    return numbers


def quick(record):
    """The sections' titles and tiles, without writing the page."""
    diagnose.summary([record]), diagnose.tiles([record])
    return [section.title for section in diagnose.draw([record])]


def test_other_repairs_say_what_to_do():
    repairs = {
        "pin": ({"torch": "2.7.0"}, "pip install torch==2.7.0"),
        "recalibrate": ("german.jsonl", "Calibrate again: german.jsonl."),
        "baseline": ("org/right", "Measure it against another baseline: org/right."),
        "server": ("bos", "Correct the server: bos."),
        "tokenizer": ({"add_bos": True}, "Take from the baseline's tokenizer files: add_bos True."),
        "weights": ({"a.b": "int8:g64", "c": "int8:g64", "d": "int4"}, "Store anew: a.b, c as int8:g64; d as int4."),
        "ranges": ({"a.b": 3.5}, "Calibrate the input ranges of a.b again"),
        "kernel": (["k"] * 9, "k, k, k, k, k, k and 3 more on another kernel"),
        "levitate": (["a", HOSTILE], f"Levitate: a, {HOSTILE}."),
    }
    for name, (value, said) in repairs.items():
        record = copy.deepcopy(EVERY["culprit"])
        record.numbers["verdict"]["causes"][0]["repair"] = {name: value, "empty": None, "how": "so"}
        assert said in text_of(record)


def test_another_model_has_no_share_and_asks_for_the_right_baseline():
    record = copy.deepcopy(EVERY["culprit"])
    record.numbers["verdict"]["causes"] = [
        {"suspect": "baseline", "kind": "model", "places": ["baseline"], "sentence": "Another model.",
         "recovered": None, "recovered_ci": None, "repair": {"baseline": None}},
    ]  # fmt: skip
    record.numbers["prescription"] = None
    text = text_of(record)
    assert "Find the right full-precision model and give it with --baseline." in text
    assert "The repair was not applied and measured." in text and "subeight quantize" not in text


def test_what_is_stored_anew_is_listed_with_its_format():
    record = copy.deepcopy(EVERY["culprit"])
    record.numbers["prescription"]["formats"] = {CULPRIT: "int8:g64:sym", "lm_head": None}
    text = text_of(record)
    assert "What it stores anew" in text and "int8:g64:sym" in text and "as in the baseline" in text


def test_sensitive_linears_are_not_called_broken():
    record = copy.deepcopy(EVERY["nothing"])
    record.numbers["findings"][-1]["details"] = {"sensitive": {CULPRIT: 0.31}}
    text = text_of(record)
    assert "Nothing is broken. Some linears are sensitive" in text and "Sensitive, not broken" in text


def test_details_that_no_one_expects_are_shown():
    record = copy.deepcopy(EVERY["culprit"])
    record.numbers["findings"][1]["details"] = {
        "moon": "full", "phases": [{"phase": k, "light": k / 40} for k in range(40)], "depths": {"a": {"b": [1, 2]}},
        "flags": {"fast": True}, "names": ["x"] * 9, "doubts": {"layers.0.o_proj": "worn"},
    }  # fmt: skip
    text = text_of(record)
    for words in ("full", "All 40", "yes", "and 3 more", "Depths", "layers.0.o_proj"):
        assert words in text


def test_two_diagnoses_stay_apart():
    titles = sections(render([EVERY["culprit"], EVERY["nothing"]]))
    assert titles.count("The verdict: smollm2-w3") == 2
