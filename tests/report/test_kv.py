"""The page of `kv`: every number where it belongs, optional parts where they are, and no gap that breaks it."""

import copy
import itertools
import math
import re

import pytest

from subeight.records import Coordinates, Record
from subeight.report import build, caches, kv_figures, kv_map_figures, render
from subeight.report.caches import NONE
from subeight.report.sections import kv as chapter

from . import kv_fixtures as fixtures
from .fixtures import BREAKOUT, HOSTILE
from .kv_fixtures import ALLOCATED, CONTEXTS, DEPTHS, FORMATS, LAYERS, POLICIES, WEIGHTS
from .test_browser import ARGUMENTS, CHROMIUM, Visit
from .test_diagnose_page import hold, places
from .test_markup import Reader
from .test_page import body, sections

PLAIN, WHOLE = fixtures.plain(), fixtures.whole()
LOW, INT2, INT4 = "runs/smollm2-int4", "int2:g32:asym", "int4:g64:sym"


def text_of(record):
    return re.sub(r"\s+", " ", Reader(body(render([record]))).text)


def cell_of(record, **wanted):
    return next(c for c in record.numbers["cells"] if all(c[key] == value for key, value in wanted.items()))


def rows_of(record, title):
    table = render([record]).split(f"<h2>{title}</h2>")[1].split("<tbody>")[1].split("</tbody>")[0]
    return [Reader(row).text for row in table.split("</tr>")[:-1]]


def test_sections_are_told_in_order_and_optional_ones_where_the_record_has_them():
    first = ["Keys and values in few bits", "Loss by place in the context", "Hidden numbers", "Memory against context"]
    more = ["Which layers need the bits", "What the budget bought", "Weights and cache in one budget"]
    assert sections(render([PLAIN]))[:5] == [*first, "How engines are told"]
    assert sections(render([WHOLE]))[:8] == [*first, *more, "How engines are told"]


def test_the_summary_says_what_was_measured_and_what_to_take_first():
    text = text_of(WHOLE).split("Keys and values in few bits", 2)[1]
    best = WHOLE.numbers["joint"]["rows"][WHOLE.numbers["joint"]["best"]]
    for words in (
        "4 policies were measured at 1,024 and 4,096 tokens, with full weights and smollm2-int4 weights",
        "of 600 MB", f"smollm2-int4 weights with {best['policy']}", f"{best['longest']:,}",
    ):  # fmt: skip
        assert words in text
    said = chapter.summary([WHOLE])
    assert WHOLE.numbers["findings"][-1] in said[1] and "more findings stand below" in said[-1]
    small = chapter.tiles([PLAIN])
    assert "of 94.4 MB" in small[0].note and INT2 in small[0].name and small[2].note == "found"


def test_every_cell_is_a_row_with_its_intervals():
    rows = rows_of(WHOLE, "Keys and values in few bits")
    assert len(rows) == len(WHOLE.numbers["cells"]) == 20
    cell = cell_of(WHOLE, policy=INT2, weights="full", context=1024)
    row = next(row for row in rows if row.startswith(INT2) and "full1,024" in row)
    for words in ("0.1900.171 to 0.213", "6.84 MB", f"{100 * cell['retrieval']['share']:.1f} %"):
        assert words in row
    text = text_of(WHOLE)
    assert all(line in text for line in WHOLE.numbers["findings"])


def test_many_cells_are_folded_and_the_longest_context_is_shown():
    many = fixtures.plain(cells=fixtures.cells(contexts=(512, 1024, 2048, 4096)))
    rows = rows_of(many, "Keys and values in few bits")
    assert len(rows) == 8 and all("4,096" in row for row in rows) and "All 32" in text_of(many)


def test_places_are_drawn_by_policy_context_and_weights():
    found = caches.caches(WHOLE)
    drawn = [trace for trace in kv_figures.by_place(found).data if trace.x[0] is not None]
    assert len(drawn) == 20 - 2  # full weights with full keys and values lose nothing
    cell = cell_of(WHOLE, policy=INT4, weights=LOW, context=4096)
    wanted = tuple(part["mean"] for part in cell["kl_by_place"])
    (line,) = [trace for trace in drawn if trace.y == wanted]
    assert line.x == (512, 1536, 2560, 3584) and line.line.dash == "solid" and line.xaxis == "x2"
    assert line.line.color == kv_figures.tones(found)[INT4]
    assert sum(bool(trace.showlegend) for trace in drawn) == 5
    assert {trace.line.dash for trace in drawn} == {"solid", "dot"}


def test_a_part_without_loss_stands_at_the_foot():
    record = copy.deepcopy(PLAIN)
    cell = cell_of(record, policy=INT4, weights="full", context=1024)
    cell["kl_by_place"][0]["mean"] = 0.0
    figure = kv_figures.by_place(caches.caches(record))
    traces = [trace for trace in figure.data if trace.x[0] is not None]
    (line,) = [trace for trace in traces if "triangle-down-open" in trace.marker.symbol]
    assert line.y[0] > 0 and line.y[0] == min(y for trace in traces for y in trace.y)


