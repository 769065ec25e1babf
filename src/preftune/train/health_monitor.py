"""A run under observation: its health is judged from metrics.jsonl alone, so that a resumed run is judged as
a whole one.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from preftune.errors import storage_error
from preftune.health.conditions import check_health
from preftune.health.history import history_of
from preftune.health.verdict import LEVELS, Finding
from preftune.model.layout import group_pairs
from preftune.progress import Reporter
from preftune.train.runlog import RunFolder
from preftune.types import Group


@dataclass(kw_only=True)
class Watch:
    """Judges a run and says each condition once, when it first comes to a level."""

    run: RunFolder
    config: Mapping[str, Any]  # as config.yaml holds it
    facts: Mapping[str, str] = field(default_factory=dict)  # of the objective
    report: Reporter
    _told: dict[str, int] = field(default_factory=dict)

    def findings(self, row: Mapping[str, object] | None = None) -> tuple[Finding, ...]:
        """Of the rows written so far, and of one that is about to be."""
        rows = [*_rows(self.run), *([row] if row is not None else [])]
        found = check_health(history_of(rows, self.config, self.facts))
        for finding in reversed(found):  # the worst is said last, where the eye is
            if finding.number > self._told.get(finding.id, 0):
                self._told[finding.id] = finding.number
                self.report.note(finding.line)
        return found

    def write(self) -> None:
        """health.json, of all rows."""
        found = [{**asdict(one), "number": one.number} for one in self.findings()]
        worst = max((one["number"] for one in found), default=0)
        self.run.write_json("health.json", {"level": LEVELS[worst], "findings": found})


def _rows(run: RunFolder) -> list[dict[str, object]]:
    path = run.path / "metrics.jsonl"
    try:
        lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    except OSError as error:
        raise storage_error("read metrics.jsonl", run.path, error) from error
    return [json.loads(line) for line in lines if line]


def common_ends(groups: Sequence[Group]) -> dict[str, float]:
    """`pairs/common_ends`: tokens that the two completions of a pair have in common at the beginning and at
    the end, as a share of the longer one; the mean over all pairs, and nothing where there is no pair. (The
    overlap of `diagnose data` also counts those between.)
    """
    shares = [
        _ends(group.completions[c], group.completions[r]) for group in groups for c, r in group_pairs(group)
    ]
    return {"pairs/common_ends": float(np.mean(shares))} if shares else {}


def _ends(one: np.ndarray, two: np.ndarray) -> float:
    shorter = min(len(one), len(two))
    before = _common(one[:shorter], two[:shorter])
    after = _common(one[::-1][: shorter - before], two[::-1][: shorter - before])
    return (before + after) / max(len(one), len(two))


def _common(one: np.ndarray, two: np.ndarray) -> int:
    """Length of the common beginning of two arrays of the same length."""
    differ = np.flatnonzero(one != two)
    return int(differ[0]) if len(differ) else len(one)
