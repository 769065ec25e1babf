"""A user's function in a separate process, which can be killed where a thread could not be stopped."""

import asyncio
import importlib
import inspect
import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

from preftune.errors import ConfigError, PreftuneError, shown
from preftune.time_limit import Overdue

_START_S = 120.0  # seconds for the process to start and to import the function


class RaisedElsewhere(Exception):
    """What the function raised in its process, as text."""


class OwnProcess:
    """The function of a name, called in a process that keeps it from call to call.

    A process that is overdue is killed, with whatever the function remembered; the next call starts a new one.
    `maker` ("module:function") makes the function from its name there; `subject` is the noun for it in messages.
    """

    def __init__(
        self, name: str, subject: str = "Reward", maker: str = "preftune.rewards.resolve:resolve_reward"
    ):
        self.name, self.subject, self.maker = name, subject, maker
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._begin()  # a name that cannot be resolved is an error now

    def ask(self, arguments: Mapping[str, Any], seconds: float | None) -> Any:
        """What the function returns; Overdue if it does not within a given number of seconds."""
        if self._process is None or self._process.poll() is not None:
            self._begin()
        assert self._pipe is not None
        self._pipe.send(dict(arguments))
        kind, value = self._answer(seconds)
        if kind == "raised":
            raise RaisedElsewhere(value)
        return value

    def __call__(self, **arguments: Any) -> Any:
        """As any other reward function is called, without a limit on its time."""
        return self.ask(arguments, None)

    def _begin(self) -> None:
        mine, other = socket.socketpair()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "preftune.rewards.own_process", str(other.fileno())],
            pass_fds=[other.fileno()],
            start_new_session=True,  # an interruption of the run is not one of the function
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)},
        )
        other.close()
        self._pipe = Connection(mine.detach())
        weakref.finalize(self, _end, self._process)
        self._pipe.send((self.maker, self.name))
        try:
            kind, value = self._answer(_START_S)
        except Overdue:
            kind, value = "refused", f"nothing within {_START_S:g} s"
        if kind == "refused":
            raise ConfigError(f"{self.subject} {self.name!r} cannot be used in a separate process", got=value)

    def _answer(self, seconds: float | None) -> tuple[str, Any]:
        assert self._process is not None and self._pipe is not None
        try:
            if self._pipe.poll(seconds):
                return self._pipe.recv()
        except (EOFError, OSError):
            return "raised", f"the end of its process, with exit code {self._process.wait()}"
        _end(self._process)
        self._process = None
        raise Overdue


def _end(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()


def serve(pipe: Connection) -> None:
    """In the process: answer questions until the other side closes."""
    maker, name = pipe.recv()
    module, _, attribute = maker.partition(":")
    try:
        function: Any = getattr(importlib.import_module(module), attribute)(name)
    except PreftuneError as error:
        pipe.send(("refused", str(error)))
        return
    pipe.send(("ready", None))
    while True:
        try:
            arguments = pipe.recv()
        except EOFError:
            return
        try:
            outcome = function(**arguments)
            outcome = asyncio.run(_waited(outcome)) if inspect.isawaitable(outcome) else outcome
            found = ("returned", outcome.tolist() if getattr(outcome, "ndim", None) == 1 else outcome)
        except BaseException as error:
            found = ("raised", shown(error, 200))
        try:
            pipe.send(found)
        except Exception as error:  # what cannot be sent to another process
            pipe.send(("raised", shown(error, 200)))


async def _waited(outcome: Any) -> Any:
    return await outcome


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
