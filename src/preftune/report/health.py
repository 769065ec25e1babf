"""The health of a run, as its page shows it: computed from metrics.jsonl, so it works for runs of any age."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, fields

from preftune.health.conditions import CONDITIONS, check_health
from preftune.health.history import Settings, history_of
from preftune.health.verdict import Finding, one_in
from preftune.report.read import RunFiles
from preftune.text import percent, value_text


@dataclass(frozen=True, slots=True, kw_only=True)
class Health:
    """`findings` are those that need attention, the worst first; `fine` and `unknown` are titles."""

    summary: str
    next: str  # what to do now
    findings: tuple[Finding, ...]
    fine: tuple[str, ...]
    unknown: tuple[str, ...]


def health(run: RunFiles) -> Health | None:
    """None where no metric was logged that could be checked, and nothing became worse."""
    findings, worse = check_health(history_of(run.rows, run.config, objective_facts(run))), worsened(run)
    if not findings and not worse:
        return None
    raised = tuple(one for one in findings if one.number > 0)
    acts = sum(one.level == "act" for one in raised)
    few = len(CONDITIONS) > 3 * len(findings)
    checked = f"Of {len(CONDITIONS)} conditions {len(findings)} could be checked"
    if raised:
        result = f"{checked}: {acts} to act on, {len(raised) - acts} to watch."
    elif few:
        result = f"{checked}: too few to call the run healthy."
    elif worse:
        result = f"{checked}, and none of them explains this."
    else:
        result = f"{checked}: no problems found."
    known = {one.id for one in findings}
    return Health(
        summary=" ".join([*worse, result]),
        next=_next(run, raised, bool(worse), few),
        findings=raised,
        fine=tuple(one.title for one in findings if one.number == 0),
        unknown=tuple(one.title for one in CONDITIONS if one.id not in known),
    )


def worsened(run: RunFiles) -> list[str]:
    """A sentence for each measure of the held-out data that ended worse than it began."""
    measures = (
        ("reward", "held-out reward", 1, value_text),
        ("rewards/accuracies", "held-out accuracy", 1, percent),
        ("loss", "held-out loss", -1, value_text),
    )
    sentences = []
    for metric, label, better, text in measures:
        series = run.evaluation.get(metric)
        if series is None or text(series.values[0]) == text(series.last):
            continue
        if not better * series.last >= better * series.values[0]:  # nan is worse
            moved = "fell" if better > 0 else "rose"
            sentences.append(
                f"The run became worse: the {label} {moved} from {text(series.values[0])} to {text(series.last)}."
            )
    return sentences


def _next(run: RunFiles, raised: Sequence[Finding], worse: bool, few: bool) -> str:
    if raised:
        return f"Next: train again with {raised[0].option}, and compare both with preftune report."
    if worse:
        rate = history_of(run.rows, run.config, objective_facts(run)).settings.learning_rate
        return f"Next: train again with {one_in(3.0, rate)}, and compare both with preftune report."
    if few:
        return "Next: train for more steps and hold out more data (--eval_fraction 0.1), so that more can be checked."
    return f"Next: read answers of the model with preftune chat {shlex.quote(str(run.folder / 'final'))}."


def objective_facts(run: RunFiles) -> dict[str, str]:
    """What health needs to know of the objective, as the run's environment holds it."""
    facts, known = run.environment.get("objective"), {one.name for one in fields(Settings)}
    given = facts if isinstance(facts, dict) else {}
    return {str(name): str(value) for name, value in given.items() if name in known}
