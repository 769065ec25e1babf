"""A bubblewrap sandbox for Python programs: no network, no files but the Python installation and an empty folder
in memory, no other processes; all of it is killed at the limit.
"""

import os
import selectors
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Literal

from preftune.errors import ConfigError, shown

_CHUNK = 2**16


@dataclass(frozen=True, kw_only=True)
class ProgramEnd:
    """What a program wrote to its standard output, and how it came to its end."""

    output: bytes
    end: Literal["ended", "overdue", "flooded"]
    code: int  # exit code; of no meaning for a program that was killed


def sandbox_command(subject: str) -> list[str]:
    """The command in front of a program; `subject` ("Reward 'code'") names who needs it."""
    program = shutil.which("bwrap")
    if program is None:
        raise ConfigError(
            f"{subject} runs programs in a sandbox and needs the program bwrap",
            got="it is not installed",
            do="Install it, for example with: apt install bubblewrap",
        )
    places = ["/usr", "/lib", "/lib64", "/bin", sys.base_prefix]
    command = [program, "--unshare-all", "--die-with-parent", "--new-session", "--cap-drop", "ALL"]
    command += ["--clearenv", "--setenv", "PATH", "/usr/bin", "--setenv", "PYTHONDONTWRITEBYTECODE", "1"]
    command += ["--setenv", "PYTHONHASHSEED", "0"]
    for place in dict.fromkeys(places):
        if os.path.islink(place):
            command += ["--symlink", os.readlink(place), place]
        elif os.path.isdir(place):
            command += ["--ro-bind", place, place]
    command += ["--proc", "/proc", "--dev", "/dev", "--size", str(2**26), "--tmpfs", "/tmp"]
    return [*command, "--remount-ro", "/", "--chdir", "/tmp"]


def check_sandbox(subject: str) -> None:
    """Refuse now what would fail in every run: a sandbox that cannot be made here."""
    command = [*sandbox_command(subject), "/usr/bin/true"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    if result.returncode != 0:
        raise ConfigError(
            f"{subject} cannot make a sandbox here",
            got=shown(" ".join(result.stderr.split()) or f"exit code {result.returncode}"),
            do="Allow user namespaces, or run as a user who may make them",
        )


def run_python(subject: str, program: str, question: bytes, limit_s: float, most_bytes: int) -> ProgramEnd:
    """Run a Python program with `question` as its standard input, until it ends, `limit_s` is over, or it wrote
    more than `most_bytes`.
    """
    # -s: no packages of the user. The environment is cleared, so that it need not be ignored, and holds a fixed
    # seed of hashes: a program gives the same each time.
    process = subprocess.Popen(
        [*sandbox_command(subject), sys._base_executable, "-s", "-c", program],  # type: ignore[attr-defined]
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C ends the run, not the program
    )
    try:
        return _exchange(process, question, time.monotonic() + limit_s, most_bytes)
    finally:
        process.kill()  # and with it, by --die-with-parent, every process inside
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None and not pipe.closed:
                pipe.close()


def _exchange(
    process: "subprocess.Popen[bytes]", question: bytes, deadline: float, most_bytes: int
) -> ProgramEnd:
    """Write and read at once, never more than is wanted: a program may not read, or write without an end."""
    assert process.stdin is not None and process.stdout is not None
    rest, output = memoryview(question), bytearray()
    with selectors.DefaultSelector() as waiting:
        for pipe, event in ((process.stdin, selectors.EVENT_WRITE), (process.stdout, selectors.EVENT_READ)):
            os.set_blocking(pipe.fileno(), False)
            waiting.register(pipe, event)
        while process.stdout in {key.fileobj for key in waiting.get_map().values()}:
            ready = waiting.select(max(0.0, deadline - time.monotonic()))
            if not ready:
                return ProgramEnd(output=bytes(output), end="overdue", code=0)
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    rest = _written(process, waiting, rest)
                    continue
                chunk = os.read(process.stdout.fileno(), _CHUNK)
                output += chunk
                if not chunk:
                    waiting.unregister(process.stdout)
                if len(output) > most_bytes:
                    return ProgramEnd(output=bytes(output[:most_bytes]), end="flooded", code=0)
    try:  # it may close its output and work on
        code = process.wait(max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        return ProgramEnd(output=bytes(output), end="overdue", code=0)
    return ProgramEnd(output=bytes(output), end="ended", code=code)


def _written(
    process: "subprocess.Popen[bytes]", waiting: selectors.BaseSelector, rest: memoryview
) -> memoryview:
    """What is left to write after one attempt."""
    assert process.stdin is not None
    try:
        rest = rest[os.write(process.stdin.fileno(), rest[:_CHUNK]) :]
    except BrokenPipeError:
        rest = rest[:0]
    if not rest:
        waiting.unregister(process.stdin)
        process.stdin.close()
    return rest
