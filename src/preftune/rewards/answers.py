"""Rewards that know the right answer: the text itself, or mathematics that comes to the same."""

import json
import subprocess
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from preftune.errors import ConfigError, TrainingError, shown
from preftune.rewards.base import BuiltIn, at, each, need_package
from preftune.rewards.text_rules import compiled, matches
from preftune.time_limit import Overdue, run_apart

_START_S = 60.0  # seconds for the checker's process to import its packages


@dataclass(frozen=True, kw_only=True)
class Exact(BuiltIn):
    """1 for a completion whose answer is the text (or one of the texts) in a column, else 0; None where the
    column is empty.

    Runs of blanks count as one. A completion without an answer that fits `pattern` gets 0.

    Args:
        column: which column holds the right answer: text, a number, or a list of texts that are all right.
        pattern: a regular expression; its last match in the completion (the first group, if it has one) is
            the answer. Without it the answer is the whole completion.
        ignore_case: upper and lower case are the same.
    """

    column: str = "answer"
    pattern: str | None = None
    ignore_case: bool = False

    def __post_init__(self) -> None:
        if self.pattern is not None:
            compiled("exact", self.pattern)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        answers: list[str | None] = list(completions)
        if self.pattern is not None:
            found = matches("exact", self.pattern, completions, whole=False)
            answers = [None if one is None else one[1 if one.re.groups else 0] for one in found]
        rewards: list[float | None] = []
        for answer, right in zip(answers, each(columns[self.column], len(completions)), strict=True):
            rights = right if isinstance(right, list | tuple) else [right]
            known = {self._plain(str(one)) for one in rights if one is not None}
            rewards.append(float(answer is not None and self._plain(answer) in known) if known else None)
        return rewards

    def _plain(self, text: str) -> str:
        text = " ".join(text.split())
        return text.casefold() if self.ignore_case else text


@dataclass(frozen=True, kw_only=True)
class Maths(BuiltIn):
    """1 for a completion whose last mathematical expression equals the one in a column, else 0, as
    math-verify decides.

    None where the column is empty or holds no mathematics, and where the check takes longer than `limit_s`.
    The checks run in a separate process, which can be stopped in the middle of a computation.

    Args:
        column: which column holds the right answer: a number, LaTeX, or text that ends in `#### ANSWER`.
        limit_s: seconds that the check of one completion may take.
    """

    column: str = "answer"
    limit_s: float = 10.0

    def __post_init__(self) -> None:
        need_package("maths", "math_verify", "math-verify")
        if not 0 < self.limit_s < float("inf"):
            raise ConfigError(
                "limit_s of reward 'maths' is out of range", got=self.limit_s, expected="a number above 0"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.column,)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        rewards: list[float | None] = []
        checker: subprocess.Popen[str] | None = None
        try:
            for index, right in enumerate(each(columns[self.column], len(completions))):
                if right is None:
                    rewards.append(None)
                    continue
                checker = checker or _start_checker()
                try:
                    question = {"right": str(right), "completion": completions[index]}
                    rewards.append(_checked(checker, question, self.limit_s))
                except Overdue:
                    _stop(checker)
                    checker = None
                    rewards.append(None)
                except (OSError, ValueError) as error:
                    raise TrainingError(
                        f"The checker of reward 'maths' died on {at(index, completions)}",
                        got=shown(str(error)),
                    ) from error
        finally:
            if checker is not None:
                _stop(checker)
        return rewards


def _start_checker() -> "subprocess.Popen[str]":
    checker = subprocess.Popen(
        [sys.executable, "-m", "preftune.rewards.maths_checker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        encoding="utf-8",
    )
    assert checker.stdout is not None
    try:
        ready = run_apart(checker.stdout.readline, _START_S)
    except Overdue:
        ready = ""
    if ready.strip() != "ready":
        _stop(checker)
        raise TrainingError(
            "The checker of reward 'maths' does not start",
            got=shown(ready),
            do="Check: python -c 'import math_verify'",
        )
    return checker


def _checked(checker: "subprocess.Popen[str]", question: dict[str, str], seconds: float) -> float | None:
    """1 or 0, None for no opinion; Overdue, or a ValueError if the process ended."""
    assert checker.stdin is not None and checker.stdout is not None
    checker.stdin.write(json.dumps(question) + "\n")
    checker.stdin.flush()
    return json.loads(run_apart(checker.stdout.readline, seconds))


def _stop(checker: "subprocess.Popen[str]") -> None:
    checker.kill()
    checker.wait()
    for pipe in (checker.stdin, checker.stdout):
        assert pipe is not None
        with suppress(OSError):  # a question that it no longer reads
            pipe.close()
