"""How methods of a comparison are written: `bnf,dpo(beta=0.5),sft(selection=best-of-n)`."""

import re
from dataclasses import dataclass, field, replace

from preftune.cli.settings import parse_settings
from preftune.errors import ConfigError
from preftune.lab.methods import Method, default_method
from preftune.objectives import Objective
from preftune.objectives.bnf import BNF


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A method of the comparison, as it was written: `dpo(beta=0.5)`, `sft(selection=best-of-n)`."""

    label: str
    name: str
    objective: Objective
    given: tuple[str, ...]  # hyper-parameters that were written
    selection: str | None  # on-policy: in the place of collect.selection

    @property
    def slug(self) -> str:
        """For file names."""
        return re.sub(r"[^\w.-]+", "-", self.label).strip("-")

    def lab_method(self) -> Method:
        """The laboratory's reading of the data, with the hyper-parameters that were written."""
        if self.selection is not None:
            raise ConfigError("selection has no effect on a lab problem", got=self.label, do="Leave it out")
        method = default_method(self.name)
        return replace(
            method,
            objective=replace(method.objective, **{key: getattr(self.objective, key) for key in self.given}),
        )


@dataclass(frozen=True, kw_only=True)
class _Written:
    """What may stand in the brackets of a method."""

    objective: Objective = field(default_factory=BNF)
    selection: str | None = None


def contenders(text: str, fewest: int = 2) -> tuple[Contender, ...]:
    """Methods with commas between them, each with settings in brackets if it has any: `bnf,dpo(beta=0.5)`."""
    found = tuple(_contender(part) for part in _parts(text))
    slugs = [one.slug for one in found]
    twice = [one.label for one, slug in zip(found, slugs, strict=True) if slugs.count(slug) > 1]
    if twice:
        raise ConfigError("A method is given twice", got=twice[0], do="Leave one out")
    if not found:
        raise ConfigError("No objective is named", expected="such as bnf,dpo(beta=0.5)")
    if len(found) < fewest:
        raise ConfigError(
            "A comparison has two methods or more", got=text.strip(), expected="such as bnf,dpo(beta=0.5)"
        )
    return found


def _parts(text: str) -> list[str]:
    """Cut at the commas outside brackets."""
    parts, depth = [""], 0
    for char in text:
        depth += (char == "(") - (char == ")")
        if char == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += char
    if depth:
        raise ConfigError(
            "The brackets of a method do not close", got=text, expected="such as bnf,dpo(beta=0.5)"
        )
    return [part.strip() for part in parts if part.strip()]


def _contender(text: str) -> Contender:
    name, bracket, inner = text.partition("(")
    if bracket and not inner.endswith(")"):
        raise ConfigError("A method is not understood", got=text, expected="such as dpo(beta=0.5)")
    words, given = [f"--objective={name.strip()}"], []
    for part in _parts(inner[:-1]):
        key, equals, value = (word.strip() for word in part.partition("="))
        if not equals or not key.isidentifier():
            raise ConfigError(
                f"A setting of the method {name} is not understood", got=part, expected="key=value"
            )
        if key in given:
            raise ConfigError(f"A setting of the method {name} is given twice", got=key, do="Leave one out")
        given.append(key)
        words.append(f"--{key}={value}" if key == "selection" else f"--objective.{key}={value}")
    found = parse_settings(_Written, words, prog="preftune compare", description="")
    if found.objective.trains == "reward model":
        raise ConfigError(
            f"{found.objective.name} trains a reward model, not a policy",
            got=text,
            do="Use preftune train-reward-model",
        )
    return Contender(
        label=re.sub(r"\s+", "", text),
        name=name.strip(),
        objective=found.objective,
        selection=found.selection,
        given=tuple(key for key in given if key != "selection"),
    )