def test_hidden_numbers_are_squares_and_what_was_not_asked_is_empty():
    record = copy.deepcopy(PLAIN)
    cell = cell_of(record, policy=INT2, weights=LOW, context=4096)
    cell["retrieval"]["cells"] = [one for one in cell["retrieval"]["cells"] if one["depth"] != 0.5]
    figure = kv_figures.hidden(caches.caches(record))
    panels = [trace for trace in figure.data if trace.type == "heatmap"]
    assert len(panels) == len(WEIGHTS) * 2 * len(POLICIES)
    for number, (weights, count, policy) in enumerate(itertools.product(WEIGHTS, (1, 4), POLICIES)):
        for column, context in enumerate(CONTEXTS):
            asked = cell_of(record, policy=policy, weights=weights, context=context)["retrieval"]["cells"]
            known = {one["depth"]: one["found"] / one["asked"] for one in asked if one["numbers"] == count}
            assert [row[column] for row in panels[number].z] == [known.get(depth) for depth in DEPTHS]
    assert panels[-1].z[2][1] is None and panels[-1].text[2][1] == ""


def test_caches_cross_the_weights_where_the_record_says():
    found = caches.caches(WHOLE)
    figure = kv_figures.memory(found)
    for row in WHOLE.numbers["memory"]["rows"]:
        line, marks = [trace for trace in figure.data if trace.legendgroup == row["policy"]]
        points = dict(zip(line.x, line.y, strict=True))
        assert all(points[int(context)] == held for context, held in row["bytes"].items())
        assert dict(zip(marks.x, marks.y, strict=True)) == {
            at: WEIGHTS[name] for name, at in row["outweighs_from"].items()
        }
        assert list(line.x) == sorted(line.x) and list(line.y) == sorted(line.y)
    assert sorted(shape.y0 for shape in figure.layout.shapes) == sorted(WEIGHTS.values())
    assert figure.layout.yaxis.title.text == "cache of 8 sequences"
    assert "smollm2-int4 weights: 113 MB" in {note.text for note in figure.layout.annotations}


def test_a_cache_that_never_outweighs_has_no_mark_and_a_dash():
    record = copy.deepcopy(PLAIN)
    record.numbers["memory"]["rows"][3]["outweighs_from"] = {"full": None, LOW: None}
    figure = kv_figures.memory(caches.caches(record))
    assert figure.data[-1].x == () and rows_of(record, "Memory against context")[3].endswith("––")


def test_a_planted_layer_is_the_brightest_and_the_first():
    record = copy.deepcopy(WHOLE)
    rows = record.numbers["map"]["rows"]
    next(r for r in rows if (r["layer"], r["side"], r["format"]) == (17, "values", FORMATS[1])).update(
        kl=2.5, kl_ci=[2.4, 2.6]
    )
    rows.remove(next(r for r in rows if (r["layer"], r["side"], r["format"]) == (3, "keys", FORMATS[0])))
    figure = kv_map_figures.layers(caches.caches(record))
    keys, values = figure.data
    assert values.z[1][17] == math.log10(2.5) < figure.layout.coloraxis.cmax and keys.z[0][3] is None
    assert len(values.z) == len(FORMATS) and len(values.z[0]) == LAYERS
    assert "2.50 (2.40 to 2.60)" in values.hovertext[1][17]
    assert rows_of(record, "Which layers need the bits")[0].startswith("values of layer 17")


def test_the_strip_shows_what_each_layer_got():
    made = WHOLE.numbers["allocation"][0]
    figure = kv_map_figures.strips(caches.caches(WHOLE))
    strip, names = figure.data[0], [FORMATS[2], FORMATS[1], FORMATS[0], None]
    for row, side in enumerate(("keys", "values")):
        assert [names[int(index)] for index in strip.z[row]] == [each[side] for each in made["rows"]]
    assert [trace.name for trace in figure.data[1:]] == [*names[:3], "full precision"]


def test_an_allocation_is_compared_with_what_was_expected_and_with_the_others():
    text = text_of(WHOLE)
    expected = WHOLE.numbers["allocation"][0]["expected_kl"]
    came = cell_of(WHOLE, policy=ALLOCATED, weights="full", context=1024)["kl"]
    assert came / expected == pytest.approx(1.2)
    for words in (
        f"{ALLOCATED} takes 2.98 bits of a number and was expected to lose {expected:.4f}",
        f"It loses {came:.4f}: 1.20 times that", f"{INT4} (4.25 bits) loses 0.00470",
    ):  # fmt: skip
        assert words in text
    unread = fixtures.whole(cells=PLAIN.numbers["cells"])
    assert "It was not measured there." in text_of(unread)


