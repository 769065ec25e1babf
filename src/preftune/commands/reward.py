"""The verb `reward`: the completions of a file scored, chunk by chunk, so that nothing scored is lost when
something fails.
"""

import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.data.fields import as_text, as_turns, described, value_of
from preftune.data.files import located, read_file
from preftune.data.formats import FORMATS
from preftune.environments.judged import judged_rollouts
from preftune.errors import (
    ConfigError,
    DataError,
    PreftuneError,
    StorageError,
    check_range,
    shown,
    storage_error,
)
from preftune.progress import Reporter
from preftune.rewards import TIMEOUT_S, RewardReport, Verdicts, ask, check_columns, resolve_reward
from preftune.rewards.questions import prompt_text, prompt_turns
from preftune.storage import json_line, new_file, whole_file
from preftune.terminal import clean_terminal
from preftune.text import plural
from preftune.types import Record

PER_COMPLETION = (
    "ended",
    "num_tokens",
    "num_context",
    "ended_by",
    "turn_rewards",
)  # columns with one entry per completion; others have one value per row
_TURNS = "a text, or turns {role, content} that end with an answer of the assistant"


@dataclass(frozen=True, kw_only=True)
class RewardConfig:
    """Add rewards to the completions in a file, which `sample --output` wrote or which has its layout.

    Args:
        data: rows of a prompt and a list of completions, with any other columns.
        reward: a built-in reward with its settings, module:function, or a weighted sum; docs/rewards.md lists
            them.
        output: the same rows with the rewards, as JSON lines. Until every row is scored they are in
            OUTPUT.part, and the same command continues from there.
        column: what the rewards are called in the output.
        per_completion: other columns that hold one entry per completion.
        rows_per_call: rows that the reward gets at a time; scores are saved after each call.
        timeout_s: seconds that one call of a function of your own may take; null is no limit.
        reward_process: run functions of yours in separate processes, which the time limit kills.
        overwrite: replace the output, and forget what an interrupted command left.
        json: print the result as JSON.
    """

    data: str
    reward: str
    output: str
    column: str = "rewards"
    per_completion: list[str] = field(default_factory=list)
    rows_per_call: int = 16
    timeout_s: float | None = TIMEOUT_S
    reward_process: bool = False
    overwrite: bool = False
    json: bool = False

    def __post_init__(self) -> None:
        check_range(self, "[1, inf)", "rows_per_call")
        check_range(self, "(0, inf)", "timeout_s", expected="a number above 0, or null")
        if not self.column or self.column in ("completions", *PER_COMPLETION):
            raise ConfigError(
                "The column of the rewards has a name that cannot be",
                got=repr(self.column),
                expected="a new name",
            )
        if not self.output or Path(self.output).is_dir():
            raise ConfigError(
                "output is the file of the rewards", got=repr(self.output), expected="a file's name"
            )


@dataclass(frozen=True, kw_only=True)
class RewardedFile:
    """Outcome for a file. An earlier, interrupted command scored the `resumed_rows`."""

    output: str
    reward: str
    rows: int
    resumed_rows: int
    report: RewardReport


@dataclass(frozen=True, kw_only=True)
class _Row:
    """A row of the file, checked."""

    value: Mapping[str, Any]
    record: Record
    completions: list[str]
    columns: Mapping[str, list[Any]]  # one entry per completion


def add_rewards(settings: RewardConfig, report: Reporter) -> RewardedFile:
    """Judge every completion of the file and write its rows with the rewards."""
    with new_file(settings.output, settings.overwrite):
        return _add_rewards(settings, report)


