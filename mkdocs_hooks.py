"""What the site shows and no page holds: the reference of the command line and of the Python interface.

MkDocs calls the functions `on_...` while it builds the site (`make docs`).
"""

import re
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

sys.path.insert(0, str(Path(__file__).parent / "src"))

import preftune
from preftune.cli.main import VERBS
from preftune.cli.outline import Outline, Setting, objective_outlines, outline_of
from preftune.cli.words import module_of

ROOT = Path(__file__).parent
SYMBOLS = {
    "alpha": "α",
    "beta": "β",
    "gamma": "γ",
    "delta": "δ",
    "epsilon": "ε",
    "theta": "θ",
    "lambda": "λ",
    "mu": "μ",
    "pi": "π",
    "rho": "ρ",
    "sigma": "σ",
    "tau": "τ",
    "<=": "≤",
    ">=": "≥",
    " * ": " · ",
    "^2": "²",
}
_SYMBOL = re.compile(
    r"(?<![\w/-])(?:"
    + "|".join(name for name in SYMBOLS if name.isalpha())
    + r")(?![A-Za-z0-9/-])|<=|>=| \* |\^2(?!\d)"
)


def on_config(config: MkDocsConfig) -> MkDocsConfig:
    """Adds a page for each objective to the navigation."""
    names = sorted(path.stem for path in (ROOT / "docs" / "objectives").glob("*.md") if path.stem != "index")
    assert config.nav is not None
    reference = next(section["Reference"] for section in config.nav if "Reference" in section)
    reference.append({"Objectives": [{name: f"objectives/{name}.md"} for name in names]})
    return config


def on_files(files: Files, config: MkDocsConfig) -> Files:
    pages = {
        "reference/command_line.md": command_line(),
        "reference/python_api.md": python_api(),
        "dev/log.md": (ROOT / "LOG.md").read_text(encoding="utf-8"),
    }
    for name, text in pages.items():
        files.append(File.generated(config, name, content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """LOG.md stands outside of the folder of pages; in the site it is dev/log.md."""
    if page.file.src_uri == "dev/log.md":
        markdown = markdown.replace("](docs/", "](../")
    if page.file.src_uri.startswith("objectives/"):
        markdown = with_symbols(markdown)
    return markdown.replace("](../../LOG.md", "](log.md").replace("](../LOG.md", "](dev/log.md")


def with_symbols(markdown: str) -> str:
    """Greek letters and signs in the equations of an objective's page, which terminals show in ASCII. Names in
    backticks, links, commands and tables stay as they are.
    """
    lines = markdown.split("\n")
    for place, line in enumerate(lines):
        if line.startswith(("#", "|", "    preftune", "```")):
            continue
        parts = re.split(r"(`[^`]*`|\]\([^)]*\))", line)
        parts[::2] = [_SYMBOL.sub(lambda found: SYMBOLS[found[0]], part) for part in parts[::2]]
        lines[place] = "".join(parts)
    return "\n".join(lines)


def command_line() -> str:
    """A section for each command with all its settings."""
    lines = [
        "# Command line",
        "",
        "Settings are flags (`--optim.learning_rate 1e-6`) or YAML keys (`--config run.yaml`). The part after the",
        "last dot is enough where it is unambiguous (`--learning_rate`).",
        "",
    ]
    for verb in VERBS:
        modules = ["diagnose-run", "diagnose-data"] if verb == "diagnose" else [verb]
        for command in modules:
            outline = outline_of(module_of(command))
            if outline is not None:
                lines += _section(command.replace("diagnose-", "diagnose "), outline)
    lines += [
        "## Hyperparameters of objectives",
        "",
        "| objective | setting | default | meaning |",
        "|---|---|---|---|",
    ]
    for name, settings in objective_outlines().items():
        lines += [f"| [{name}](../objectives/{name}.md) {_row(setting)}" for setting in settings]
    return "\n".join(lines) + "\n"


def _section(command: str, outline: Outline) -> list[str]:
    rows = ["| setting | default | meaning |", "|---|---|---|", *map(_row, outline.settings)]
    return [f"## preftune {command}", "", outline.summary, "", *rows, ""]


def _row(setting: Setting) -> str:
    default = "required" if setting.default is None else f"`{_cell(_plain(setting.default))}`"
    return f"| `--{setting.name}` | {default} | {_cell(setting.help)} |"


def _plain(default: str) -> str:
    """A default of the source as it is written on the command line."""
    words = {"True": "true", "False": "false", "None": "none"}
    return words.get(default, default.strip("'\""))


def _cell(text: str) -> str:
    """One line without what ends a cell or opens a tag."""
    return " ".join(text.split()).replace("|", "\\|").replace("<", "&lt;")


def python_api() -> str:
    """The names that `import preftune` offers, each from the module that defines it."""
    entries = [f"::: preftune.{module}.{name}\n" for name, module in sorted(preftune._MODULES.items())]
    return "\n".join(["# Python API", "", *entries])
