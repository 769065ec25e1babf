"""A Python tool: the code of an answer is run in a sandbox, and what it prints is the next turn."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from preftune.environments.base import Turn
from preftune.errors import ConfigError, check_range
from preftune.rewards.sandbox import ProgramEnd, check_sandbox, run_python

_SUBJECT = "Environment 'python'"
_PROGRAM = r"""
import ast, json, os, random, resource, sys, traceback
question = json.load(sys.stdin)
memory = question["memory_mb"] * 2**20
resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
resource.setrlimit(resource.RLIMIT_FSIZE, (2**24, 2**24))
names = {"__name__": "__main__"}

def run(block, name):
    tree = ast.parse(block, name)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, name, "exec"), names)
    if last is not None:
        value = eval(compile(ast.Expression(last.value), name, "eval"), names)
        if value is not None:
            print(repr(value))

out = os.dup(1)
os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
for place, block in enumerate(question["blocks"]):
    if place == len(question["blocks"]) - 1:
        sys.stdout.flush()
        os.dup2(out, 1)
    random.seed(place)
    try:
        run(block, "code")
    except SystemExit:
        pass
    except BaseException as error:
        frames = [frame for frame in traceback.extract_tb(error.__traceback__) if frame.filename == "code"]
        where = f" (line {frames[-1].lineno})" if frames else ""
        print(f"{type(error).__name__}: {error}{where}")
    sys.stdout.flush()
"""
"""Runs inside: the blocks of earlier answers without their output, then that of this one."""

_BLOCK = re.compile(r"^```[ \t]*(?:python|py|python3)[ \t]*\n(.*?)^```", re.S | re.M | re.I)
_MOST_BYTES_EACH = 4  # of a character in UTF-8


@dataclass(frozen=True, kw_only=True)
class PythonTool:
    """Runs the fenced blocks marked python of an answer and returns what they print, as in ToRA (Gou et al., 2024)
    and M-DPO (Xiong et al., 2024). An answer without such a block ends the rollout.

    Later blocks see the names of earlier blocks: each call runs the earlier blocks of the rollout again, without
    their output, in a new process. As in a notebook the value of a last expression is printed, and so is an
    exception, as one line. A program that hangs, floods its output or dies gives a turn that states it. The
    sandbox is that of the reward `code`: no network, no files, no other processes.

    It has no reward: the reward function scores the last answer.

    Args:
        limit_s: seconds that one call may take.
        memory_mb: address space of one call in MiB.
        most_characters: output beyond is cut.
        role: whose turn the output is: "user", which every chat template writes, or "tool".
    """

    limit_s: float = 5.0
    memory_mb: int = 1024
    most_characters: int = 2000
    role: Literal["user", "tool"] = "user"

    def __post_init__(self) -> None:
        check_range(self, "[0.1, 3600]", "limit_s")
        check_range(self, "[64, inf)", "memory_mb")
        check_range(self, "[1, inf)", "most_characters")
        check_sandbox(_SUBJECT)
        told = self._told(["6 * 7"], max(self.limit_s, 5.0))
        if told != "42":
            raise ConfigError(
                f"{_SUBJECT} cannot run Python in its sandbox",
                got=f"{told} for 6 * 7 with memory_mb={self.memory_mb}",
                do="Raise memory_mb",
            )

    def reset(self, row: Mapping[str, Any]) -> list[str]:
        return []

    def step(self, state: list[str], text: str) -> tuple[Turn, None]:
        blocks = _BLOCK.findall(text)
        if not blocks:
            return None, None
        state.append("\n".join(blocks))
        told = self._told(state, self.limit_s)
        return {"role": self.role, "content": f"```output\n{told}\n```"}, None

    def _told(self, blocks: list[str], limit_s: float) -> str:
        question = json.dumps({"blocks": blocks, "memory_mb": self.memory_mb})
        most = self.most_characters * _MOST_BYTES_EACH
        asked = question.encode("utf-8", "surrogatepass")
        return self._text(run_python(_SUBJECT, _PROGRAM, asked, limit_s, most), limit_s)

    def _text(self, outcome: ProgramEnd, limit_s: float) -> str:
        text = outcome.output.decode("utf-8", "replace").strip("\n")
        if len(text) > self.most_characters or outcome.end == "flooded":
            text = f"{text[: self.most_characters]}\n[the output is cut here]"
        if outcome.end == "overdue":
            text = f"{text}\n[killed: no end within {limit_s:g} s]".lstrip("\n")
        elif outcome.end == "ended" and outcome.code != 0:
            text = f"{text}\n[the process ended with exit code {outcome.code}]".lstrip("\n")
        return text or "[no output]"
