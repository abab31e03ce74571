"""The page in a real browser, from the file system: it draws, says nothing on the console, and asks nobody anything."""

import re
import shutil

import pytest

from subeight.report import build

from . import diagnose_fixtures, fixtures

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
ARGUMENTS = [
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="needs chromium: apt-get install chromium"),
]


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    return build(fixtures.everything(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield chromium
        chromium.close()


class Visit:
    """One opening of the page, with all that it complained about and asked for."""

    def __init__(self, browser, report, **options):
        self.page = browser.new_page(**({"viewport": {"width": 1280, "height": 900}} | options))
        self.complaints, self.requests = [], []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: (self.complaints.append(dialog.message), dialog.dismiss()))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(report.as_uri())
        self.page.wait_for_selector("html[data-figures=drawn]", timeout=60_000)

    def count(self, selector):
        return self.page.locator(selector).count()

    def ink(self, until=lambda ink: True):
        """The colour of the first figure's labels, asked for until it is as expected (or 5 s are over)."""
        for _ in range(50):
            text = self.page.evaluate("getComputedStyle(document.querySelector('#figure-0 .xtick text')).fill")
            ink = [int(part) for part in re.findall(r"\d+", text)]
            if until(ink):
                break
            self.page.wait_for_timeout(100)
        return ink

    def sideways(self):
        return self.page.evaluate("document.documentElement.scrollWidth - innerWidth")


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 400)])
def test_the_page_draws_in_silence(browser, report, tmp_path, scheme, width):
    visit = Visit(browser, report, color_scheme=scheme, viewport={"width": width, "height": 900})
    figures = visit.count(".plot")
    assert figures == 10 and visit.count(".plot .main-svg >> nth=0") == 1
    drawn = visit.page.evaluate("[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.trace').length)")
    assert len(drawn) == figures and all(traces > 0 for traces in drawn)
    assert visit.sideways() <= 0
    assert visit.complaints == []
    assert visit.requests and all(url.startswith(("file:", "data:", "blob:")) for url in visit.requests)
    shot = tmp_path / "report.png"
    visit.page.screenshot(path=shot, full_page=True)
    assert shot.stat().st_size > 100_000
    visit.page.close()


@pytest.mark.parametrize("name", list(diagnose_fixtures.every()))
@pytest.mark.parametrize(("scheme", "width"), [("dark", 1280), ("light", 390)])
def test_a_diagnosis_draws_in_silence(browser, tmp_path, name, scheme, width):
    report = build([diagnose_fixtures.every()[name]], tmp_path)
    visit = Visit(browser, report, color_scheme=scheme, viewport={"width": width, "height": 900})
    drawn = visit.page.evaluate("[...document.querySelectorAll('.plot')].map(p => p.querySelectorAll('.trace').length)")
    assert drawn and all(traces > 0 for traces in drawn)
    assert visit.sideways() <= 0 and visit.complaints == []
    assert visit.count(".steps li") == 5 and visit.count("main img") == 0
    visit.page.close()


def test_figures_follow_the_colours_of_the_page(browser, report):
    visit = Visit(browser, report, color_scheme="light")
    light = visit.ink()
    visit.page.emulate_media(color_scheme="dark")
    dark = visit.ink(until=lambda ink: ink != light)
    assert sum(dark) > sum(light)
    visit.page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert visit.ink(until=lambda ink: ink == light) == light
    visit.page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert visit.ink(until=lambda ink: ink == dark) == dark
    assert visit.complaints == []
    visit.page.close()


def test_hostile_names_do_nothing_in_hovers_either(browser, report):
    visit = Visit(browser, report)
    visit.page.locator("#figure-0").scroll_into_view_if_needed()
    visit.page.locator("#figure-0 .points path").last.hover(force=True)
    visit.page.wait_for_selector("#figure-0 .hoverlayer .hovertext")
    said = visit.page.locator("#figure-0 .hoverlayer").text_content()
    assert "<script>alert(1)</script>" in said and "KL 1.48" in said
    assert visit.count("main img") == 0 and visit.complaints == []
    visit.page.close()


def test_a_script_that_got_in_would_not_run(browser, report, tmp_path):
    broken = tmp_path / "broken.html"
    text = report.read_text(encoding="utf-8")
    broken.write_text(text.replace("<main>", "<main><script>document.title = 'owned'</script>"), encoding="utf-8")
    visit = Visit(browser, broken)
    assert visit.page.title() == "SmolLM2-135M-Instruct below 8 bits"
    assert any("Content Security Policy" in complaint for complaint in visit.complaints)
    visit.page.close()
