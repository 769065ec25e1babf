"""Environments of the library `verifiers` (its interface of `load_environment` and MultiTurnEnv), turn by turn.

The library's own loop runs as it is, and requests each answer from a client. That client is ours: it hands the
dialogue out, and waits until the answer is drawn.
"""

import asyncio
import importlib
import json
import re
import signal
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from preftune.environments.base import ROLES_OF_TURNS, EnvironmentFault, Turn
from preftune.errors import ConfigError, shown

_INSTALL = "Install it with: pip install 'preftune[environments]'"
_CALL = re.compile(r"<tool_call>\s*(\{.*?\})\s*</tool_call>", re.S)


@dataclass(kw_only=True, eq=False)
class _Dialogue:
    """One rollout, which the library's loop works on."""

    known: list[dict[str, Any]]  # turns that both sides know
    asked: "asyncio.Queue[list[dict[str, Any]] | None]" = field(
        default_factory=asyncio.Queue
    )  # None: it is over
    answer: "asyncio.Future[Any] | None" = None
    task: "asyncio.Task[float | None] | None" = None


class LibraryEnvironment:
    """An environment of the library as one of ours. `tools` are what the prompts' column tools has to hold."""

    def __init__(self, name: str, settings: Mapping[str, Any]):
        self.name = name
        self._library = _library()
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            self._environment = self._library.load_environment(name, **settings)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            raise ConfigError(
                f"Environment 'verifiers:{name}' cannot be loaded",
                got=shown(_root(error), 200),
                expected="the name of an installed environment and its settings",
            ) from error
        finally:  # the library takes the signals over
            for number, handler in handlers.items():
                signal.signal(number, handler)
        if not isinstance(self._environment, self._library.MultiTurnEnv):
            raise ConfigError(
                f"Environment 'verifiers:{name}' cannot run turn by turn",
                got=type(self._environment).__name__,
                expected="a MultiTurnEnv of verifiers, as ToolEnv and SingleTurnEnv are",
            )
        if self._environment.rubric.has_group_rewards:
            raise ConfigError(
                f"Environment 'verifiers:{name}' scores the rollouts of a prompt together",
                got="a rubric with group rewards",
                expected="a reward for each rollout",
            )
        self.tools = tuple(map(_function, self._environment.tool_defs or ()))
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True, name="preftune-verifiers").start()

    def rows(self) -> list[dict[str, Any]]:
        """The tasks that the environment brings, as rows of a prompt file."""
        found = []
        for row in self._environment.get_dataset():
            more = {"tools": list(self.tools)} if self.tools else {}
            found.append({key: value for key, value in row.items() if value is not None} | more)
        return found

    def reset(self, row: Mapping[str, Any]) -> _Dialogue:
        return self._wait(self._begin(row))

    def step(self, state: _Dialogue, text: str) -> tuple[Turn, float | None]:
        return self._wait(self._continue(state, text))

    def finish(self, state: _Dialogue) -> float | None:
        """The reward of a rollout that a budget ended: the library scores what there is."""
        return self._wait(self._end(state))

    def _wait(self, work: Any) -> Any:
        waiting: Future[Any] = asyncio.run_coroutine_threadsafe(work, self._loop)
        return waiting.result()

    async def _begin(self, row: Mapping[str, Any]) -> _Dialogue:
        prompt = row["prompt"]
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        dialogue = _Dialogue(known=turns)
        given = {"example_id": 0, "answer": "", "info": {}} | {k: v for k, v in row.items() if k != "seed"}
        client = _client(self._library, dialogue)
        dialogue.task = asyncio.create_task(self._scored(given | {"prompt": turns}, client, dialogue))
        first = await dialogue.asked.get()
        if first is None:
            await dialogue.task
            raise EnvironmentFault("it ended before the first answer")
        if _spoken(first) != _spoken(turns):
            raise EnvironmentFault(f"it starts from another prompt, {shown(first)}, than the row's")
        return dialogue

    async def _scored(self, row: dict[str, Any], client: Any, dialogue: _Dialogue) -> float | None:
        """The library's loop and its rubric."""
        try:
            state = await self._environment.rollout(row, client, self.name, {})
            if state.get("error") is not None:
                raise EnvironmentFault(f"it stopped with {shown(_root(state['error']), 200)}")
            await self._environment.rubric.score_rollout(state)
            return None if state.get("reward") is None else float(state["reward"])
        finally:
            dialogue.asked.put_nowait(None)

    async def _continue(self, dialogue: _Dialogue, text: str) -> tuple[Turn, float | None]:
        assert dialogue.answer is not None and dialogue.task is not None
        answer = {"role": "assistant", "content": text}
        dialogue.answer.set_result(_response(self._library, text))
        asked = await dialogue.asked.get()
        if asked is None:
            return None, await dialogue.task
        before = [*dialogue.known, answer]
        if _spoken(asked[: len(before)]) != _spoken(before):
            raise EnvironmentFault("it changes earlier turns, which a completion cannot hold")
        turns = asked[len(before) :]
        if not turns or any(turn["role"] not in ROLES_OF_TURNS for turn in turns):
            raise EnvironmentFault(f"it continues with {shown(turns)}, no turn of a user or a tool")
        dialogue.known = [*before, *turns]
        return turns, None

    async def _end(self, dialogue: _Dialogue) -> float | None:
        assert dialogue.answer is not None and dialogue.task is not None
        if not dialogue.answer.done():
            dialogue.answer.set_exception(self._library.OverlongPromptError("a budget ended the rollout"))
        return await dialogue.task


