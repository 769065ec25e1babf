"""The command `docs`: the documentation, as it was installed, without a network."""

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable

from rich.markdown import Markdown

from preftune.cli.names import nearest
from preftune.cli.output import make_console, print_json, print_line
from preftune.cli.settings import parse_settings
from preftune.errors import ConfigError, refuse_idle, shown
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
        _print_page(page_name(settings.name, pages), pages, settings.json)
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
    """Name of each installed page -> its Markdown; the name is the path without `.md`."""
    root = resources.files("preftune").joinpath("pages")
    if not root.is_dir():  # a checkout on a system without symbolic links
        raise ConfigError("The documentation is not installed", do="Read the folder docs of the repository")
    return {
        name: page.read_text(encoding="utf-8")
        for name, page in sorted(_walk(root))
        if not name.startswith("dev/")
    }


def _walk(folder: Traversable, prefix: str = "") -> list[tuple[str, Traversable]]:
    pages = []
    for entry in folder.iterdir():
        if entry.is_dir():
            pages += _walk(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".md"):
            pages.append((prefix + entry.name.removesuffix(".md"), entry))
    return pages


def page_name(text: str, pages: dict[str, str]) -> str:
    """The full name of a page from its name, its last part, or a file name; a ConfigError if there is none."""
    wanted = text.strip().lower().removeprefix("docs/").removesuffix(".md").replace("-", "_")
    last_parts: dict[str, str] = {}
    for name in pages:  # a page outside of a folder wins over one of the same name inside
        last_parts.setdefault(name.rpartition("/")[2].replace("-", "_"), name)
    full_names = {name.replace("-", "_"): name for name in pages}
    names = last_parts | full_names
    if wanted not in names:
        near = nearest(wanted, names, 0.5)
        raise ConfigError(
            f"There is no page {shown(text)}",
            do=f"Did you mean preftune docs {names[near]}?" if near else "preftune docs lists the pages",
        )
    return names[wanted]


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
