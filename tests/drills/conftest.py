"""Commands that can be killed: forked from one process that has imported everything."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest


@dataclass(kw_only=True)
class Command:
    """A running command, and what became of it."""

    forks: "Forks"
    process: int
    out: Path
    started: float = field(default_factory=time.monotonic)

    def send(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(self.process, number)

    @property
    def is_alive(self) -> bool:
        try:
            os.kill(self.process, 0)
        except ProcessLookupError:
            return False
        return True

    def wait(self, seconds: float = 120.0) -> int:
        return self.forks.wait(self.process, seconds)

    @property
    def said(self) -> str:
        return self.out.read_text(errors="replace")


class Forks:
    def __init__(self, folder: Path):
        self.folder, self.ended, self._count = folder, {}, 0
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.drills.server"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
        )
        assert self._answer() == {"ready": True}

    def start(self, words: Sequence[object], *, limits=None, ignored=(), **environment: str) -> Command:
        self._count += 1
        out = self.folder / f"out-{self._count}.txt"
        job = {
            "words": [str(word) for word in words],
            "out": str(out),
            "environment": environment,
            "limits": limits or {},
            "ignored": list(ignored),
        }
        self._server.stdin.write(json.dumps(job).encode() + b"\n")
        self._server.stdin.flush()
        while "status" in (found := self._answer()):
            self.ended[found["process"]] = found["status"]
        self.ended.pop(found["process"], None)  # of an earlier process that had the same number
        return Command(forks=self, process=found["process"], out=out)

    def run(self, words: Sequence[object], **how) -> Command:
        command = self.start(words, **how)
        command.status = command.wait()
        return command

    def wait(self, process: int, seconds: float) -> int:
        deadline = time.monotonic() + seconds
        while process not in self.ended:
            assert time.monotonic() < deadline, "the command hangs"
            found = self._answer()
            self.ended[found["process"]] = found["status"]
        return self.ended[process]

    def _answer(self) -> dict:
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        with self._server:  # closes both pipes
            self._server.stdin.close()
            self._server.kill()  # the end of an interpreter that holds torch takes long on a busy machine
            self._server.wait()


@pytest.fixture(scope="session")
def forks(tmp_path_factory):
    made = Forks(tmp_path_factory.mktemp("commands"))
    yield made
    made.close()


def pytest_generate_tests(metafunc):
    """`kill` counts the kills of each kind: DRILLS=100 spreads a hundred over all kinds, one of each without."""
    if "kill" in metafunc.fixturenames:
        kinds = len(metafunc.module.KINDS)
        count = max(1, -(-int(os.environ.get("DRILLS", "1")) // kinds))
        metafunc.parametrize("kill", range(count))


def pytest_terminal_summary(terminalreporter):
    """The signals that ended a command, for each kind: what `make drills` states."""
    totals: dict[str, Counter[str]] = {}
    for report in terminalreporter.stats.get("passed", []):
        for name, value in getattr(report, "user_properties", []):
            if name == "kills" and report.when == "call":
                counts = dict(value)
                totals.setdefault(counts.pop("kind"), Counter()).update(commands=1, **counts)
    for kind, counts in totals.items():
        terminalreporter.write_line(f"SIGKILL of {kind}: {dict(counts)}")
    if totals:
        terminalreporter.write_line(f"SIGKILL in all: {dict(sum(totals.values(), Counter()))}")


@pytest.fixture
def chance(request):
    """Random numbers that differ from test to test and are the same in every session."""
    return random.Random(request.node.nodeid)


def one_sentence(command: Command) -> bool:
    """The command refused in one line and without a traceback."""
    lines = [line for line in command.said.splitlines() if line.startswith("preftune ")]
    return len(lines) == 1 and "Traceback" not in command.said


KILL = signal.SIGKILL


@pytest.fixture(autouse=True)
def _advice(advice_can_be_followed):
    """In all tests of this folder."""
