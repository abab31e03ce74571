"""The page of `train qlora`: what the record says, by name, and nothing that breaks on what it lacks."""

import copy
import itertools
import re

import pytest

from subeight.records import Coordinates, Record
from subeight.report import lora, lora_figures, render
from subeight.report.sections import train_qlora

from .fixtures import BREAKOUT, HOSTILE, MODEL, record
from .test_diagnose_page import hold, places
from .test_markup import Reader
from .test_page import body, sections


def way(size, loss, exact, kl, kept, verdict, **names):
    ends = {"loss_ci": [loss - 0.1, loss + 0.1], "exact_ci": [exact - 0.05, exact + 0.04], "kl_ci": [kl, 2 * kl]}
    measured = {"bytes": size, "loss": loss, "exact": exact, "accuracy": None, "kl": kl, **ends}
    return {**names, **measured, "kept": kept, "kept_ci": [kept - 0.1, kept + 0.1], "verdict": verdict}


MERGES = [
    way(120_000_000, 0.1, 0.95, 0.0, 1.0, "kept", mode="apart"),
    way(269_000_000, 0.3, 0.8, 0.2, 0.84, "weakened", mode="16-bit"),
    {"mode": "dequantized", "skipped": "it was not asked for"},
    way(113_000_000, 2.0, 0.1, 1.5, 0.1, "erased", mode="requantized"),
]
TOTALS = {
    "quantized": {"parameters": 210, "count": 106_168_320, "bytes": 56_401_920},
    "frozen": {"parameters": 62, "count": 28_346_688, "bytes": 56_693_376},
    "trained": {"parameters": 420, "count": 4_884_480, "bytes": 19_537_920},
    "all": {"parameters": 692, "count": 139_399_488, "bytes": 132_633_216},
    "fused": {"parameters": 4, "quantized": 3, "bytes": 12},
}
ENTRY = {"name": "model.layers.0.mlp.experts", "shape": [4, 8, 8], "status": "quantized", "format": "nf4:g64"}
NUMBERS = {
    "merges": MERGES,
    "untrained": [way(113_000_000, 3.0, 0.0, 3.0, 0.0, "", base="quantized")],
    "metric": "exact",
    "best": "apart",
    "findings": ["Best by bytes: kept apart, 120 MB, which keeps 100% of the gain; quantized again it is erased."],
    "training": {"curve": [{"step": n, "loss": 3.0 / n} for n in range(1, 9)], "resumed_at": 4},
    "manifest": {"totals": TOTALS, "parameters": [{**ENTRY, "bytes": 136, "reason": ""}]},
}
MADE = record("train_qlora", NUMBERS, subject={"model": MODEL, "recipe": "nf4"})


def text_of(*records):
    return re.sub(r"\s+", " ", Reader(body(render(list(records)))).text)


def test_merges_are_told_with_their_verdicts():
    page = text_of(MADE)
    for words in (
        "merged onto the 16-bit base", "weakened", "not measured: it was not asked for", "erased", "95.0 %",
        "quantized again it is erased", "Of 4 fused expert parameters, 3 are quantized.", "resumed at update 4",
        "4,884,480",
    ):  # fmt: skip
        assert words in page
    titles = sections(render([MADE]))
    assert titles[:3] == [
        "Ways of merging", "The loss while training", "What is quantized, frozen and trained",
    ]  # fmt: skip
    best, kept, trained = train_qlora.tiles([MADE])
    assert best.note == "kept apart" and kept.value == "100.0 %" and trained.value == "4,884,480"


def test_the_figure_has_what_was_measured():
    figure = lora_figures.sizes_against_gain(lora.ways(MADE))
    assert [(trace.x[0], trace.y[0]) for trace in figure.data] == [(120.0, 1.0), (269.0, 0.84), (113.0, 0.1)]
    assert figure.data[1].error_y.array[0] == pytest.approx(0.1)
    assert lora.totals(MADE)[0].bits == pytest.approx(4.25)


def test_any_number_may_be_missing_or_strange():
    for place, value in zip(places(MADE.numbers, 4), itertools.cycle((None, "?", -1, [], {}, 0))):
        broken = copy.deepcopy(MADE.numbers)
        hold(broken, place[:-1])[place[-1]] = value
        made = Record(kind="train_qlora", coordinates=Coordinates(), numbers=broken)
        train_qlora.summary([made]), train_qlora.tiles([made])
        assert train_qlora.draw([made])


def test_hostile_names_do_nothing():
    numbers = copy.deepcopy(NUMBERS)
    numbers["merges"][0]["mode"] = numbers["merges"][2]["skipped"] = BREAKOUT
    numbers["findings"] = [HOSTILE]
    numbers["manifest"]["parameters"][0]["name"] = HOSTILE
    page = render([record("train_qlora", numbers, subject={"model": HOSTILE})])
    read = Reader(body(page))
    assert "img" not in read.elements and read.elements.count("script") == 1
    assert "<script>alert" not in body(page) and "<img" not in body(page)
