"""The health of a run, as its page shows it: computed from metrics.jsonl, so it works for runs of any age."""

from dataclasses import dataclass, fields

from preftune.health.conditions import CONDITIONS, check_health
from preftune.health.history import Settings, history_of
from preftune.health.verdict import Finding
from preftune.report.read import RunFiles


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`findings` are those that need attention, the worst first; `fine` and `unknown` are titles."""

    summary: str
    findings: tuple[Finding, ...]
    fine: tuple[str, ...]
    unknown: tuple[str, ...]


def health(run: RunFiles) -> Health | None:
    """None where no metric was logged that could be checked."""
    findings = check_health(history_of(run.rows, run.config, objective_facts(run)))
    if not findings:
        return None
    raised = tuple(one for one in findings if one.number > 0)
    acts = sum(one.level == "act" for one in raised)
    judged = f"Of {len(CONDITIONS)} conditions {len(findings)} could be checked"
    summary = (
        f"{judged}: {acts} to act on, {len(raised) - acts} to watch."
        if raised
        else f"{judged}: no problems found."
    )
    known = {one.id for one in findings}
    return Health(
        summary=summary,
        findings=raised,
        fine=tuple(one.title for one in findings if one.number == 0),
        unknown=tuple(one.title for one in CONDITIONS if one.id not in known),
    )


def objective_facts(run: RunFiles) -> dict[str, str]:
    """What health needs to know of the objective, as the run's environment holds it."""
    facts, known = run.environment.get("objective"), {one.name for one in fields(Settings)}
    given = facts if isinstance(facts, dict) else {}
    return {str(name): str(value) for name, value in given.items() if name in known}
