"""The page in a real browser: nothing is loaded, nothing runs, everything can be seen."""

from pathlib import Path

import pytest

from preftune.report import write_comparison, write_report
from preftune.report.diagnosis import write_diagnosis

from .runs import HOSTILE, TRICKS, build_run, spoil
from .token_files import KIND_MEANS, diagnosis_content, write_tokens

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
    write_tokens(plain)
    hostile = build_run(root / "hostile", steps=4, num_prompts=1)
    write_tokens(hostile, runs=(HOSTILE,), num_pairs=1, texts=TRICKS, prompt=HOSTILE)
    hostile = spoil(hostile)
    diagnosis = root / "diagnosis"
    diagnosis.mkdir()
    write_tokens(diagnosis, runs=("plain", HOSTILE), num_pairs=6, texts=TRICKS, prompt=HOSTILE)
    return {
        "plain": write_report(plain),
        "hostile": write_report(hostile),
        "comparison": write_comparison([plain, hostile], root / "compare.html"),
        "diagnosis": write_diagnosis(diagnosis_content(["plain", HOSTILE]), diagnosis),
    }


def open_page(browser, path, width, scheme="light"):
    """The page and everything that it complained of or asked for."""
    page = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme).new_page()
    faults: list[str] = []
    page.on(
        "console",
        lambda message: faults.append(message.text) if message.type in ("error", "warning") else None,
    )
    page.on("pageerror", lambda error: faults.append(str(error)))
    page.on("requestfailed", lambda request: faults.append(request.url))
    page.on("dialog", lambda dialog: (faults.append(dialog.message), dialog.dismiss()))
    page.on(
        "request", lambda request: request.url.startswith(("file:", "data:")) or faults.append(request.url)
    )
    page.goto(path.as_uri(), wait_until="load")
    return page, faults


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("name", ["plain", "hostile", "comparison", "diagnosis"])
def test_a_page_is_whole_at_any_width(browser, pages, name, width):
    page, faults = open_page(browser, pages[name], width)
    assert faults == []
    boxes = page.eval_on_selector_all("svg", "all => all.map(one => one.getBoundingClientRect().toJSON())")
    assert len(boxes) >= 4
    assert all(box["width"] > 200 and box["height"] > 100 for box in boxes)
    assert all(box["right"] <= width for box in boxes)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    assert page.evaluate("document.documentElement.scrollWidth") <= width  # nothing hangs over the edge
    assert page.evaluate("document.scripts.length") == 1  # the page's own
    page.context.close()


def test_text_in_figures_is_large_enough_on_a_phone(browser, pages):
    page, _ = open_page(browser, pages["plain"], 360)
    heights = page.eval_on_selector_all(
        "svg text", "all => all.map(one => one.getBoundingClientRect().height)"
    )
    assert min(heights) > 8
    page.context.close()


def test_figures_follow_the_color_scheme(browser, pages):
    seen = []
    for scheme in ("light", "dark"):
        page, faults = open_page(browser, pages["plain"], 1280, scheme)
        assert faults == []
        seen.append(
            page.evaluate(
                "() => { const style = (name) => getComputedStyle(document.querySelector(name));"
                " return [style('body').backgroundColor, style('svg text').fill] }"
            )
        )
        page.context.close()
    (light_page, light_ink), (dark_page, dark_ink) = seen
    assert light_page != dark_page
    assert light_ink != dark_ink


def cells(page, table, column):
    """(value, text) of a column's cells."""
    pick = "(all, column) => all.map(row => row.cells[column]).map(cell => [cell.dataset.value, cell.textContent.trim()])"
    return page.eval_on_selector_all(f"{table} tbody tr", pick, column)


def test_a_click_sorts_numbers_as_numbers(browser, pages):
    page, faults = open_page(browser, pages["diagnosis"], 1280)
    table = page.locator("table.sortable").first
    table.evaluate("table => table.id = 'tested'")
    values = [float(value) for value, _ in cells(page, "#tested", 1)]
    assert values == list(KIND_MEANS)
    header = table.locator("thead th").nth(1)
    for state, expected in (
        ("ascending", sorted(values)),
        ("descending", sorted(values, reverse=True)),
        (None, values),
    ):
        header.get_by_role("button").click()
        assert header.get_attribute("aria-sort") == state
        assert [float(value) for value, _ in cells(page, "#tested", 1)] == expected
    assert HOSTILE in table.locator("thead th").nth(2).inner_text()  # the button took the header in as text
    assert faults == []
    page.context.close()


