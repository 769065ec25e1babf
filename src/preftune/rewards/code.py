"""Rewards for programs: the tests of a column run on the completion's code, in a sandbox."""

import json
import re
import secrets
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal

from preftune.errors import ConfigError, shown
from preftune.rewards.base import BuiltIn, check_reward_range, each
from preftune.rewards.sandbox import check_sandbox, run_python

_SUBJECT = "Reward 'code'"

_PROGRAM = """
import json, os, resource, sys
question = json.load(sys.stdin)
memory = question["memory_mb"] * 2**20
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_FSIZE, (2**24, 2**24))
token, report = question.pop("token"), os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
names = {"__name__": "__main__"}
exec(compile(question["code"], "completion", "exec"), names)
exec(compile(question["test"], "test", "exec"), names)
os.write(report, token.encode())
"""
"""Runs inside. It reports only after the last line of the test: code that ends the process early has not passed."""

_BLOCK = re.compile(r"^```[ \t]*(\w*)[^\n]*\n(.*?)^```", re.S | re.M)


@dataclass(frozen=True, kw_only=True)
class Code(BuiltIn):
    """Whether the tests in a column pass on the Python code of the completion, as in DSTC (Liu et al., 2024) and
    PLUM (Zhang et al., 2024).

    The code is the last fenced block marked python, else the last fenced block, else the whole completion. A test
    is Python code, usually assertions, that runs after it in the same process; it fails if it raises, exits, or
    exceeds `limit_s`. None where the column is empty.

    Each test runs in a bubblewrap sandbox (the program `bwrap`): no network, no files but the Python installation
    and an empty folder in memory, no other processes; all of it is killed at the limit. The installed packages of
    the environment are not visible inside.

    Args:
        tests: which column holds the tests: a text, or a list of texts.
        score: "all" gives 1 if every test passes, else 0; "share" gives the share of tests that pass.
        limit_s: seconds that one test may take.
        memory_mb: address space of one test in MiB.
        parallel: tests that run at the same time.
    """

    tests: str = "tests"
    score: Literal["all", "share"] = "all"
    limit_s: float = 5.0
    memory_mb: int = 1024
    parallel: int = 2

    def __post_init__(self) -> None:
        check_reward_range("code", "limit_s", self.limit_s, 0.1, 3600)
        check_reward_range("code", "memory_mb", self.memory_mb, 64)
        check_reward_range("code", "parallel", self.parallel, 1, 1024)
        if self.score not in ("all", "share"):
            raise ConfigError("score of reward 'code' is unknown", got=self.score, expected="all or share")
        _check_sandbox(self)

    @property
    def needs(self) -> tuple[str, ...]:
        return (self.tests,)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        tests = [_texts(cell, self.tests) for cell in each(columns[self.tests], len(completions))]
        jobs = [
            (code_of(text), test)
            for text, mine in zip(completions, tests, strict=True)
            for test in mine or ()
        ]
        with ThreadPoolExecutor(self.parallel) as pool:
            passed = iter(
                list(pool.map(lambda job: passes(job[0], job[1], self.limit_s, self.memory_mb), jobs))
            )
        rewards: list[float | None] = []
        for mine in tests:
            outcomes = [next(passed) for _ in mine or ()]
            share = sum(outcomes) / len(outcomes) if outcomes else 0.0
            rewards.append(None if mine is None else share if self.score == "share" else float(share == 1))
        return rewards


def _texts(cell: Any, column: str) -> list[str] | None:
    """The tests of one completion; None where there are none."""
    if cell is None or cell == "" or cell == []:
        return None
    tests = list(cell) if isinstance(cell, list | tuple) else [cell]
    for test in tests:
        if not isinstance(test, str):
            raise ConfigError(
                f"Column {column!r} of reward 'code' holds no tests",
                got=shown(test),
                expected="Python code as text",
            )
    return tests


def code_of(completion: str) -> str:
    """The code of an answer: its last fenced block marked python, else its last block, else all of it."""
    blocks = _BLOCK.findall(completion)
    marked = [text for mark, text in blocks if mark.lower() in ("python", "py", "python3")]
    return (marked or [text for _, text in blocks] or [completion])[-1]


def passes(code: str, test: str, limit_s: float, memory_mb: int) -> bool:
    """Whether the test runs to its end after the code, in a sandbox, within the limits."""
    token = secrets.token_hex(16)
    question = json.dumps({"code": code, "test": test, "memory_mb": memory_mb, "token": token})
    asked = question.encode("utf-8", "surrogatepass")
    outcome = run_python(_SUBJECT, _PROGRAM, asked, limit_s, most_bytes=len(token))
    return outcome.end == "ended" and outcome.output == token.encode()


def _check_sandbox(settings: Code) -> None:
    check_sandbox(_SUBJECT)
    if not passes("value = 1", "assert value == 1", max(settings.limit_s, 5.0), settings.memory_mb):
        raise ConfigError(
            f"{_SUBJECT} cannot run Python in its sandbox",
            got=f"no result for a trivial program with memory_mb={settings.memory_mb}",
            do="Raise memory_mb",
        )