def _add_rewards(settings: RewardConfig, report: Reporter) -> RewardedFile:
    rows = list(_rows(settings))
    function = resolve_reward(settings.reward, settings.reward_process)
    check_columns(
        function,
        settings.reward,
        {"prompt_turns"}.union(set.intersection(*(set(row.columns) for row in rows))),
    )
    names = sorted(set().union(*(row.columns for row in rows)))
    journal = _Journal.opened(settings, rows)
    start = resumed = len(journal.lines)
    if resumed:
        report.note(f"goes on after {resumed} of {plural(len(rows), 'row')}, which were judged before")
    report.update("reward", start, len(rows))
    try:
        for start in range(resumed, len(rows), settings.rows_per_call):
            chunk = rows[start : start + settings.rows_per_call]
            prompts = [prompt_text(row.record) for row in chunk for _ in row.completions]
            columns = {name: [entry for row in chunk for entry in _column(row, name)] for name in names}
            columns["prompt_turns"] = [prompt_turns(row.record) for row in chunk for _ in row.completions]
            completions = [completion for row in chunk for completion in row.completions]
            found = ask(function, settings.reward, prompts, completions, columns, settings.timeout_s)
            if "turns" in columns:
                outcomes = tuple(columns.get("ended_by", [None] * len(completions)))
                found = judged_rollouts(found, {"outcome": (outcomes,)}, settings.reward)
            journal.add(chunk, found)
            report.update("reward", start + len(chunk), len(rows))
    except (PreftuneError, KeyboardInterrupt) as error:
        report.close()
        kept = f"{start} of {plural(len(rows), 'row')} are kept in {journal.part}, and the same command goes on there"
        if isinstance(error, KeyboardInterrupt) or not start:
            report.note(kept if start else "no completion was scored yet")
            raise
        raise type(error)(str(error), do=kept[0].upper() + kept[1:]) from error
    return RewardedFile(
        output=settings.output,
        reward=settings.reward,
        rows=len(rows),
        resumed_rows=resumed,
        report=journal.finish(),
    )


# --- rows ---


def _rows(settings: RewardConfig) -> Iterator[_Row]:
    """All rows, checked before the first is scored."""
    name, number = settings.data, 0
    for raw in read_file(Path(name), None):
        number += 1
        if isinstance(raw.value, DataError):
            raise raw.value
        try:
            yield _row(raw.value, settings)
        except DataError as error:
            raise located(name, raw.number, error) from error
    if not number:
        raise DataError(f"{name} holds no rows", got="0 rows", expected="at least one row")


def _row(value: Mapping[str, Any], settings: RewardConfig) -> _Row:
    if settings.column in value or f"{settings.column}_parts" in value:
        raise DataError(
            f"The row has a column {settings.column} already",
            got=shown(value.get(settings.column, value.get(f"{settings.column}_parts"))),
            do="Give the new rewards another name with --column",
        )
    record = FORMATS["prompts"].convert(value)
    assert isinstance(record, Record)
    given = value_of(value, "completions")
    if not isinstance(given, list) or not given:
        raise DataError(
            "The field completions is not a list of texts", got=described(given), expected="a list of texts"
        )
    told = [_told(one, f"completions[{k}]") for k, one in enumerate(given)]
    completions = [text for text, _ in told]
    prompt_fields = value.keys() - record.columns.keys() - {"ended"}
    columns = {
        key: _entries(key, entry, len(completions), key in PER_COMPLETION or key in settings.per_completion)
        for key, entry in value.items()
        if key not in prompt_fields and key != "completions"
    }
    columns |= {key: [entry] * len(completions) for key, entry in record.template_columns().items()}
    if any(turns is not None for _, turns in told):
        columns["turns"] = [turns for _, turns in told]
    if "turn_rewards" in value and isinstance(value.get("rewards"), list):
        columns["environment_reward"] = _entries("rewards", value["rewards"], len(completions), True)
    for key in settings.per_completion:
        value_of(value, key)
    return _Row(value=value, record=record, completions=completions, columns=columns)


def _told(value: object, name: str) -> tuple[str, list[Any] | None]:
    """(the text of a completion, its turns); the text of turns is the last answer, as in training."""
    if not isinstance(value, list):
        return as_text(value, name), None
    turns = as_turns(value, name)
    if turns[-1].role != "assistant":
        raise DataError(
            f"The field {name} ends with no answer", got=f"a turn of {turns[-1].role}", expected=_TURNS
        )
    return turns[-1].content, value


def _entries(name: str, value: Any, count: int, per_completion: bool) -> list[Any]:
    if not per_completion:
        return [value] * count
    if not isinstance(value, list) or len(value) != count:
        raise DataError(
            f"The field {name} does not fit the completions",
            got=described(value),
            expected=f"a list of {count} entries",
        )
    return value


def _column(row: _Row, name: str) -> list[Any]:
    return list(row.columns.get(name, [None] * len(row.completions)))


# --- what is kept on the way ---