def load_library_environment(name: str, settings: Mapping[str, Any]) -> LibraryEnvironment:
    """An environment that is installed, by its name."""
    return LibraryEnvironment(name, settings)


def _library() -> Any:
    try:
        verifiers: Any = importlib.import_module("verifiers")
    except ImportError as error:
        raise ConfigError(
            "Environments 'verifiers:NAME' need the library verifiers",
            got=f"no module {error.name}" if error.name else str(error),
            do=_INSTALL,
        ) from error
    missing = [name for name in ("load_environment", "MultiTurnEnv") if not hasattr(verifiers, name)]
    if missing:
        raise ConfigError(
            "This version of the library verifiers has no environments that run turn by turn",
            got=f"version {getattr(verifiers, '__version__', 'unknown')} without {missing[0]}",
            expected="a version from 0.1.14 on and below 0.3",
            do=_INSTALL,
        )
    return verifiers


def _root(error: BaseException) -> BaseException:
    """The first cause of an error."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _function(tool: Any) -> dict[str, Any]:
    """A tool of the library as chat templates read it."""
    plain = tool if isinstance(tool, Mapping) else tool.model_dump(exclude_none=True)
    return {
        "type": "function",
        "function": {key: plain[key] for key in ("name", "description", "parameters")},
    }


def _client(library: Any, dialogue: _Dialogue) -> Any:
    """A client of the library that takes its answers from the dialogue."""

    class Asked(library.clients.Client):
        def setup_client(self, config: Any) -> None:
            return None

        async def get_response(self, prompt: Sequence[Any], *_: Any, **__: Any) -> Any:
            dialogue.answer = asyncio.get_running_loop().create_future()
            dialogue.asked.put_nowait([_plain_turn(message) for message in prompt])
            return await dialogue.answer

        async def close(self) -> None:
            return None

        to_native_tool = to_native_prompt = get_native_response = get_response
        raise_from_native_response = from_native_response = get_response

    return Asked(None)


def _plain_turn(message: Any) -> dict[str, Any]:
    content = message["content"]
    if isinstance(content, list):  # parts
        content = "".join(str(part.get("text", part)) for part in content)
    turn = {"role": message["role"], "content": "" if content is None else content}
    call = message.get("tool_call_id")
    return turn | ({"tool_call_id": call} if call else {})


def _spoken(turns: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    return [(turn["role"], turn["content"]) for turn in turns]


def _response(library: Any, text: str) -> Any:
    """An answer as the library has it: calls in the notation of Hermes, <tool_call>{...}</tool_call>, are calls."""
    types, calls = library.types, []
    for place, written in enumerate(_CALL.findall(text)):
        try:
            call = json.loads(written)
            name, arguments = call["name"], json.dumps(call.get("arguments", {}))
        except (ValueError, KeyError, TypeError):
            continue
        calls.append(types.ToolCall(id=f"call{place}", name=str(name), arguments=arguments))
    message = types.ResponseMessage(
        content=text,
        tool_calls=calls or None,
        finish_reason="tool_calls" if calls else "stop",
        is_truncated=False,
    )
    return types.Response(id="preftune", created=0, model="preftune", usage=None, message=message)
