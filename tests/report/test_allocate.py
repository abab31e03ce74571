"""The page of an allocation: every place in its colour, its reason, the front, the check, and no gap that breaks it."""

import copy
import itertools
import math
import re

import pytest

from subeight.records import Coordinates, Record
from subeight.report import allocation_figures, build, render
from subeight.report.allocation import KEPT, allocation
from subeight.report.sections import allocate as chapter

from . import map_fixtures as fixtures
from .fixtures import BREAKOUT, HOSTILE
from .map_fixtures import FORMATS, WORST
from .test_browser import ARGUMENTS, CHROMIUM, Visit
from .test_diagnose_page import hold, places
from .test_markup import Reader
from .test_page import body, sections

ALLOCATED = fixtures.allocated()


def text_of(record):
    return re.sub(r"\s+", " ", Reader(body(render([record]))).text)


def changed(**numbers):
    record = copy.deepcopy(ALLOCATED)
    record.numbers.update(numbers)
    return record


def test_sections_are_told_in_order():
    assert sections(render([ALLOCATED]))[:6] == [
        "What each place got", "The front", "The closest decisions", "Expected and measured", "The price of pins",
        "The pairs that interact",
    ]  # fmt: skip


def test_the_summary_says_what_was_bought_and_what_it_loses():
    text = text_of(ALLOCATED)
    for words in (
        "The budget of 3.5 bits for vllm is spent with 3.49 bits per weight, 46.4 MB.",
        "30 in int2:g64:sym, 30 in int3:g64:sym, 30 in int4:g64:sym, 28 in int8:g64:sym and 2 kept",
        "of 0.0623 (0.0538 to 0.0714). Measured on the whole model: 0.0655 (0.0601 to 0.0712), within the expected",
        "on held-out text 0.0702", "runs/mixed/recipe.yaml",
    ):  # fmt: skip
        assert words in text, words


def test_beside_a_uniform_recipe_of_its_size():
    found = allocation(ALLOCATED)
    narrow, wide = fixtures.whole("int3:g64:sym"), fixtures.whole("int4:g64:sym")
    expected = math.exp(math.log(narrow) + (3.49 - 3.25) * (math.log(wide) - math.log(narrow)))
    assert found.interpolated()[0] == pytest.approx(expected)
    assert f"this allocation loses {0.0655 / expected:.3f} times that (measured)" in text_of(ALLOCATED)
    assert f"{0.0623 / expected:.3f} times that (expected)" in text_of(fixtures.allocated(verified=False))
    assert (
        allocation(changed(bits_per_weight=9.0)).interpolated() is None
    )  # no uniform recipe is wider: nothing is said


def test_every_place_has_the_colour_of_its_format_and_its_reason():
    figure = allocation_figures.granted(allocation(ALLOCATED))
    squares, names = figure.data[0], [name for name, _ in allocation(ALLOCATED).formats]
    assert names == [*reversed(FORMATS), KEPT]
    for item in ALLOCATED.numbers["choices"]:
        block, role = re.search(r"layers\.(\d+)\.\w+\.(.+)", item["place"]).groups()
        row = ["q+k+v", "o", "gate+up", "down"].index(
            {"k_proj+q_proj+v_proj": "q+k+v"}.get(role, role.replace("_proj", ""))
        )
        assert names[squares.z[row][int(block)]] == (item["format"] or KEPT)
        said = squares.hovertext[row][int(block)].replace("<br>", " ")
        assert f"<b>{item['place']}</b>" in said and "a byte more gains less" in said
    scale = dict(enumerate(colour for _, colour in squares.colorscale[::2]))
    assert [scale[number] for number in range(5)] == [trace.marker.color for trace in figure.data[1:6]]
    doubted = sum(bool(item["doubts"]) for item in ALLOCATED.numbers["choices"])
    assert len(figure.data[-1].x) == doubted > 0


def test_experts_of_one_block_that_differ_are_called_several():
    choices = [
        {"place": f"model.layers.{block}.mlp.experts.{expert}", "format": format, "bits": bits}
        for block in range(2)
        for expert, (format, bits) in enumerate(list(FORMATS.items())[: 1 + block])
    ]
    figure = allocation_figures.granted(allocation(changed(choices=choices)))
    assert [list(line) for line in figure.data[0].z] == [[1, 2]] and figure.data[3].name == "several"


def test_the_front_has_its_rivals_the_chosen_and_the_measured():
    traces = {trace.name: trace for trace in allocation_figures.front(allocation(ALLOCATED), "KL").data}
    assert list(traces) == [
        "its 95 % interval", "the best at each size", "measured by the map", "uniform", "heuristic",
        "chosen, expected", "measured", "on held-out text",
    ]  # fmt: skip
    assert list(traces["uniform"].marker.symbol) == ["square"] * 4
    assert list(traces["heuristic"].marker.symbol) == ["triangle-up-open"] and traces["heuristic"].y == (0.16,)
    assert traces["measured by the map"].y == (0.11,)
    assert (traces["measured"].x, traces["measured"].y) == ((3.49,), (0.0655,))
    assert traces["measured"].error_y.array == (pytest.approx(0.0057),)


