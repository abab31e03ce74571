"""The page: everything a record holds, nothing it does not, self-contained, and closed to what its texts try."""

import base64
import hashlib
import re

import pytest
from plotly.offline import get_plotlyjs

from subeight.errors import RecordError
from subeight.records import Coordinates, Record, Run, Stack
from subeight.report import build, render
from subeight.report.section import find_chapters

from . import fixtures
from .fixtures import BREAKOUT, HOSTILE
from .test_markup import Reader


@pytest.fixture(scope="module")
def page():
    return render(fixtures.everything())


def body(page):
    """The page without Plotly, which is most of it and not ours."""
    return re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)


def sections(page):
    return re.findall(r"<h2>(.*?)</h2>", page)


def test_every_section_is_there_and_linked(page):
    titles = sections(page)
    for title in (
        "Methods", "Size against KL", "By kind of text", "What the mean hides", "Error per layer", "The plan",
        "What was written", "Outliers in the weights", "Outliers in the inputs", "What calibration does not reach",
        "The five coordinates", "The stack", "Settings", "Do it again",
    ):  # fmt: skip
        assert title in titles
    links = re.findall(r'<a href="#([^"]+)"', page)
    assert len(links) == len(titles) + 1 and all(f'id="{link}"' in page for link in links)


def test_the_summary_says_what_was_done_and_what_it_costs(page):
    text = Reader(body(page)).text
    for words in (
        "SmolLM2-135M-Instruct below 8 bits", "6 recipes were tried", "4.25 bits per weight, 56.4 MB",
        "a KL of 0.0534 (95 % interval 0.0502 to 0.0569)", "38 s to quantize and 21 s to evaluate",
        "1.61 GB of memory", "210 linears were quantized and 1 left as it was", "Demo settings: 16 calibration",
        "Among the recipes at 4.25 bits",
    ):  # fmt: skip
        assert words in text


def test_numbers_of_the_tables(page):
    text = Reader(body(page)).text
    for words in (
        "0.0391 to −0.0288", "gptq-int4 is closer to the baseline", "not told apart by this text",
        "every linear of the blocks", "model.layers.29.mlp.down_proj", "576 × 1536", "b41e6d0f5a2c9e77",
        "does not apply", "avx", "subeight compare smollm2", "There are under 30 documents in german",
    ):  # fmt: skip
        assert words in text


def test_every_linear_has_its_reason(page):
    linears = fixtures.quantize().numbers["linears"]
    table = page.split("Every linear (211) and its reason")[1].split("</table>")[0]
    assert table.count("<tr") == len(linears) + 1
    assert table.count("every linear of the blocks") == sum("every linear" in item["reason"] for item in linears)


def test_hostile_names_are_shown_and_do_nothing(page):
    read = Reader(body(page))
    assert HOSTILE in read.text and BREAKOUT in read.text
    assert "script" in read.elements and read.elements.count("script") == 1  # the data of the figures
    assert "img" not in read.elements and "iframe" not in read.elements
    assert not [name for name, _ in read.attributes if name.startswith("on")]
    assert page.count("<script") == page.count("</script>") == 3 + get_plotlyjs().count("<script")


def test_nothing_is_fetched_and_only_our_scripts_may_run(page):
    read = Reader(body(page))
    addresses = [value for name, value in read.attributes if name in {"src", "href", "data", "action"}]
    assert all(address.startswith("#") for address in addresses)
    policy = next(value for name, value in read.attributes if name == "content" and "default-src" in value)
    assert "default-src 'none'" in policy and "http" not in policy and "unsafe-eval" not in policy
    scripts = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(scripts) == 2
    for script in scripts:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"'sha256-{digest}'" in policy
    assert "@import" not in page.split("</style>")[0] and "url(" not in page.split("</style>")[0]


def test_figures_and_places_for_them_agree(page):
    places = re.findall(r'<div id="(figure-\d+)" class="plot"', page)
    assert len(places) == len(set(places)) == 10
    data = page.split('id="figure-data">')[1].split("</script>")[0]
    assert re.findall(r'"id":"(figure-\d+)"', data) == places


def test_sections_need_their_records():
    titles = sections(render([fixtures.inspect()]))
    assert "Outliers in the weights" in titles
    assert not {"Methods", "Size against KL", "The plan", "Settings"} & set(titles)


@pytest.mark.parametrize(
    "kind", ["compare", "evaluate", "quantize", "inspect", "map", "diagnose", "kv", "advise", "bench"]
)
def test_empty_and_strange_records_make_a_page_too(kind):
    strange = {"rows": "none", "linears": [{"name": "x", "block": "?", "methods": "gptq", "shape": None}, 3],
               "inputs": [{}], "categories": 5, "parity": [], "summary": None, "error_share": 1}  # fmt: skip
    for numbers in ({}, strange):
        text = render([Record(kind=kind, coordinates=Coordinates(), numbers=numbers)])
        assert "The five coordinates" in sections(text)


def test_several_records_of_a_kind_stay_apart():
    both = [fixtures.evaluate("a-int4"), fixtures.evaluate("b-int4", coordinates=fixtures.point(recipe="other"))]
    text = render(both)
    assert "differ in their recipe, and in nothing else" in text
    assert sections(text).count("Against the baseline") == 1
    two = sections(render([fixtures.quantize(), fixtures.quantize()]))
    assert two.count("The plan: gptq-int4") == 2


def test_an_unknown_coordinate_and_another_stack_are_said():
    stack = Stack.today(7).contents()
    stranger = fixtures.evaluate(coordinates=fixtures.point(recipe="unknown", stack="x"), stack=stack)
    text = Reader(body(render([fixtures.evaluate(), stranger]))).text
    assert "unknown" in text and "threads: 2 -> 7" in text and "recipe and stack" in text


def test_build_writes_one_file_from_records_files_and_runs(tmp_path):
    run = Run.create(tmp_path / "run", "inspect")
    file = run.write_record(fixtures.inspect())
    page = build([fixtures.compare(), file], tmp_path / "out")
    assert page == tmp_path / "out" / "report.html" and [p.name for p in page.parent.iterdir()] == ["report.html"]
    text = page.read_text(encoding="utf-8")
    assert text.startswith("<!DOCTYPE html>") and "Outliers in the weights" in text and "Size against KL" in text
    assert build([run.directory], tmp_path / "mine.html") == tmp_path / "mine.html"
    with pytest.raises(RecordError, match="at least one record"):
        build([], tmp_path)


def test_the_same_records_make_the_same_bytes():
    assert render(fixtures.everything()) == render(fixtures.everything())


def test_chapters_are_found_by_their_files():
    assert {"compare", "evaluate", "quantize", "inspect"} <= set(find_chapters())
