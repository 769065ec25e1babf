"""Every command of the quickstart and the tutorials runs, in the order of the page, on the files that it shows."""

import io
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.documented import commands, fenced, files, make_home, run_command

DOCS = Path(__file__).parents[2] / "docs"
PAGES = [DOCS / "quickstart.md", *sorted((DOCS / "tutorials").glob("*.md"))]


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return make_home(tmp_path)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_commands_of_the_page_run(page, home):
    text = page.read_text(encoding="utf-8")
    shown = files((DOCS / "quickstart.md").read_text(encoding="utf-8")) | files(text)
    for name, content in shown.items():
        (home / name).write_text(content, encoding="utf-8")
    for command in commands(text):
        status, _, err = run_command(command, home)
        assert status == 0, f"{command}: {err}"
    for block in fenced(text, "python")[-1:]:
        if "from_pretrained" in block:
            subprocess.run([sys.executable, "-c", block], check=True, timeout=120)


def test_the_files_of_every_page_are_read():
    """A page whose files the test does not see would be tested on nothing."""
    names = {page.stem: set(files(page.read_text(encoding="utf-8"))) for page in PAGES}
    assert names["own_csv"] == {"answers.csv"}
    assert names["thumbs_logs"] == {"log.csv"}
    assert names["own_reward"] == {"my_reward.py", "prompts.jsonl"}
    assert names["quickstart"] == {"pairs.jsonl"}


def test_every_page_stands_in_the_navigation_once():
    def targets(entries):
        for entry in entries:
            for value in entry.values():
                yield from [value] if isinstance(value, str) else targets(value)

    config = yaml.safe_load((DOCS.parent / "mkdocs.yml").read_text(encoding="utf-8"))
    listed = list(targets(config["nav"]))
    pages = {path.relative_to(DOCS).as_posix() for path in DOCS.rglob("*.md")}
    objectives = {page for page in pages if page.startswith("objectives/") and page != "objectives/index.md"}
    generated = {"reference/command_line.md", "reference/python_api.md", "dev/log.md"}
    assert sorted(listed) == sorted(pages - objectives | generated)


def test_llms_txt_links_to_pages():
    """The list for programs that read documentation leads somewhere."""
    links = re.findall(r"\]\(([\w/.-]+)\)", (DOCS / "llms.txt").read_text(encoding="utf-8"))
    assert len(links) >= 25
    assert [link for link in links if not (DOCS / link).is_file()] == []


def test_the_site_builds_without_a_warning(tmp_path):
    """Links and anchors included: MkDocs counts a broken one as a warning, and `strict` ends on a warning."""
    pytest.importorskip("mkdocs", reason="mkdocs is not installed (the extra docs)")
    result = subprocess.run(
        [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "mkdocs",
            "build",
            "--strict",
            "--quiet",
            "--site-dir",
            str(tmp_path),
        ],
        cwd=DOCS.parent,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    reference = (tmp_path / "reference" / "command_line.html").read_text(encoding="utf-8")
    assert "--optim.learning_rate" in reference and "--rows.columns" in reference
