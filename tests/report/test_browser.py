"""The page in a real browser: nothing is loaded, nothing runs, everything can be seen."""

from pathlib import Path

import pytest

from preftune.report import write_comparison, write_report

from .runs import build_run, spoil

CHROMIUM = Path("/usr/bin/chromium")
WIDTHS = (360, 1280)

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Chromium at {CHROMIUM}"),
]


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    root = tmp_path_factory.mktemp("pages")
    plain = build_run(root / "plain", steps=24, num_prompts=14)
    hostile = spoil(build_run(root / "hostile", steps=4, num_prompts=1))
    return {
        "plain": write_report(plain), "hostile": write_report(hostile),
        "comparison": write_comparison([plain, hostile], root / "compare.html"),
    }


def open_page(browser, path, width, scheme="light"):
    """The page and everything that it complained of or asked for."""
    page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    faults: list[str] = []
    page.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    page.on("request", lambda request: request.url.startswith(("file:", "data:")) or faults.append(request.url))
    page.goto(path.as_uri(), wait_until="load")
    return page, faults


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["plain", "hostile", "comparison"])
def test_a_page_is_whole_at_any_width(browser, pages, name, width):
    page, faults = open_page(browser, pages[name], width)
    assert faults == []
    boxes = page.eval_on_selector_all("svg", "all => all.map(one => one.getBoundingClientRect().toJSON())")
    assert len(boxes) >= 4
    assert all(box["width"] > 200 and box["height"] > 100 for box in boxes)
    assert all(box["right"] <= width for box in boxes)
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing hangs over the edge
    assert page.evaluate("document.scripts.length") == 0
    page.context.close()


def test_text_in_figures_is_large_enough_on_a_phone(browser, pages):
    page, _ = open_page(browser, pages["plain"], 360)
    heights = page.eval_on_selector_all("svg text", "all => all.map(one => one.getBoundingClientRect().height)")
    assert min(heights) > 8
    page.context.close()


def test_figures_follow_the_colour_scheme(browser, pages):
    seen = []
    for scheme in ("light", "dark"):
        page, faults = open_page(browser, pages["plain"], 1280, scheme)
        assert faults == []
        seen.append(page.evaluate(
            "() => { const style = (name) => getComputedStyle(document.querySelector(name));"
            " return [style('body').backgroundColor, style('svg text').fill] }"
        ))
        page.context.close()
    (light_page, light_ink), (dark_page, dark_ink) = seen
    assert light_page != dark_page
    assert light_ink != dark_ink
