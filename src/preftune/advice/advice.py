"""Advice: from evidence to where completions should come from, which objective to train with, and what to
collect next.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from preftune.advice.evidence import Evidence
from preftune.advice.rules import COLLECT, OFFLINE, ON_POLICY, SOURCE_RULES, Rule
from preftune.objectives import OBJECTIVES
from preftune.types import Pairs, Rewards


@dataclass(frozen=True, kw_only=True)
class Recommendation:
    """One piece of advice.

    Args:
        choice: what to take or do.
        reason: a sentence.
        basis: the finding, page or paper that it rests on.
        settings: of an objective, where they matter, and defaults elsewhere; of own samples, what the budget
            comes to.
        evidence: the numbers that it rests on, by name; without those that are not known.
    """

    choice: str
    reason: str
    basis: str
    settings: Mapping[str, float | str] = field(default_factory=dict)
    evidence: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Advice:
    """Recommendations, the best first: where completions come from, the objective for the first of them, what
    to collect.
    """

    source: tuple[Recommendation, ...]
    objective: tuple[Recommendation, ...]
    collect: tuple[Recommendation, ...]

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


def advise(evidence: Evidence) -> Advice:
    """What the rules conclude from this evidence; a rule whose evidence is missing does not hold."""
    source = _recommended(SOURCE_RULES, evidence)
    offline = source[0].choice == "offline"
    feasible = [
        rule for rule in (OFFLINE if offline else ON_POLICY) if _feasible(rule.choice, evidence, offline)
    ]
    return Advice(
        source=source, objective=_recommended(feasible, evidence), collect=_recommended(COLLECT, evidence)
    )


def _recommended(rules: Sequence[Rule], evidence: Evidence) -> tuple[Recommendation, ...]:
    """Those that hold, in their order, each choice once."""
    found: dict[str, Recommendation] = {}
    for rule in rules:
        if rule.choice not in found and rule.when(evidence):
            known = {name: value for name in rule.rests_on if (value := getattr(evidence, name)) is not None}
            found[rule.choice] = Recommendation(
                choice=rule.choice,
                reason=rule.reason,
                basis=rule.basis,
                settings=rule.settings(evidence),
                evidence=known,
            )
    return tuple(found.values())


def _feasible(name: str, evidence: Evidence, offline: bool) -> bool:
    """Whether an objective has what it learns from, and the reference that it wants."""
    objective = OBJECTIVES[name]()
    if evidence.can_hold_reference is False and "ref_logp" in objective.needs:
        return False
    if not offline:
        return True  # own samples have rewards, from which pairs and labels follow
    if objective.signal is Rewards:
        return evidence.can_reward is True
    return objective.signal is not Pairs or evidence.num_pairs != 0 or evidence.can_reward is True