class _Journal:
    """OUTPUT.part: a line that states what is scored by what, then a line {row, parse_failures} for each row
    that is done.
    """

    def __init__(self, settings: RewardConfig, header: Mapping[str, Any]):
        self.output, self.part = Path(settings.output), Path(settings.output + ".part")
        self.column, self.header = settings.column, header
        self.lines: list[dict[str, Any]] = []

    @classmethod
    def opened(cls, settings: RewardConfig, rows: Sequence[_Row]) -> "_Journal":
        """With what an earlier command left, if it was the same command on the same rows."""
        digest = hashlib.sha256()
        for row in rows:
            digest.update(_line(row.value))
        header = {
            "reward": settings.reward,
            "column": settings.column,
            "per_completion": settings.per_completion,
            "rows": len(rows),
            "data": digest.hexdigest(),
        }
        journal = cls(settings, header)
        try:
            if settings.overwrite or not journal.part.exists():
                journal.part.unlink(missing_ok=True)
                if not os.access(journal.output.absolute().parent, os.W_OK):
                    raise StorageError(
                        f"The output {settings.output} cannot be written",
                        expected="a folder that can be written",
                        got="no such folder, or no permission",
                    )
            else:
                journal._read()
        except OSError as error:
            if isinstance(error, PreftuneError):
                raise
            raise storage_error("read the rewards so far", journal.part, error) from error
        return journal

    def _read(self) -> None:
        """The lines that are whole; what a crash cut off is removed."""
        content = self.part.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            os.truncate(self.part, len(whole))
        try:
            first, *lines = map(json.loads, whole.splitlines()) if whole else [self.header]
            rows = [(line["row"], line["parse_failures"]) for line in lines]
            changed = [name for name, value in self.header.items() if first[name] != value]
        except (ValueError, KeyError, TypeError) as error:
            raise StorageError(
                f"{self.part} is damaged", got=str(error), do="Delete it, or add --overwrite"
            ) from error
        if changed:
            raise ConfigError(
                f"{self.part} was begun by another command",
                got=f"{changed[0]} {shown(first[changed[0]])}",
                expected=f"{changed[0]} {shown(self.header[changed[0]])}",
                do="Finish that command, or add --overwrite",
            )
        self.lines = [{"row": row, "parse_failures": failures} for row, failures in rows]

    def add(self, rows: Sequence[_Row], verdicts: Verdicts) -> None:
        """Rows that are done, on disk when this returns."""
        rewards, lines, start = iter(verdicts.rewards), [], 0
        for row in rows:
            mine = [next(rewards) for _ in row.completions]
            part = {name: values[start : start + len(mine)] for name, values in verdicts.parts.items()}
            steps = verdicts.steps[start : start + len(mine)]
            start += len(mine)
            failures = verdicts.parse_failures if not lines else 0  # of all these rows
            more: dict[str, Any] = {f"{self.column}_parts": part} if part else {}
            more |= {f"{self.column}_steps": steps} if steps else {}
            lines.append({"row": {**row.value, self.column: mine, **more}, "parse_failures": failures})
        begin = [] if self.part.exists() and self.part.stat().st_size else [self.header]
        try:
            with open(self.part, "ab") as file:
                file.write(b"".join(map(_line, [*begin, *lines])))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error("write the rewards", self.part, error) from error
        self.lines += lines

    def finish(self) -> RewardReport:
        """The output in place of the journal, and what is in it."""
        with whole_file(self.output, "write the rewards") as path:
            path.write_bytes(b"".join(_line(line["row"]) for line in self.lines))
        self.part.unlink(missing_ok=True)
        rewards = [reward for line in self.lines for reward in line["row"][self.column]]
        parts: dict[str, list[float | None]] = {}
        for line in self.lines:
            for name, values in line["row"].get(f"{self.column}_parts", {}).items():
                parts.setdefault(name, []).extend(values)
        failures = sum(line["parse_failures"] for line in self.lines)
        return Verdicts(rewards=rewards, parse_failures=failures, parts=parts).report()


def _line(content: Mapping[str, Any]) -> bytes:
    return json_line(content).encode()


# --- the verb ---


def run(arguments: Sequence[str]) -> int:
    settings = parse_settings(RewardConfig, arguments, "preftune reward", positional="data")
    found = add_rewards(settings, Reporter(quiet=settings.json))
    if settings.json:
        print_json(asdict(found))
        return 0
    told = found.report
    parts = [f"{plural(told.num_asked, 'completion')} of {plural(found.rows, 'row')}"]
    if told.mean is not None:
        parts.append(f"mean {told.mean:.4g}, standard deviation {told.std:.4g}")
    for name, part in told.parts.items():
        numbers = (
            "no number" if part.mean is None else f"mean {part.mean:.4g}, standard deviation {part.std:.4g}"
        )
        parts.append(f"{name}: {numbers}, {part.num_none} without an opinion")
    parts += [f"{told.num_none} without an opinion"] * (told.num_none > 0)
    parts += [f"{told.parse_failures} answers of the judge not understood"] * (told.parse_failures > 0)
    print(clean_terminal(f"{'; '.join(parts)}\n{found.output}"))
    return 0
