"""Every command and every Python block of the README runs, on a tiny model in the place of the named ones."""

import contextlib
import io
import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.documented import BUNDLED, make_home, run_command
from tests.folders import PAIRS, write_rows

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
COMMANDS = [line.strip() for line in README.splitlines() if line.startswith("    preftune ")]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder with the files that the README names; the cache holds the tiny model as the bundled one."""
    home = make_home(tmp_path_factory.mktemp("readme"))
    shutil.copytree(home / BUNDLED, home / "preftune-demo" / "run" / "final")
    write_rows(home / "pairs.jsonl", PAIRS * 3)
    write_rows(home / "held_out.jsonl", PAIRS)
    write_rows(home / "prompts.jsonl", [{"prompt": row["prompt"]} for row in PAIRS])
    (home / "run.yaml").write_text(
        yaml.safe_dump({"data": "pairs.jsonl", "output": "runs/yaml", "max_steps": 1})
    )
    return home


@pytest.fixture(autouse=True)
def _at_home(home, monkeypatch):
    monkeypatch.chdir(home)
    monkeypatch.setenv("PREFTUNE_CACHE", str(home / "cache"))
    monkeypatch.setattr("sys.stdin", io.StringIO(""))


def test_the_commands_in_their_order(home):
    """One test, because later commands use what earlier ones made."""
    assert len(COMMANDS) >= 8
    for command in COMMANDS:
        status, _, err = run_command(command, home)
        if "--resume" in command:
            assert (status, "is finished" in err) == (2, True), err
        else:
            assert status == 0, f"{command}: {err}"
    assert (home / "compare.html").is_file()
    assert (home / "runs" / "bnf" / "report.html").is_file()


def test_the_python_block():
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        with contextlib.redirect_stdout(out := io.StringIO()):
            exec(compile(block, "README.md", "exec"), {})
        assert "runs/python/final" in out.getvalue()


def test_make_targets_exist():
    rules = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in re.findall(r"`?make ([a-z-]+)`?", README):
        assert re.search(rf"^{target}:", rules, re.M), target


def test_links_lead_somewhere():
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    for page in pages:
        for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
            if not link.startswith("http"):
                assert (page.parent / link).exists(), f"{page}: {link}"
