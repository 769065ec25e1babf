"""Reading the methods of a comparison: `bnf,dpo(beta=0.5),sft(selection=best-of-n)`."""

import re
from dataclasses import dataclass, replace

from preftune.errors import ConfigError
from preftune.lab.methods import Method, default_method
from preftune.objectives import Objective, build_objective, resolve_objective
from preftune.spec import SpecTerm, parse_list


@dataclass(frozen=True, kw_only=True)
class Contender:
    """A method of the comparison, as it was written: `dpo(beta=0.5)`, `sft(selection=best-of-n)`."""

    label: str
    name: str
    objective: Objective
    given: tuple[str, ...]  # hyperparameters that were written
    selection: str | None  # on-policy: in the place of collect.selection

    @property
    def slug(self) -> str:
        """For file names."""
        return re.sub(r"[^\w.-]+", "-", self.label).strip("-")

    def lab_method(self) -> Method:
        """The laboratory's reading of the data, with the hyperparameters that were written."""
        if self.selection is not None:
            raise ConfigError("selection has no effect on a lab problem", got=self.label, do="Leave it out")
        method = default_method(self.name)
        return replace(
            method,
            objective=replace(method.objective, **{key: getattr(self.objective, key) for key in self.given}),  # type: ignore
        )


def contenders(text: str, fewest: int = 2) -> tuple[Contender, ...]:
    """Methods with commas between them, each with settings in brackets if it has any: `bnf,dpo(beta=0.5)`."""
    found = tuple(_contender(part, term) for part, term in parse_list(text, "method"))
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


def _contender(text: str, term: SpecTerm) -> Contender:
    settings = dict(term.settings)
    selection = settings.pop("selection", None)
    objective = build_objective(resolve_objective(term.name), term.name, settings)
    if objective.trains == "reward model":
        raise ConfigError(
            f"{term.name} trains a reward model, not a policy", got=text, do="Use preftune train-reward-model"
        )
    return Contender(
        label=re.sub(r"\s+", "", text),
        name=term.name,
        objective=objective,
        selection=None if selection is None else str(selection),
        given=tuple(settings),
    )
