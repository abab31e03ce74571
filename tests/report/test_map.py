"""The page of a map: every cell where it belongs, the worst named, the controls said, and no gap that breaks it."""

import copy
import itertools
import math
import re

import pytest

from subeight.records import Coordinates, Record
from subeight.report import build, map_figures, render
from subeight.report.sections import map as chapter
from subeight.report.sensitivity import sensitivity

from . import map_fixtures as fixtures
from .fixtures import BREAKOUT, HOSTILE
from .map_fixtures import FORMATS, WORST
from .test_browser import ARGUMENTS, CHROMIUM, Visit
from .test_diagnose_page import hold, places
from .test_markup import Reader
from .test_page import body, sections

MAPPED = fixtures.mapped()
NARROW = "int2:g64:sym"


def text_of(record):
    return re.sub(r"\s+", " ", Reader(body(render([record]))).text)


def damages(record, format=NARROW):
    return {c["place"]: c["kl"] for c in record.numbers["cells"] if c["view"] == "damage" and c["format"] == format}


def test_sections_are_told_in_order():
    assert sections(render([MAPPED]))[:7] == [
        "Where the bits are needed", "Damage against bits", "Damage against rescue", "How single losses add up",
        "Expected and measured", "Controls", "What the map cost",
    ]  # fmt: skip


def test_the_summary_names_the_worst_and_how_much_of_the_damage_few_places_hold():
    text = text_of(MAPPED)
    inside = sorted((kl for name, kl in damages(MAPPED).items() if "layers" in name), reverse=True)
    share = sum(inside[:12]) / sum(inside)
    assert f"the worst 12 places of the blocks hold {100 * share:.0f} % of the summed damage" in text
    worst = max(damages(MAPPED), key=damages(MAPPED).get)
    block, role = re.search(r"layers\.(\d+)\.\w+\.(\w+)", worst).groups()
    assert re.search(rf"In int2:g64:sym most is lost in [a-z+]*{role[0]}\S* of block {block} ", text)
    assert "122 places were quantized alone" in text and "8.6 % of the naive way" in text


def test_a_planted_cell_is_the_bright_square_and_the_first_row():
    record = copy.deepcopy(MAPPED)
    for cell in record.numbers["cells"]:
        if (cell["place"], cell["format"], cell["view"]) == ("model.layers.17.self_attn.o_proj", NARROW, "damage"):
            cell["kl"], cell["kl_ci"] = 7.5, [7.0, 8.0]
    figure = map_figures.heat(sensitivity(record))
    panel = figure.data[-2]
    brightest = max(
        ((z, row, block) for row, line in enumerate(panel.z) for block, z in enumerate(line) if z is not None)
    )
    assert brightest[1:] == (1, 17) and figure.layout.coloraxis.cmax == brightest[0]
    assert "7.50 (7.00 to 8.00)" in panel.hovertext[1][17] and "tokens" in panel.hovertext[1][17]
    first = render([record]).split("The most sensitive places")[1].split("<tbody>")[1].split("</tr>")[0]
    assert "model.layers.17.self_attn.o_proj" in Reader(first).text and "7.00 to 8.00" in first


def test_colours_are_multiples_of_the_median_of_each_format():
    found = sensitivity(MAPPED)
    values = sorted(damages(MAPPED).values())
    middle = (values[60] + values[61]) / 2
    panel = map_figures.heat(found).data[-2]
    assert panel.z[3][29] == pytest.approx(math.log10(damages(MAPPED)[WORST] / middle))


def test_embeddings_and_head_stand_beside():
    figure = map_figures.heat(sensitivity(MAPPED))
    assert len(figure.data) == 2 * len(FORMATS)
    assert [len(panel.z) for panel in figure.data] == [4, 2] * 4
    assert list(figure.layout.yaxis2.ticktext) == ["embed_tokens", "lm_head"]


@pytest.mark.parametrize(("blocks", "traces"), [(1, 2), (80, 2)])
def test_small_and_large_models(blocks, traces):
    found = sensitivity(fixtures.mapped(blocks))
    assert len(map_figures.heat(found).data[0].z[0]) == blocks
    assert len(map_figures.heat(found).data) == traces * 4


def test_experts_share_a_square_and_the_worst_is_shown():
    record = copy.deepcopy(MAPPED)
    cells = [
        {"place": f"model.layers.{b}.mlp.experts.{e}", "format": NARROW, "view": "damage", "kl": 0.01 * (e + 1) + b}
        for b in range(40) for e in range(100)
    ]  # fmt: skip
    record.numbers.update(cells=cells, places=[], formats=[NARROW], by="expert")
    found = sensitivity(record)
    panel = map_figures.heat(found).data[0]
    assert [len(panel.z), len(panel.z[0])] == [1, 40]
    assert "experts.99" in panel.hovertext[0][3] and "the worst of 100 here" in panel.hovertext[0][3]
    assert sum(len(trace.x) for trace in map_figures.curves(found).data) < 200


