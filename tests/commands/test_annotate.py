"""`preftune annotate` in a real browser: judgements by keyboard, undo, reload, resume, two people, hostile text."""

import json
import re
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from preftune.cli.main import main
from preftune.selection.judgements import agreements, is_swapped, majority, make_question, standing_choices
from tests.folders import write_rows

CHROMIUM = Path("/usr/bin/chromium")
HOSTILE = "<img src=x onerror=\"document.title='broken'\"><script>document.title='broken'</script>"


def test_the_log_keeps_what_stands():
    rows = [
        ("a", "q1", "first"),
        ("a", "q2", "tie"),
        ("b", "q1", "second"),
        ("a", "q2", "undo"),
        ("a", "q1", "skip"),
    ]
    log = [dict(zip(("annotator", "question", "choice"), row, strict=True)) for row in rows]
    assert standing_choices(log) == {("b", "q1"): "second", ("a", "q1"): "skip"}


@pytest.mark.parametrize(
    ("choices", "wanted"),
    [
        (["first", "first", "second"], "first"),
        (["first", "second"], "tie"),
        (["second", "tie", "tie"], "tie"),
        (["second", "skip"], "second"),
        (["skip"], None),
        ([], None),
    ],
)
def test_majority(choices, wanted):
    assert majority(choices) == wanted


def test_agreement_by_hand():
    """Agree on 3 of 4; a: 3 first, 1 second; b: 2 first, 2 second. Chance 3/4*2/4 + 1/4*2/4 = 1/2, kappa 1/2."""
    a, b = ["first", "first", "first", "second"], ["first", "first", "second", "second"]
    judged = {("a", str(i)): one for i, one in enumerate(a)} | {("b", str(i)): one for i, one in enumerate(b)}
    [found] = agreements(judged | {("a", "9"): "skip", ("b", "9"): "first"})
    assert (found.num_questions, found.share, found.kappa) == (4, 0.75, 0.5)


def test_sides_are_random_and_stay():
    questions = [make_question(f"p{i}", "x", "y") for i in range(200)]
    swapped = [is_swapped(one, "me", 0) for one in questions]
    assert 70 < sum(swapped) < 130 and swapped == [is_swapped(one, "me", 0) for one in questions]
    assert swapped != [is_swapped(one, "you", 0) for one in questions]


def test_rows_without_two_completions_are_refused(tmp_path, capsys):
    file = write_rows(tmp_path / "labels.jsonl", [{"prompt": "a", "completion": "b", "label": True}])
    assert main(["annotate", str(file), "--output", str(tmp_path / "out.jsonl")]) == 2
    assert "preftune sample" in capsys.readouterr().err


@contextmanager
def serving(data, output, annotator):
    """The address of the page; at the end the command is stopped as by Ctrl-C."""
    words = ["annotate", str(data), "--output", str(output), "--annotator", annotator]
    process = subprocess.Popen(
        [sys.executable, "-m", "preftune", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        line = process.stdout.readline()
        assert line.startswith("page"), process.stderr.read()
        yield line.split()[1]
    finally:
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        process.told = out
        assert process.returncode == 0, err
        (Path(output).parent / "told.txt").write_text(out)


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(
            executable_path=str(CHROMIUM), args=["--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        )
        yield chromium
        chromium.close()


def judged(page, count):
    from playwright.sync_api import expect  # polls without eval, which the page's policy forbids

    expect(page.locator("#count")).to_have_text(re.compile(rf"^{count} of "))


def prefer_good(page):
    """Chooses the completion that says good, by keyboard."""
    page.keyboard.press("1" if "good" in page.text_content("#left-text") else "2")


@pytest.mark.browser
@pytest.mark.skipif(not CHROMIUM.exists(), reason=f"needs Chromium at {CHROMIUM}")
def test_twenty_judgements_by_keyboard(browser, tmp_path, tiny_folder):
    pytest.importorskip("starlette")
    pytest.importorskip("uvicorn")
    rows = [
        {"prompt": f"{HOSTILE} question {i}", "completions": [f"{HOSTILE} bad {i}", f"a good answer {i}"]}
        for i in range(20)
    ]
    data, output = write_rows(tmp_path / "samples.jsonl", rows), tmp_path / "pairs.jsonl"
    requests, problems = [], []
    page = browser.new_page()
    page.on("request", lambda one: requests.append(one.url))
    page.on("pageerror", lambda one: problems.append(str(one)))
    with serving(data, output, "ann") as address:
        page.goto(address)
        judged(page, 0)
        for done in range(8):
            prefer_good(page)
            judged(page, done + 1)
        page.keyboard.press("u")
        judged(page, 7)
        page.reload()
        judged(page, 7)
        prefer_good(page)
        judged(page, 8)
        assert HOSTILE in page.text_content("#prompt") and page.title() == "preftune annotate"
    with serving(data, output, "ann") as address:  # the command was stopped: it continues
        page.goto(address)
        judged(page, 8)
        page.keyboard.press("0")
        judged(page, 9)
        page.keyboard.press("s")
        judged(page, 10)
        for done in range(10, 20):
            prefer_good(page)
            judged(page, done + 1)
        assert page.is_visible("#done") and not page.is_visible("#question")
    kept = [json.loads(line) for line in output.read_text().splitlines()]
    assert len(kept) == 18 and all("good" in row["chosen"] and "bad" in row["rejected"] for row in kept)
    with serving(data, output, "bob") as address:
        page.goto(address)
        judged(page, 0)
        for done in range(3):
            prefer_good(page)
            judged(page, done + 1)
        page.keyboard.press("1" if "bad" in page.text_content("#left-text") else "2")
        judged(page, 4)
        assert "ann and bob agree on 75% of 4 questions" in page.text_content("#agreement")
    assert "agree on 75%" in (tmp_path / "told.txt").read_text()
    assert not problems and all(url.startswith("http://127.0.0.1:") for url in requests)
    words = ["train", "--model", str(tiny_folder), "--data", str(output), "--objective", "dpo"]
    assert main([*words, "--max_steps", "1", "--output", str(tmp_path / "run"), "--json"]) == 0


@pytest.mark.skipif(not CHROMIUM.exists(), reason="with the browser test")
def test_other_sites_are_refused(tmp_path):
    pytest.importorskip("uvicorn")
    import httpx2

    data = write_rows(tmp_path / "samples.jsonl", [{"prompt": "p", "completions": ["x", "y"]}])
    with serving(data, tmp_path / "pairs.jsonl", "ann") as address:
        assert httpx2.get(f"{address}/state", headers={"Host": "evil.example"}).status_code == 400
        assert (
            httpx2.post(f"{address}/undo", content="{}", headers={"Content-Type": "text/plain"}).status_code
            == 415
        )
        assert httpx2.post(f"{address}/judge", json={"question": "no", "choice": "left"}).status_code == 400
