"""The pages of `advise` and `bench`: operations as the roofline counts them, roofs, rates, and nothing that breaks."""

import copy
import itertools
import re

import pytest

from subeight.advise.machine import Machine
from subeight.records import Coordinates, Record
from subeight.report import build, render, speed, speed_figures
from subeight.report.sections import advise, bench

from . import speed_fixtures as fixtures
from .fixtures import BREAKOUT, HOSTILE
from .speed_fixtures import BATCHES, CONTEXT, MACHINE
from .test_browser import ARGUMENTS, CHROMIUM, Visit
from .test_diagnose_page import hold, places
from .test_markup import Reader
from .test_page import body, sections

ADVISED, BENCHED = fixtures.advise(), fixtures.bench()
CHAPTERS = {"advise": (advise, ADVISED), "bench": (bench, BENCHED)}


def text_of(*records):
    return re.sub(r"\s+", " ", Reader(body(render(list(records)))).text)


def row_of(name):
    return next(row for row in ADVISED.numbers["rows"] if row["name"] == name)


def counted(sizes, batch, context):
    """Operations of linears, head and attention, straight from the sizes; without a batch of the prompt."""
    rows, last, pairs = (context, 1, context**2 // 2) if batch is None else (batch, batch, batch * context)
    weights, head = sum(out * width for out, width in sizes.linears), sizes.head[0] * sizes.head[1]
    attention = 4 * pairs * sizes.query_heads * sizes.cache.head_dim * len(sizes.cache.sliding)
    return 2 * rows * weights + 2 * last * head + attention


@pytest.mark.parametrize("context", [1, 77, 1024, 32768])
def test_operations_are_those_that_the_roofline_counts(context):
    found = speed.advice(fixtures.advise(context=context))
    for scheme in found.schemes:
        for step in scheme.steps:
            assert step.operations == counted(fixtures.SIZES, step.batch, context)


def test_bytes_are_those_of_weights_and_cache():
    for row, scheme in zip(ADVISED.numbers["rows"], speed.advice(ADVISED).schemes, strict=True):
        for size in BATCHES:
            assert scheme.step(size).bytes == row["weight_bytes"] + row["cache_bytes"][str(size)]
        assert scheme.step(None).bytes == row["weight_bytes"] + row["cache_bytes"]["1"]


def test_foretold_lies_below_its_roof_and_above_it_nothing():
    for scheme, step in speed_figures.drawn(speed.advice(ADVISED)):
        roof = MACHINE.int8 if scheme.name.startswith("W8A8") else MACHINE.bf16
        assert step.operations / step.foretold <= 1.001 * min(roof, step.intensity * MACHINE.bandwidth)


def test_the_roofs_meet_and_points_are_joined():
    figure = speed_figures.roofline(speed.advice(ADVISED))
    by_name = {trace.name: trace for trace in figure.data if not trace.showlegend and trace.hoverinfo == "skip"}
    memory, low, high = by_name["memory"], by_name["bf16"], by_name["int8"]
    assert low.y == (MACHINE.bf16,) * 2 and low.x[0] == pytest.approx(MACHINE.bf16 / MACHINE.bandwidth)
    assert high.y == (MACHINE.int8,) * 2
    assert (memory.x[1], memory.y[1]) == (high.x[0], pytest.approx(MACHINE.int8))
    (points,) = [trace for trace in figure.data if trace.name == "W4A16" and trace.mode == "markers"]
    (lines,) = [trace for trace in figure.data if trace.name == "W4A16" and trace.mode == "lines"]
    measured = row_of("W4A16")["measured"]
    assert points.marker.symbol == (
        "square", "circle", "diamond", "square-open", "circle-open", "diamond-open",
    )  # fmt: skip
    done = counted(fixtures.SIZES, 8, CONTEXT)
    assert points.y[2] == pytest.approx(done / measured["decode_seconds"]["8"])
    assert lines.y[2] is None and (lines.y[0], lines.y[1]) == (points.y[3], points.y[0])
    bounds = figure.layout.xaxis.range
    assert all(10 ** bounds[0] < x < 10 ** bounds[1] for x in points.x)


def test_without_int8_and_without_measured_rates():
    figure = speed_figures.roofline(speed.advice(fixtures.advise(Machine("cuda", 2, 1e12, 1e14, None, 1e-5))))
    assert not [trace for trace in figure.data if trace.name == "int8"]
    record = copy.deepcopy(ADVISED)
    record.numbers["machine"] = {}
    assert "Roofs of the machine" in sections(render([record]))
    assert not [t for t in speed_figures.roofline(speed.advice(record)).data if t.name in ("memory", "int8")]


def test_advice_and_schemes_are_told():
    page = render([ADVISED])
    assert sections(page)[:3] == ["What pays on this machine", "Roofs of the machine", "Schemes"]
    text = text_of(ADVISED)
    assert all(line.replace("`", "") in text for line in ADVISED.numbers["advice"])
    base, low = row_of("bf16"), row_of("W4A16")
    token = low["measured"]["decode_seconds"]["1"]
    gain = base["measured"]["decode_seconds"]["1"] / token
    foretold = low["foretold"]["decode"]["1"]["seconds"]
    table = page.split("<h2>Schemes</h2>")[1].split("<tbody>")[1].split("</tbody>")[0]
    rows = [Reader(row).text for row in table.split("</tr>")[:-1]]
    assert len(rows) == len(ADVISED.numbers["rows"]) and "×" not in rows[0]
    line = next(row for row in rows if row.startswith("W4A16"))
    assert f"{1e3 * token:.1f} ms× {gain:.2f}roofline {1e3 * foretold:.2f} ms" in line
    assert "few rows: ours int4, prompt: dequantize" in line and "batch 8: 189 MB" in line
    assert (
        f"{len(rows)} schemes were timed" in text and "19.0 GB a second" in text and "260 G operations a second" in text
    )
    assert [tile.note for tile in advise.tiles([ADVISED])] == ["prefill", "token at batch 1"]


def test_rates_have_the_spread_of_their_seconds():
    row = BENCHED.numbers["rows"][1]["packed"]
    figure = speed_figures.rates(speed.benches(BENCHED))
    read, _, written, _ = figure.data
    assert written.y[1] == row["decode_tokens_per_second"]
    fast, slow = (row["batch"] / seconds for seconds in row["decode_spread"])
    assert written.y[1] + written.error_y.array[1] == pytest.approx(fast)
    assert written.y[1] - written.error_y.arrayminus[1] == pytest.approx(slow)
    assert [trace.name for trace in figure.data] == ["packed", "dequantized"] * 2
    assert figure.layout.xaxis.ticktext == ("batch 1<br>× 0.897", "batch 4<br>× 0.897", "batch 8<br>× 0.897")
    assert read.hovertext[0].endswith("tokens read per second")


def test_bench_says_what_runs_and_what_stays_dense():
    assert sections(render([BENCHED]))[:2] == ["Tokens per second", "What runs"]
    text = text_of(BENCHED)
    for words in (
        "at batch 1 it reads 883 tokens per second, 0.897 times what its dequantized weights do, and writes 76.9",
        "113 MB", "269 MB", "178 linears", "2 linears", "it has codes in an order of its own", "Every one (2)",
    ):  # fmt: skip
        assert words in text
    assert "No quantized linear stays dense." in text_of(fixtures.bench(dense={}))
    titles = sections(render([BENCHED, fixtures.bench("smollm2-int8")]))
    assert "Tokens per second: smollm2-int8" in titles and "What runs: smollm2-int4" in titles


@pytest.mark.parametrize("kind", CHAPTERS)
def test_any_number_may_be_missing_or_strange(kind):
    chapter, record = CHAPTERS[kind]
    for place, value in zip(places(record.numbers, 4), itertools.cycle((None, "?", -1, [], {}, 0))):
        broken = copy.deepcopy(record.numbers)
        hold(broken, place[:-1])[place[-1]] = value
        made = Record(kind=kind, coordinates=Coordinates(), numbers=broken)
        chapter.summary([made]), chapter.tiles([made])
        assert chapter.draw([made])


def test_records_of_nothing():
    for kind, words in (("advise", "No scheme was timed."), ("bench", "Nothing was timed.")):
        assert words in text_of(Record(kind=kind, coordinates=Coordinates(), numbers={}))
    older = copy.deepcopy(ADVISED.numbers["rows"])
    for row in older:
        row["foretold"]["prefill"].pop("operations")
        for step in row["foretold"]["decode"].values():
            step.pop("operations")
    told = fixtures.advise(rows=older)  # nothing says how much is computed
    assert speed_figures.drawn(speed.advice(told)) == [] and "Schemes" in sections(render([told]))


def test_hostile_texts_are_shown_and_do_nothing():
    page = render(fixtures.hostile())
    read = Reader(body(page))
    assert "img" not in read.elements and read.elements.count("script") == 1
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert "<script>alert" not in body(page) and "<img" not in body(page)
    assert HOSTILE in read.text and BREAKOUT in read.text


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_speed_draws_in_silence(tmp_path, scheme, width):
    playwright = pytest.importorskip("playwright.sync_api")
    report = build([ADVISED, BENCHED, *fixtures.hostile()], tmp_path)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        visit = Visit(browser, report, color_scheme=scheme, viewport={"width": width, "height": 900})
        drawn = visit.page.evaluate(
            "[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.trace').length)"
        )
        assert len(drawn) == 4 and all(traces > 3 for traces in drawn)
        assert visit.sideways() <= 0 and visit.complaints == [] and visit.count("main img") == 0
        browser.close()