def test_closest_decisions_come_first_by_what_a_byte_gains():
    choices = copy.deepcopy(ALLOCATED.numbers["choices"])
    choices[40]["next"] = {"format": None, "price": 2e6, "gain": 8.0}
    text = text_of(changed(choices=choices)).split("The closest decisions")[2]
    row = text[: text.index("4.00") + 4]
    assert choices[40]["place"] in row and "kept" in row and "2.00 MB" in row
    assert "Where the automation is in doubt" in text and f"{HOSTILE} loses 3 times the average" in text


def test_a_measurement_outside_of_what_was_expected_is_said():
    verified = ALLOCATED.numbers["verified"] | {"within": False, "kl": 0.2, "kl_ci": None}
    text = text_of(changed(verified=verified))
    assert "Measured on the whole model: 0.200, outside of the expected interval" in text
    assert re.search(r"within the expected interval\s*no", text)
    assert re.search(r"held-out text within its interval\s*yes", text)
    assert re.search(r"whole over sum, measured\s*1.28", text)
    text = text_of(fixtures.allocated(verified=False))
    assert "It was not verified." in text and "--verify does that" in text and "The pairs that interact" not in text


def corrected(taken):
    before = {"kl": 0.07, "kl_ci": [0.06, 0.08]}
    changes = [{"place": WORST, "from": "int4:g64:sym", "to": "int3:g64:sym"}]
    return {"kl": 0.06, "kl_ci": [0.05, 0.07], "before": before, "changes": changes, "taken": taken}


@pytest.mark.parametrize(
    ("correction", "said"),
    [(corrected(True), "1 place would change: measured 0.0600 (0.0500 to 0.0700) instead of 0.0700 (0.0600 to 0.0800);"
                       " this is the recipe."),
     (corrected(False), "the first allocation stays the recipe"), (None, "−0.0042")],
)  # fmt: skip
def test_pairs_and_their_correction(correction, said):
    text = text_of(changed(verified=ALLOCATED.numbers["verified"] | {"corrected": correction}))
    pairs = text.split("The pairs that interact")[2]
    assert "0.0200 and 0.0300" in pairs and "0.0610" in pairs and "0.0080 to 0.0140" in pairs
    assert said in pairs and pairs.index("0.0110") < pairs.index("−0.0042")


def test_pins_and_their_price():
    table = text_of(ALLOCATED).split("The price of pins")[2]
    assert re.search(rf"{re.escape(WORST)}=int8:g64:sym\s*pinned\s*0.00210", table)
    assert "The price of pins" not in text_of(changed(pins=[], forbids=None, price_of_pins=None))


def test_hostile_texts_are_shown_and_do_nothing():
    page = render([changed(engine=HOSTILE, recipe=BREAKOUT, budget={"text": f"{HOSTILE}%{{x}}"})])
    read = Reader(body(page))
    assert HOSTILE in read.text and BREAKOUT in read.text
    assert "img" not in read.elements and read.elements.count("script") == 1
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert "<script>alert" not in body(page) and "<img" not in body(page)


def test_any_number_may_be_missing_or_strange():
    for place, value in zip(places(ALLOCATED.numbers), itertools.cycle((None, "?", -1, [], {}))):
        broken = copy.deepcopy(ALLOCATED.numbers)
        hold(broken, place[:-1])[place[-1]] = value
        made = Record(kind="allocate", coordinates=Coordinates(), numbers=broken)
        chapter.summary([made]), chapter.tiles([made])
        assert chapter.draw([made])


def test_an_empty_record_and_two_records():
    assert "No place was decided." in text_of(Record(kind="allocate", coordinates=Coordinates(), numbers={}))
    titles = sections(render([ALLOCATED, fixtures.allocated(budget={"text": "90 MB"})]))
    assert "What each place got: 3.5 bits" in titles and "The front: 90 MB" in titles


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 390)])
def test_an_allocation_draws_in_silence(tmp_path, scheme, width):
    playwright = pytest.importorskip("playwright.sync_api")
    report = build([ALLOCATED], tmp_path)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        visit = Visit(browser, report, color_scheme=scheme, viewport={"width": width, "height": 900})
        assert visit.count(".plot") == 3 and visit.count("#figure-0 .hm") == 1
        assert visit.sideways() <= 0 and visit.complaints == [] and visit.count("main img") == 0
        browser.close()
