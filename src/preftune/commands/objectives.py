"""The verbs that need no model and no data: the table of objectives with their pages, and their derivative
curves.

They do not import the model libraries, so that a lookup is fast.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from rich.markdown import Markdown

from preftune.catalogue.entries import UNVERIFIED, Entry, Uses, entries, entry
from preftune.cli.output import make_console, make_table, print_json, print_line
from preftune.cli.settings import parse_settings
from preftune.errors import refuse_idle
from preftune.objectives import make_objective
from preftune.terminal import clean_terminal
from preftune.text import plural

PAPER_WIDTH = 100  # terminals from here on have room for the papers


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """The table of objectives, or the page of one.

    Args:
        name: the objective whose page to print.
        check: an objective to hold against the contracts that every objective of the table keeps, such as
            my_module:MyLoss or path/to/file.py:MyLoss; prints what holds and what does not, and why.
        signal: only objectives that can learn from this.
        reference: only objectives with (true) or without (false) a reference.
        on_policy: only objectives that want (true) or do not want (false) samples of the policy's own.
        json: print JSON.
    """

    name: str | None = None
    check: str | None = None
    signal: Literal["pairs", "labels", "rewards", "hybrid"] | None = None
    reference: bool | None = None
    on_policy: bool | None = None
    json: bool = False

    def __post_init__(self) -> None:
        if self.check is not None:
            refuse_idle(self, "with check", "name", "signal", "reference", "on_policy", do="Leave it out")
        if self.name is not None:
            refuse_idle(
                self, "on one page", "signal", "reference", "on_policy", got=self.name, do="Leave one out"
            )

    def wants(self, found: Entry) -> bool:
        return (
            (self.signal is None or found.learns_from(self.signal))
            and self.reference in (None, found.uses.reference)
            and self.on_policy in (None, found.uses.on_policy)
        )


def run(arguments: Sequence[str]) -> int:
    settings = parse_settings(ObjectivesConfig, arguments, "preftune objectives", positional="name")
    if settings.check is not None:
        return _check(settings.check, settings.json)
    if settings.name is not None:
        found = entry(settings.name)
        if settings.json:
            print_json(found.as_dict() | {"text": found.page})
        else:
            _tell_page(found)
        return 0
    chosen = [one for one in entries().values() if settings.wants(one)]
    if settings.json:
        print_json([one.as_dict() for one in chosen])
    else:
        _tell_table(chosen)
    return 0


def _check(text: str, as_json: bool) -> int:
    """Prints the verdict on each contract; 1 if one does not hold."""
    from preftune.objectives.contracts.checks import contract_results, default_variants

    written = make_objective(text)
    others = [] if "(" in text else default_variants(type(written))
    found = contract_results([written, *others])
    failed = [one for one in found if one.failure]
    if as_json:
        print_json([asdict(one) for one in found])
    else:
        for one in found:
            print(clean_terminal(f"{'FAILS' if one.failure else 'holds'}  {one.contract}"))
            if one.failure:
                print(clean_terminal(f"       {one.failure}"))
        print(clean_terminal(f"{text}: {plural(len(failed), 'contract')} of {len(found)} not kept."))
    return 1 if failed else 0


def _tell_page(found: Entry) -> None:
    """Drawn in a terminal; as it is in the file elsewhere."""
    console = make_console()
    text = clean_terminal(found.page)
    if console.is_terminal:
        text = re.sub(
            r"\[([^\]]+)\]\((?!https?:)[^)]*\)", r"\1", text
        )  # links between pages lead nowhere here
        console.print(Markdown(text, hyperlinks=False))
    else:
        print(text, end="")


def _tell_table(chosen: Sequence[Entry]) -> None:
    console = make_console(piped_width=1000)  # a line for each objective, for those who search in it
    roomy = console.width >= PAPER_WIDTH
    widths = {"signal": (8, 12), "ref": (4, 6), "on-policy": (9, 9)}
    headings = (
        ["name", *widths, "hyperparameters", "paper"] if roomy else ["name", *widths, "hyper-\nparameters"]
    )
    rows = [
        [
            one.name + ("" if one.verified else " *"),
            *_uses_cells(one),
            ", ".join(f"{h.name} {_shown(h.default)}" for h in one.hyper_parameters),
            one.citation,
        ][: len(headings)]
        for one in chosen
    ]
    fixed = {heading: both[roomy] for heading, both in widths.items()}
    console.print(make_table(headings, rows, unbroken=("name",), widths=fixed if console.is_terminal else {}))
    notes = [
        f"{plural(len(chosen), 'objective')}. `preftune objectives NAME` prints its page: paper, equation, notes, example.",
        "ref: needs a reference. on-policy: wants samples of the policy's own.",
    ]
    if any(not one.verified for one in chosen):
        notes.append(f"* {UNVERIFIED}")
    for note in notes:
        print_line(console, note)


def _uses_cells(one: Entry) -> list[str]:
    """Signal, reference, on-policy; with the settings that change them."""

    def cell(show: Callable[[Uses], str]) -> str:
        usual = show(one.uses)
        others = [f"{show(v.uses)} ({v.setting} {v.value})" for v in one.variations if show(v.uses) != usual]
        return "; ".join([usual, *others])

    return [
        cell(lambda uses: uses.signal),
        cell(lambda uses: _yes(uses.reference)),
        cell(lambda uses: _yes(uses.on_policy)),
    ]


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _shown(default: object) -> str:
    return "none" if default is None else f"{default:g}" if isinstance(default, float) else str(default)
