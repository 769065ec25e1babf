"""`docs`: the pages of the installed version, by name, by text, and as JSON."""

import json

import pytest

from preftune.cli.early_names import page_named
from preftune.cli.main import main
from preftune.commands.docs import read_pages
from preftune.errors import ConfigError

PAGES = {
    "data": "# Data\n",
    "tutorials/own_csv": "# CSV\n",
    "objectives/bnf": "# bnf\n",
    "objectives/data": "# x\n",
}


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("data", "data"),  # a page outside of a folder before one inside
        ("objectives/data", "objectives/data"),
        ("own-csv", "tutorials/own_csv"),
        ("docs/data.md", "data"),
        ("BNF", "objectives/bnf"),
    ],
)
def test_names(text, name):
    assert page_named(text, PAGES) == name


def test_a_name_that_is_no_page():
    with pytest.raises(
        ConfigError, match=r"There is no page 'bnff'\. Did you mean preftune docs objectives/bnf"
    ):
        page_named("bnff", PAGES)
    with pytest.raises(ConfigError, match="preftune docs lists the pages"):
        page_named("\x1b[31m", PAGES)
    with pytest.raises(ConfigError, match="There is no page ''"):
        page_named("", PAGES)


def test_pages_are_printed_searched_and_listed(capsys):
    pages = read_pages()
    assert "quickstart" in pages and not any(name.startswith("dev/") for name in pages)
    assert main(["docs", "quickstart"]) == 0
    assert capsys.readouterr().out == pages["quickstart"]
    assert main(["docs", "--search", "STRICT CONTENT THAT NO PAGE HAS"]) == 0
    assert capsys.readouterr().out.startswith("0 lines with")
    assert main(["docs", "--search", "Bidirectional Negative", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"objectives/bnf"} <= {match["page"] for match in found}
    assert main(["docs", "--json"]) == 0
    assert json.loads(capsys.readouterr().out).keys() == pages.keys()
    assert main(["docs", "data", "--search", "x"]) == 2
    assert "search has no effect on one page" in capsys.readouterr().err