def test_a_key_sorts_and_what_is_missing_stays_last(browser, pages):
    page, faults = open_page(browser, pages["comparison"], 1280)
    names = page.locator("table.sortable thead th").all_inner_texts()
    column = next(
        index for index, name in enumerate(names) if name.startswith("accuracy")
    )  # the hostile run has none
    for key in ("Enter", "Space"):
        button = page.locator("table.sortable thead th").nth(column).get_by_role("button")
        button.focus()
        page.keyboard.press(key)
        assert [text for _, text in cells(page, "table.sortable", column)][-1] == "–"
    page.locator("table.sortable thead th").first.get_by_role("button").press("Enter")
    sorted_names = page.locator("table.sortable tbody th").all_inner_texts()
    assert page.locator("table.sortable [aria-sort]").count() == 1
    page.locator("table.sortable thead th").first.get_by_role("button").press("Enter")
    assert page.locator("table.sortable tbody th").all_inner_texts() == sorted_names[::-1]
    assert faults == []
    page.context.close()


def test_without_scripts_everything_is_there_but_the_buttons(browser, pages):
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(pages["comparison"].as_uri())
    assert page.locator("table.sortable tbody tr").count() == 2
    assert page.locator("button").count() == 0
    context.close()


@pytest.mark.parametrize("name", ["hostile", "diagnosis"])
def test_hostile_text_stays_text(browser, pages, name):
    page, faults = open_page(browser, pages[name], 1280)
    page.evaluate("for (const one of document.querySelectorAll('details')) one.open = true")
    page.mouse.move(400, 400)
    shown = page.locator(".tokens").first.locator(".token").all_text_contents()
    assert len(shown) == len(TRICKS)
    assert [text for text, trick in zip(shown, TRICKS, strict=True) if text == trick] == [
        trick for trick in TRICKS if trick.isprintable()
    ]
    by_trick = dict(zip(TRICKS, shown, strict=True))
    assert by_trick["nul\x00"] == "nul⟨U+0000⟩" and by_trick["\x1b[31mred"] == "⟨U+001B⟩[31mred"
    assert by_trick["\u2028"] == "⟨U+2028⟩"
    assert by_trick["\u202eright to left"] == "⟨U+202E⟩right to left"
    assert (
        page.locator(
            ".tokens img, .tokens script, .tokens [onmouseover], main script, main a[href^=javascript]"
        ).count()
        == 0
    )
    assert HOSTILE in page.locator("body").inner_text()
    assert page.locator(".tokens").first.evaluate("one => getComputedStyle(one).unicodeBidi") == "isolate"
    assert faults == []
    page.context.close()


def test_the_policy_stops_a_script_that_slipped_through(browser, pages, tmp_path):
    html = pages["plain"].read_text(encoding="utf-8")
    spoiled = tmp_path / "spoiled.html"
    spoiled.write_text(
        html.replace(
            "<main>", "<main><script>document.title = 'taken'</script><b onclick='alert(1)'>x</b>", 1
        )
    )
    page, faults = open_page(browser, spoiled, 1280)
    assert page.title() != "taken"
    page.locator("b[onclick]").click()
    assert len(faults) == 2 and all("Content Security Policy" in fault for fault in faults)
    page.context.close()


CONTRAST = """all => all.map(one => {
  const channels = text => text.match(/[\\d.]+/g).slice(0, 3).map(Number).map(c => c / 255)
    .map(c => c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4);
  const light = text => { const [r, g, b] = channels(text); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
  const style = getComputedStyle(one), pair = [light(style.color), light(style.backgroundColor)].sort((a, b) => b - a);
  return (pair[0] + 0.05) / (pair[1] + 0.05);
})"""  # the ratio of WCAG 2.1


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_on_colored_tokens_can_be_read(browser, pages, scheme):
    page, _ = open_page(browser, pages["plain"], 1280, scheme)
    ratios = page.eval_on_selector_all(".swatches li:not(.even)", CONTRAST)
    assert len(ratios) == 10 and min(ratios) >= 4.5
    colors = page.eval_on_selector_all(
        ".swatches li", "all => all.map(one => getComputedStyle(one).backgroundColor)"
    )
    assert len(set(colors)) == 11
    page.context.close()


def test_paper_shows_everything(browser, pages):
    page, faults = open_page(browser, pages["plain"], 1280)
    assert page.locator("details:not([open])").count() >= 3
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.locator("details:not([open])").count() == 0
    assert page.locator("th button").first.evaluate("one => getComputedStyle(one, '::after').content") in (
        "none",
        "normal",
    )
    assert page.locator(".text").first.evaluate("one => getComputedStyle(one).maxHeight") == "none"
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") in (
        "rgb(246, 247, 248)",
        "rgb(255, 255, 255)",
    )
    assert page.locator("figure").first.evaluate("one => getComputedStyle(one).breakInside") == "avoid"
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.locator("details[open]").count() == 0
    assert faults == []
    page.context.close()
