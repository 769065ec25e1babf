"""Rollouts of a file of prompts as rows, with a journal: what is drawn is not drawn again after an interruption."""

import hashlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from preftune.environments.rollout import Drawer, Rollout, Rollouts, turn_rows
from preftune.errors import storage_error
from preftune.types import Record


def rollout_row(record: Record, drawn: Sequence[Rollout], rollouts: Rollouts) -> dict[str, Any]:
    """A prompt's rollouts as `select`, `reward` and training read them."""
    prompt = record.prompt if isinstance(record.prompt, str) else [turn.as_dict() for turn in record.prompt]
    rewards = {"rewards": [one.reward for one in drawn]} if rollouts.steps.named.has_rewards else {}
    return {
        **record.columns,
        **record.template_columns(),
        "prompt": prompt,
        "completions": [turn_rows(one) for one in drawn],
        **rewards,
        "ended": [one.sampled.ended for one in drawn],
        "num_tokens": [one.sampled.num_scored for one in drawn],
        "num_context": [len(one.sampled.token_ids) - one.sampled.num_scored for one in drawn],
        "ended_by": [one.outcome for one in drawn],
        "turn_rewards": [list(one.turn_rewards) for one in drawn],
        "budget": rollouts.options.total_tokens,
    }


def rollout_rows(
    rollouts: Rollouts,
    drawer: Drawer,
    records: Sequence[Record],
    num_completions: int,
    seed: int,
    at_once: int,
    command: object,
    journal: Path | None,
    progress: Callable[[int, int], None],
) -> list[dict[str, Any]]:
    """A row for each record, `at_once` prompts at a time. `command` is what the rows follow from, other than the
    records: rows of the journal that another command or another record gave are not used.
    """
    prompts = [rollouts.renderer.render(record).prompt for record in records]
    names = [_digest([command, k, record.prompt, record.columns]) for k, record in enumerate(records)]
    rows = _read(journal)
    progress(0, len(records))
    for start in range(0, len(records), at_once):
        places = range(start, min(start + at_once, len(records)))
        if any(names[k] not in rows for k in places):
            drawn = rollouts.draw(
                drawer,
                [records[k] for k in places],
                [prompts[k] for k in places],
                list(places),
                num_completions,
                seed,
            )
            for k, ones in zip(places, drawn, strict=True):
                rows[names[k]] = rollout_row(records[k], ones, rollouts)
            _append(journal, {names[k]: rows[names[k]] for k in places})
        progress(places.stop, len(records))
    return [rows[name] for name in names]


def _digest(content: object) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _read(journal: Path | None) -> dict[str, dict[str, Any]]:
    """Rows by their digest. A line that was not written to its end is left out, and so drawn again."""
    if journal is None or not journal.exists():
        return {}
    try:
        lines = journal.read_text(encoding="utf-8", errors="replace").split("\n")
    except OSError as error:
        raise storage_error("read the journal", journal, error) from error
    rows = {}
    for line in lines:
        try:
            content = json.loads(line)
            rows[content["request"]] = dict(content["row"])
        except (ValueError, KeyError, TypeError):
            continue
    return rows


def _append(journal: Path | None, rows: dict[str, dict[str, Any]]) -> None:
    if journal is None:
        return
    try:
        with open(journal, "a", encoding="utf-8") as file:
            file.write("\n")  # a line that a crash left unfinished stays alone
            for name, row in rows.items():
                file.write(json.dumps({"request": name, "row": row}) + "\n")
    except OSError as error:
        raise storage_error("write the journal", journal, error) from error
