"""The table of objectives as facts: each is read from the one place that states it.

Signal and scores come from the class, defaults from its fields, meanings from its docstring, the paper and
whether the formula was verified from its page.
"""

import inspect
import re
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from importlib import resources
from typing import Any, Literal, get_args, get_origin, get_type_hints

from preftune.errors import ConfigError
from preftune.objectives import OBJECTIVES, Objective
from preftune.objectives.learning_rates import LearningRates
from preftune.spec import suggestion
from preftune.types import Hybrid

UNVERIFIED = "formula not verified against the paper"


@dataclass(frozen=True, slots=True, kw_only=True)
class HyperParameter:
    name: str
    default: object
    meaning: str
    note: str  # the page's text on it: meaning, and the source of the default


@dataclass(frozen=True, slots=True, kw_only=True)
class Uses:
    """What an objective learns from. `on_policy`: completions of the policy's own, with their log-probability
    when they were sampled, or in addition to the pairs.
    """

    signal: str
    needs: tuple[str, ...]
    reference: bool
    on_policy: bool
    coupled: bool  # a unit's loss depends on the rest of its step


@dataclass(frozen=True, slots=True, kw_only=True)
class Variation:
    """What one hyperparameter changes in what the objective learns from: "with `setting` at `value` it uses
    `uses`".
    """

    setting: str
    value: str
    uses: Uses


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """An objective as the table shows it. `page` is Markdown."""

    name: str
    title: str
    uses: Uses
    variations: tuple[Variation, ...]
    hyper_parameters: tuple[HyperParameter, ...]
    paper: str
    citation: str  # the paper without its title: authors, venue, year, id
    url: str | None
    formula: str | None  # how the formula was checked, where the page states it
    learning_rates: LearningRates
    verified: bool
    page: str

    def learns_from(self, signal: str) -> bool:
        return signal in {self.uses.signal, *(variation.uses.signal for variation in self.variations)}

    def as_dict(self) -> dict[str, Any]:
        """As JSON, without the page's text."""
        return {
            "name": self.name,
            "title": self.title,
            **asdict(self.uses),
            "variations": [
                {"setting": v.setting, "value": v.value, **asdict(v.uses)} for v in self.variations
            ],
            "hyper_parameters": [asdict(parameter) for parameter in self.hyper_parameters],
            "paper": self.paper,
            "url": self.url,
            "formula": self.formula,
            "learning_rates": asdict(self.learning_rates)
            | {"default_with_lora": self.learning_rates.default_for(lora_rank=1)},
            "verified": self.verified,
            "page": f"docs/objectives/{self.name}.md",
        }


def entries() -> dict[str, Entry]:
    """Every objective of the table, in its order."""
    return {name: entry(name) for name in OBJECTIVES}


def entry(name: str) -> Entry:
    """One objective; a name that is not in the table is refused with those that are near."""
    check_names([name])
    kind, page = OBJECTIVES[name], page_of(name)
    uses = _uses(kind())
    variations = tuple(v for v in _variations(kind) if v.uses != uses)
    return Entry(
        name=name,
        uses=uses,
        variations=variations,
        hyper_parameters=_hyper_parameters(kind, page),
        page=page,
        learning_rates=kind.learning_rates,
        verified=UNVERIFIED not in " ".join(page.split()),
        **_header(page),
    )


def check_names(names: list[str]) -> None:
    """Refuses the first name that is not in the table."""
    for name in names:
        if name not in OBJECTIVES:
            raise ConfigError(
                "There is no such objective",
                got=name,
                do=suggestion(name, OBJECTIVES) or "`preftune objectives` lists them",
            )


def page_of(name: str) -> str:
    """The page's Markdown."""
    try:
        return (
            resources.files("preftune")
            .joinpath("pages", "objectives", f"{name}.md")
            .read_text(encoding="utf-8")
        )
    except OSError as error:
        # A checkout without symbolic links (Windows) has a file in the place of the folder.
        raise ConfigError(
            f"The page of {name} is not installed",
            got=error.strerror or str(error),
            do="Install preftune from a wheel, or read docs/objectives in the repository",
        ) from error


