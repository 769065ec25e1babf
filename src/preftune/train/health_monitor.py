"""A run under observation: its health is assessed from metrics.jsonl alone, so that a resumed run is assessed as
a whole one.
"""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from preftune.errors import storage_error
from preftune.health.conditions import check_health
from preftune.health.history import GrowingHistory
from preftune.health.verdict import LEVELS, Finding
from preftune.model.layout import group_pairs
from preftune.progress import Reporter
from preftune.train.runlog import RunFolder
from preftune.types import Group

MOST_PAIRS = 512  # whose ends are compared at a step: 3 ms


class Watch:
    """Assesses a run and reports each condition once, when it first comes to a level.

    Each judgment reads only the lines of metrics.jsonl that were written since the last one.
    """

    def __init__(
        self,
        *,
        run: RunFolder,
        config: Mapping[str, Any],
        facts: Mapping[str, str] | None = None,
        report: Reporter,
    ):
        """`config` is what config.yaml holds, `facts` are those of the objective."""
        self.run, self.report = run, report
        self._history = GrowingHistory(config, facts)
        self._read = 0  # bytes of metrics.jsonl
        self._told: dict[str, int] = {}

    def findings(self, row: Mapping[str, object] | None = None) -> tuple[Finding, ...]:
        """Findings of the rows written so far, and of a row that is about to be written."""
        self._catch_up()
        if row is not None:
            self._history.add(row)
        found = check_health(self._history.now())
        for finding in reversed(found):  # the worst is said last, where the eye is
            if finding.number > self._told.get(finding.id, 0):
                self._told[finding.id] = finding.number
                self.report.note(finding.line)
        return found

    def lacks(self, step: int) -> bool:
        """Whether metrics.jsonl has no evaluation at this step."""
        self._catch_up()
        return self._history.last_evaluation != step

    def write(self) -> None:
        """health.json, of all rows."""
        found = [{**asdict(one), "number": one.number} for one in self.findings()]
        worst = max((one["number"] for one in found), default=0)
        self.run.write_json("health.json", {"level": LEVELS[worst], "findings": found})

    def _catch_up(self) -> None:
        path = self.run.path / "metrics.jsonl"
        try:
            with path.open("rb") if path.exists() else io.BytesIO() as file:
                file.seek(self._read)
                for line in file:
                    if line.endswith(b"\n"):
                        self._read += len(line)
                        self._history.add(json.loads(line))
        except OSError as error:
            raise storage_error("read metrics.jsonl", self.run.path, error) from error


def common_ends(groups: Sequence[Group]) -> dict[str, float]:
    """`pairs/common_ends`: tokens that the two completions of a pair have in common at the beginning and at
    the end, as a share of the longer one; the mean over the pairs of a step (of many, over MOST_PAIRS evenly
    chosen ones), and nothing where there is no pair. (The overlap of `diagnose data` also counts those between.)
    """
    pairs = [(group, pair) for group in groups for pair in group_pairs(group)]
    chosen = pairs[:: max(1, -(-len(pairs) // MOST_PAIRS))]
    shares = [_ends(group.completions[c], group.completions[r]) for group, (c, r) in chosen]
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
