"""The command `docs`: the documentation, as it was installed, without a network."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.markdown import Markdown

from preftune.cli.early_names import page_named, page_paths
from preftune.cli.output import make_console, print_json, print_line
from preftune.cli.settings import parse_settings
from preftune.errors import refuse_idle, shown
from preftune.terminal import clean_terminal
from preftune.text import plural


@dataclass(frozen=True, kw_only=True)
class DocsConfig:
    """List the pages of the documentation, print one, or search in all.

    Args:
        name: the page to print, such as quickstart, data or objectives/bnf.
        search: print each line that contains this text, with the name of its page. Case does not matter.
        json: print JSON.
    """

    name: str | None = None
    search: str | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if self.name is not None:
            refuse_idle(self, "on one page", "search", got=self.name, do="Leave one out")


def run(arguments: Sequence[str]) -> int:
    settings = parse_settings(DocsConfig, arguments, "preftune docs", positional="name")
    pages = read_pages()
    if settings.name is not None:
        _print_page(page_named(settings.name, pages), pages, settings.json)
    elif settings.search is not None:
        _print_matches(settings.search, pages, settings.json)
    elif settings.json:
        print_json({name: title(text) for name, text in pages.items()})
    else:
        console = make_console()
        for name, text in pages.items():
            if not name.startswith("objectives/"):
                print_line(console, f"{name:28} {title(text)}")
        print_line(
            console, "preftune docs NAME prints a page; preftune objectives lists the pages of objectives."
        )
    return 0


def read_pages() -> dict[str, str]:
    """Name of each installed page -> its Markdown."""
    return {name: path.read_text(encoding="utf-8") for name, path in page_paths().items()}


def title(text: str) -> str:
    """The first heading of a page."""
    return next((line.lstrip("# ") for line in text.splitlines() if line.startswith("# ")), "")


def _print_page(name: str, pages: dict[str, str], as_json: bool) -> None:
    """Rendered in a terminal; the Markdown itself in a pipe or a file."""
    text = pages[name]
    console = make_console()
    if as_json:
        print_json({"name": name, "title": title(text), "text": text})
    elif console.is_terminal:
        console.print(Markdown(clean_terminal(text), hyperlinks=False))
    else:
        print(clean_terminal(text), end="")


def _print_matches(wanted: str, pages: dict[str, str], as_json: bool) -> None:
    matches = [
        {"page": name, "line": line.strip()}
        for name, text in pages.items()
        for line in text.splitlines()
        if wanted.lower() in line.lower()
    ]
    if as_json:
        print_json(matches)
        return
    console = make_console()
    for match in matches:
        print_line(console, f"{match['page']}: {match['line']}")
    print_line(
        console, f"{plural(len(matches), 'line')} with {shown(wanted)} in {plural(len(pages), 'page')}."
    )
