"""The verbs that need no model and no data: the table of objectives with their pages, and their derivative curves.

They stand apart from the others so that looking something up does not wait for the model libraries.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

from rich import box
from rich.console import Console
from rich.markdown import Markdown
from rich.table import Table
from rich.text import Text

from preftune.catalogue.entries import UNVERIFIED, Entry, Uses, check_names, entries, entry
from preftune.cli.main import print_json
from preftune.cli.settings import parse_settings
from preftune.catalogue.curves import Quantity, derivative_curves
from preftune.catalogue.curves_figure import write_figure
from preftune.errors import ConfigError
from preftune.objectives import OBJECTIVES
from preftune.text import plural
from preftune.terminal import clean_terminal

PIPED_WIDTH = 1000  # characters: where there is no terminal to fit, an objective is one line
PAPER_WIDTH = 100  # terminals from here on have room for the papers


@dataclass(frozen=True, kw_only=True)
class ObjectivesConfig:
    """The table of objectives, or the page of one.

    Args:
        name: the objective whose page to print.
        signal: only objectives that can learn from this.
        reference: only objectives with (true) or without (false) a reference.
        on_policy: only objectives that want (true) or do not want (false) samples of the policy's own.
        json: print JSON.
    """

    name: str | None = None
    signal: Literal["pairs", "labels", "rewards", "hybrid"] | None = None
    reference: bool | None = None
    on_policy: bool | None = None
    json: bool = False

    def __post_init__(self) -> None:
        for setting in ("signal", "reference", "on_policy"):
            if self.name is not None and getattr(self, setting) is not None:
                raise ConfigError(f"{setting} has no effect on one page", got=self.name, do="Leave one out")

    def wants(self, found: Entry) -> bool:
        return (
            (self.signal is None or found.learns_from(self.signal))
            and self.reference in (None, found.uses.reference)
            and self.on_policy in (None, found.uses.on_policy)
        )


@dataclass(frozen=True, kw_only=True)
class CurvesConfig:
    """How hard an objective pushes a token up or down, as a function of the token's probability: one figure.

    Args:
        objectives: which ones; all when none is given.
        output: the figure, *.png, *.svg or *.pdf.
        quantity: the derivative with respect to the token's "logit" or to its "logp" (log-probability).
        ref_prob: probability of the token under the reference, between 0 and 1.
        json: print the curves as JSON.
    """

    objectives: list[str] = field(default_factory=list)
    output: str = "derivative-curves.png"
    quantity: Quantity = "logit"
    ref_prob: float = 0.3
    json: bool = False

    def __post_init__(self) -> None:
        check_names(self.objectives)
        twice = [name for name in self.objectives if self.objectives.count(name) > 1]
        if twice:
            raise ConfigError("An objective is given twice", got=twice[0], do="Name each once")
        if not 0.001 <= self.ref_prob <= 0.999:
            raise ConfigError("ref_prob is out of range", got=self.ref_prob, expected="a number between 0.001 and 0.999")
        if Path(self.output).suffix.lower() not in (".png", ".svg", ".pdf"):
            raise ConfigError("The kind of the figure is unknown", got=self.output, expected="a name in .png, .svg or .pdf")
        if Path(self.output).is_dir():
            raise ConfigError("output is the figure's file", got=f"a folder, {self.output}", do="Name a file in it")


def run_objectives(arguments: Sequence[str]) -> int:
    settings = parse_settings(ObjectivesConfig, arguments, prog="preftune objectives", positional="name",
                              description="The table of objectives, or the page of one: preftune objectives NAME")  # fmt: skip
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


def _tell_page(found: Entry) -> None:
    """Drawn in a terminal; as it stands in the file elsewhere."""
    console = Console(highlight=False)
    text = clean_terminal(found.page)
    if console.is_terminal:
        console.print(Markdown(text, hyperlinks=False))
    else:
        print(text, end="")


def _tell_table(chosen: Sequence[Entry]) -> None:
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PIPED_WIDTH)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1, 0, 0))
    table.add_column("name", no_wrap=True)
    roomy = console.width >= PAPER_WIDTH
    for heading, widths in {"signal": (8, 12), "ref": (4, 6), "on-policy": (9, 9)}.items():
        table.add_column(heading, overflow="fold", width=widths[roomy] if console.is_terminal else None)
    table.add_column("hyper-parameters" if roomy else "hyper-\nparameters", overflow="fold")
    if roomy:
        table.add_column("paper", overflow="fold")
    for one in chosen:
        cells = [one.name + ("" if one.verified else " *"), *_uses_cells(one),
                 ", ".join(f"{h.name} {_shown(h.default)}" for h in one.hyper_parameters), one.citation]  # fmt: skip
        table.add_row(*(Text(clean_terminal(cell)) for cell in cells[: len(table.columns)]))
    console.print(table)
    notes = [
        f"{plural(len(chosen), 'objective')}. `preftune objectives NAME` prints a page: equation, paper, traps, a command.",
        "ref: needs a reference. on-policy: wants samples of the policy's own.",
    ]
    if any(not one.verified for one in chosen):
        notes.append(f"* {UNVERIFIED}")
    for note in notes:
        console.print(Text(note), soft_wrap=True)


def _uses_cells(one: Entry) -> list[str]:
    """Signal, reference, on-policy; with the settings that change them."""
    def cell(show: Callable[[Uses], str]) -> str:
        usual = show(one.uses)
        others = [f"{show(v.uses)} ({v.setting} {v.value})" for v in one.variations if show(v.uses) != usual]
        return "; ".join([usual, *others])

    return [cell(lambda uses: uses.signal), cell(lambda uses: _yes(uses.reference)), cell(lambda uses: _yes(uses.on_policy))]


def _yes(answer: bool) -> str:
    return "yes" if answer else "no"


def _shown(default: object) -> str:
    return "none" if default is None else f"{default:g}" if isinstance(default, float) else str(default)


def run_curves(arguments: Sequence[str]) -> int:
    words, bare = list(arguments), []
    while words and not words[0].startswith("-"):
        bare.append(words.pop(0))
    chosen = ["--objectives", json.dumps(bare)] if bare else []
    settings = parse_settings(CurvesConfig, [*chosen, *words], prog="preftune curves",
                              description="How hard objectives push a token: preftune curves [NAME ...]")  # fmt: skip
    found = derivative_curves(settings.objectives or list(OBJECTIVES), settings.quantity, settings.ref_prob)
    if not found.curves:
        reasons = "; ".join(f"{name}: {reason}" for name, reason in found.not_drawn.items())
        raise ConfigError("None of these objectives has a curve", got=reasons)
    figure = write_figure(found, Path(settings.output))
    if settings.json:
        print_json(asdict(found) | {"figure": str(figure)})
        return 0
    for name, reason in found.not_drawn.items():
        print(f"{name} is not drawn: {reason}")
    print(clean_terminal(f"{plural(len(found.curves), 'objective')} in {figure}"))
    return 0


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"objectives": run_objectives, "curves": run_curves}