def test_a_budget_of_bytes_marks_the_best_and_pales_what_does_not_fit():
    asked = WHOLE.numbers["joint"]
    figure = kv_figures.joint(caches.caches(WHOLE).joint)
    weights, cache = figure.data
    assert list(weights.x) == [row["weight_bytes"] for row in asked["rows"]]
    assert list(cache.x) == [row["cache_bytes"] for row in asked["rows"]]
    assert [opacity == 1 for opacity in cache.marker.opacity] == [row["fits"] for row in asked["rows"]]
    assert figure.layout.shapes[0].x0 == asked["memory"]
    bold = [name.startswith("<b>") for name in figure.layout.yaxis.ticktext]
    assert bold.index(True) == asked["best"] and sum(bold) == 1
    rows = rows_of(WHOLE, "Weights and cache in one budget")
    assert ["best" in row for row in rows] == bold
    nothing = fixtures.whole(joint=asked | {"best": None, "rows": [row | {"fits": False} for row in asked["rows"]]})
    assert "Nothing that was measured fits 600 MB for 8,192 tokens x 8 sequences" in text_of(nothing)
    endless = [row | {"longest": 1 << 24} for row in asked["rows"]]
    assert "16,777,216 or more" in text_of(fixtures.whole(joint=asked | {"rows": endless}))


def test_hostile_texts_are_shown_and_do_nothing():
    for record in (WHOLE, fixtures.hostile()):
        page = render([record])
        read = Reader(body(page))
        assert "img" not in read.elements and read.elements.count("script") == 1
        assert not [name for name, _ in read.attributes if name.startswith("on")]
        assert "<script>alert" not in body(page) and "<img" not in body(page)
    assert HOSTILE in read.text and BREAKOUT in read.text


def few():
    """Some of every kind of number: enough to break what can break, and quickly drawn."""
    kept = (NONE, INT4, ALLOCATED)
    numbers = copy.deepcopy(WHOLE.numbers)
    numbers["cells"] = [c for c in numbers["cells"] if c["weights"] == "full" and c["policy"] in kept]
    for part in (numbers["memory"], numbers["joint"]):
        part["rows"] = [row for row in part["rows"] if row["policy"] in kept]
    numbers["map"]["rows"] = [row for row in numbers["map"]["rows"] if row["layer"] < 2]
    return numbers


def test_any_number_may_be_missing_or_strange():
    whole = few()
    for place, value in zip(places(whole), itertools.cycle((None, "?", -1, [], {}, 0))):
        broken = copy.deepcopy(whole)
        hold(broken, place[:-1])[place[-1]] = value
        made = Record(kind="kv", coordinates=Coordinates(), numbers=broken)
        chapter.summary([made]), chapter.tiles([made])
        assert chapter.draw([made])


@pytest.mark.parametrize("value", [None, "?", -1])
def test_all_numbers_of_a_name_may_be_missing_or_strange(value):
    for part, name in (
        ("cells", "context"), ("cells", "kl"), ("cells", "kl_by_place"), ("cells", "retrieval"), ("cells", "agreement"),
        ("cells", "cache_bytes"), ("memory", "bytes"), ("memory", "bits"), ("memory", "outweighs_from"), ("map", "kl"),
        ("map", "layer"), ("map", "side"), ("joint", "cache_bytes"), ("joint", "weight_bytes"), ("joint", "longest"),
    ):  # fmt: skip
        broken = few()
        held = broken[part]
        for item in held if isinstance(held, list) else held["rows"]:
            item[name] = value
        made = Record(kind="kv", coordinates=Coordinates(), numbers=broken)
        chapter.summary([made]), chapter.tiles([made])
        assert chapter.draw([made])


def test_a_record_without_retrieval_answers_or_anything():
    bare = [cell | {"retrieval": None, "agreement": None} for cell in PLAIN.numbers["cells"]]
    record = fixtures.plain(cells=bare, findings=[], serving={})
    assert sections(render([record]))[:4] == [
        "Keys and values in few bits", "Loss by place in the context", "Memory against context", "The five coordinates",
    ]  # fmt: skip
    only = fixtures.plain(cells=[cell for cell in bare if cell["policy"] == NONE and cell["weights"] == "full"])
    assert "Loss by place in the context" not in sections(render([only])) and chapter.tiles([only]) == []
    empty = Record(kind="kv", coordinates=Coordinates(), numbers={})
    assert "No policy was measured." in text_of(empty)


def test_two_records_stay_apart():
    titles = sections(render([PLAIN, WHOLE]))
    assert titles.count("Hidden numbers: SmolLM2-135M-Instruct") == 2


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_kv_draws_in_silence(tmp_path, scheme, width):
    playwright = pytest.importorskip("playwright.sync_api")
    report = build([WHOLE, fixtures.hostile()], tmp_path)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        visit = Visit(browser, report, color_scheme=scheme, viewport={"width": width, "height": 900})
        assert visit.count(".plot") == 12 and visit.count("#figure-1 .hm") == 20
        assert visit.sideways() <= 0 and visit.complaints == [] and visit.count("main img") == 0
        browser.close()