def test_wholes_stand_over_the_sums_of_their_places():
    mixture = {place["name"]: NARROW if place["block"] == 3 else None for place in MAPPED.numbers["places"]}
    record = copy.deepcopy(MAPPED)
    record.numbers["mixtures"] = [{"formats": mixture, "kl": 0.5, "kl_ci": [0.4, 0.6]}]
    equal, uniform, mixed = map_figures.added(sensitivity(record)).data
    total = sum(kl for name, kl in damages(record).items() if ".layers.3." in name)
    assert (mixed.x, mixed.y) == ((pytest.approx(total),), (0.5,)) and mixed.name == "mixtures"
    assert list(uniform.text) == ["int8:g64:sym", "int4:g64:sym", "int3:g64:sym", "int2:g64:sym"]
    assert list(equal.x) == list(equal.y)


def test_ten_places_have_a_colour_and_the_others_are_grey():
    traces = map_figures.curves(sensitivity(MAPPED)).data
    named = [trace for trace in traces if trace.legendgroup != "others"]
    assert len(named) == 10 and len({(t.line.color, t.line.dash) for t in named}) == 10
    worst = sorted(damages(MAPPED), key=damages(MAPPED).get)[-10:]
    assert {trace.hovertext[0].split("</b>")[0].removeprefix("<b>") for trace in named} == set(worst)
    assert all(list(trace.x) == sorted(FORMATS.values()) for trace in named)


def test_rescue_is_what_restoring_gives_back():
    record = copy.deepcopy(MAPPED)
    found = sensitivity(record)
    left = next(c for c in record.numbers["cells"] if (c["place"], c["format"], c["view"]) == (WORST, NARROW, "rescue"))
    back = found.regained(found.damage[WORST, NARROW])
    assert back.value == pytest.approx(fixtures.whole(NARROW) - left["kl"])
    assert back.low == pytest.approx(fixtures.whole(NARROW) - left["kl_ci"][1])
    left["kl"] = fixtures.whole(NARROW) + 1  # restoring makes it worse: below what a log axis can show
    trace = map_figures.rescued(sensitivity(record)).data[-1]
    assert list(trace.marker.symbol).count("triangle-down-open") == 1


def test_controls_say_what_they_mean():
    text = text_of(MAPPED)
    assert "The same way with nothing replaced: as it must be." in text
    assert "Rounding loses 0.625 times as much as random noise" in text and "computed in float32" in text
    record = copy.deepcopy(MAPPED)
    record.numbers["controls"]["no_swap"] = 1e-5
    assert "do not trust this map" in text_of(record)


def test_hostile_texts_are_shown_and_do_nothing():
    for record in (MAPPED, fixtures.hostile()):
        page = render([record])
        read = Reader(body(page))
        assert BREAKOUT in read.text and "img" not in read.elements and read.elements.count("script") == 1
        assert not [name for name, _ in read.attributes if name.startswith("on")]
        assert "<script>alert" not in body(page) and "<img" not in body(page)
    assert HOSTILE in Reader(body(render([fixtures.hostile()]))).text


def test_any_number_may_be_missing_or_strange():
    record = fixtures.mapped(2)
    for place, value in zip(places(record.numbers), itertools.cycle((None, "?", -1, [], {}))):
        broken = copy.deepcopy(record.numbers)
        hold(broken, place[:-1])[place[-1]] = value
        made = Record(kind="map", coordinates=Coordinates(), numbers=broken)
        chapter.summary([made]), chapter.tiles([made])
        assert chapter.draw([made])


def test_a_map_of_nothing_and_a_map_without_extras():
    assert "Nothing was measured yet." in text_of(fixtures.mapped(cells=[], places=[]))
    bare = fixtures.mapped(whole={}, controls={}, cost={}, priors={}, places=[])
    for cell in bare.numbers["cells"]:
        cell["prior"] = cell["kl_ci"] = None
    assert sections(render([bare]))[:2] == ["Where the bits are needed", "Damage against bits"]


def test_two_maps_stay_apart():
    titles = sections(render([MAPPED, fixtures.mapped(2)]))
    assert titles.count("Where the bits are needed: SmolLM2-135M-Instruct") == 2


@pytest.mark.browser
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium")
@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_a_map_draws_in_silence(tmp_path, scheme, width):
    playwright = pytest.importorskip("playwright.sync_api")
    report = build([MAPPED, fixtures.hostile()], tmp_path)
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        visit = Visit(browser, report, color_scheme=scheme, viewport={"width": width, "height": 900})
        assert visit.count(".plot") == 8 and visit.count("#figure-0 .hm") == 8
        assert visit.sideways() <= 0 and visit.complaints == [] and visit.count("main img") == 0
        browser.close()