# --- from the class ---


def _uses(objective: Objective) -> Uses:
    """Scores of the reference and of the policy that sampled have names that state it."""
    needs = objective.needs
    return Uses(
        signal=objective.signal.__name__.lower(),
        needs=tuple(sorted(needs)),
        reference=any(need.startswith("ref_") or need.endswith("_ref") for need in needs),
        on_policy=objective.signal is Hybrid or any(need.startswith("behaviour_") for need in needs),
        coupled="coupling" in needs,
    )


def _variations(kind: type[Any]) -> Iterator[Variation]:
    """The objective with one hyperparameter elsewhere: each other choice, and numbers at 0, away from it, or
    given.
    """
    hints = get_type_hints(kind)
    for field in fields(kind):
        for shown, value in _elsewhere(hints[field.name], field.default):
            try:
                objective = kind(**{field.name: value})
            except ConfigError:
                continue  # out of range, or it needs another setting with it
            yield Variation(setting=field.name, value=shown, uses=_uses(objective))


def _elsewhere(hint: Any, default: Any) -> list[tuple[str, object]]:
    if get_origin(hint) is Literal:
        return [(str(choice), choice) for choice in get_args(hint) if choice != default]
    if isinstance(default, bool):
        return [(str(not default).lower(), not default)]
    if isinstance(default, int | float):
        kind = type(default)
        return [("0", kind(0))] if default else [("above 0", kind(1) if kind is int else 0.1)]
    if default is None and float in get_args(hint):
        return [("given", 1.0)]
    return []


def _hyper_parameters(kind: type[Any], page: str) -> tuple[HyperParameter, ...]:
    meanings, notes = (
        _meanings(kind),
        dict(re.findall(r"^\| `(\w+)` \| [^|]* \| (.*) \|$", page, flags=re.MULTILINE)),
    )
    found = []
    for field in fields(kind):
        assert field.default is not MISSING, f"{kind.__name__}.{field.name} has no default"
        found.append(
            HyperParameter(
                name=field.name,
                default=field.default,
                meaning=meanings.get(field.name, ""),
                note=strip_markdown(notes.get(field.name, "")),
            )
        )
    return tuple(found)


def _meanings(kind: type[Any]) -> Mapping[str, str]:
    """From the `Args:` of the docstring: name, colon, text, which continues in lines that are indented further."""
    _, _, args = (inspect.getdoc(kind) or "").partition("\nArgs:\n")
    found = re.findall(r"^ {4}(\w+): (.*(?:\n {5,}.*)*)", args, flags=re.MULTILINE)
    return {name: " ".join(text.split()) for name, text in found}


# --- from the page ---


def _header(page: str) -> dict[str, Any]:
    """What precedes the first section: title, paper with its link, the row on the formula."""
    above = page.split("\n## ")[0]
    heading, _, rest = above.partition("\n")
    paper, _, rows = rest.partition("\n| | |\n")
    paper = " ".join(paper.strip().split("\n\n")[0].split())
    link = re.search(r"\]\((\S+?)\)", paper)
    formula = re.search(r"^\| formula \| (.*) \|$", rows, flags=re.MULTILINE)
    without_title = re.sub(r"\*(\\.|[^*\\])+\*( \([^)]*\))?(, )?", "", paper)
    return {
        "title": heading.partition(": ")[2],
        "paper": strip_markdown(paper).rstrip("."),
        "citation": strip_markdown(without_title).rstrip("."),
        "url": link[1] if link else None,
        "formula": formula[1] if formula else None,
    }


def strip_markdown(markdown: str) -> str:
    """A line of Markdown without its marks; of a link, the text."""
    text = re.sub(r"\[([^\]]*)\]\(\S+?\)", r"\1", markdown)
    return re.sub(r"\\(.)|[*`]", lambda found: found[1] or "", text)
