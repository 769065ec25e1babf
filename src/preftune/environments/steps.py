"""Calls of an environment for many rollouts at once, each under a time limit; a call that fails is a fault of its
rollout alone.
"""

import pickle
import queue
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from preftune.environments.base import (
    EnvironmentFault,
    NamedEnvironment,
    Reply,
    RolloutOptions,
    checked_reply,
)
from preftune.errors import PreftuneError, shown
from preftune.rewards.own_process import OwnProcess, RaisedElsewhere
from preftune.time_limit import Overdue, run_apart

T = TypeVar("T")
A = TypeVar("A")


class Steps:
    """An environment that advances several rollouts at a time."""

    def __init__(self, named: NamedEnvironment, options: RolloutOptions):
        self.named, self.options = named, options
        self._processes: queue.SimpleQueue[OwnProcess] = queue.SimpleQueue()
        if options.process:
            self._processes.put(self._new_process())  # what cannot be used there is an error now

    def reset(self, rows: Sequence[Mapping[str, Any]]) -> list[Any | EnvironmentFault]:
        """A state for each row."""
        return self._all(self._reset, rows)

    def step(self, states: Sequence[Any], texts: Sequence[str]) -> list[tuple[Any, Reply] | EnvironmentFault]:
        """The new state and what is said to each text."""
        return self._all(lambda asked: self._step(*asked), list(zip(states, texts, strict=True)))

    def finish(self, states: Sequence[Any]) -> list[float | EnvironmentFault | None]:
        """The last reward of rollouts that a budget ended, where the environment has a method `finish`."""
        if not hasattr(self.named.environment, "finish"):
            return [None] * len(states)
        return self._all(self._finish, states)

    def _all(self, work: Callable[[A], T], asked: Iterable[A]) -> list[T | EnvironmentFault]:
        def caught(one: A) -> T | EnvironmentFault:
            try:
                return work(one)
            except EnvironmentFault as fault:
                return fault
            except (PreftuneError, KeyboardInterrupt):
                raise
            except Overdue:
                return EnvironmentFault(f"no answer within {self.options.step_timeout_s:g} s")
            except RaisedElsewhere as error:
                return EnvironmentFault(f"it raised {error}")
            except BaseException as error:  # of the user's code, which may raise anything
                return EnvironmentFault(f"it raised {shown(error, 200)}")

        with ThreadPoolExecutor(self.options.parallel, "preftune-environment") as pool:
            return list(pool.map(caught, asked))

    def _reset(self, row: Mapping[str, Any]) -> Any:
        if self.options.process:
            return self._elsewhere("reset", row)
        return run_apart(lambda: self.named.environment.reset(row), self.options.step_timeout_s)

    def _step(self, state: Any, text: str) -> tuple[Any, Reply]:
        if self.options.process:
            state, answer = self._elsewhere("step", state, text)
            return state, checked_reply(answer)
        answer = run_apart(lambda: self.named.environment.step(state, text), self.options.step_timeout_s)
        return state, checked_reply(answer)

    def _finish(self, state: Any) -> float | None:
        if self.options.process:
            return checked_reply((None, self._elsewhere("finish", state))).reward
        finish: Any = self.named.environment.finish  # type: ignore[attr-defined]
        return checked_reply((None, run_apart(lambda: finish(state), self.options.step_timeout_s))).reward

    def _new_process(self) -> OwnProcess:
        return OwnProcess(self.named.name, "Environment", "preftune.environments.steps:served_environment")

    def _elsewhere(self, method: str, *arguments: Any) -> Any:
        """The call in a process that no other call uses now."""
        try:
            process = self._processes.get_nowait()
        except queue.Empty:
            process = self._new_process()
        try:
            return process.ask({"method": method, "arguments": arguments}, self.options.step_timeout_s)
        finally:
            self._processes.put(process)


def served_environment(name: str) -> Callable[..., Any]:
    """In a process of its own: the function that is asked there. States come and go as bytes, so that only this
    process has to know their classes.
    """
    from preftune.environments.resolve import resolve_environment

    environment: Any = resolve_environment(name).environment

    def call(method: str, arguments: Sequence[Any]) -> Any:
        if method == "reset":
            return _packed(environment.reset(*arguments))
        state = pickle.loads(arguments[0])
        answer = getattr(environment, method)(state, *arguments[1:])
        return (_packed(state), answer) if method == "step" else answer

    return call


def _packed(state: Any) -> bytes:
    try:
        return pickle.dumps(state)
    except Exception as error:
        raise TypeError(f"a state that cannot be pickled, which rollout.process needs: {error}") from error
