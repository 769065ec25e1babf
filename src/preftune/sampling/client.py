"""Requests to an HTTP server that speaks the OpenAI protocol: many at a time, tried again, each answer
checked.
"""

import asyncio
import os
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass, fields
from typing import Any, Literal, TypeVar

import httpx2

from preftune.errors import ConfigError, ServerError, check_range, refuse_idle, shown

T = TypeVar("T")

_AGAIN = {408, 409, 425, 429}  # and all of 500 and above: the same request may succeed later
_LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class ServerOptions:
    """An OpenAI-compatible server.

    Args:
        url: where it is, for example http://localhost:8000; empty is no server.
        model: its name for the model; the first that it lists when empty.
        api: "tokens" sends token ids to /v1/completions (vLLM, SGLang, llama.cpp), "transformers" messages to
            /v1/chat/completions with a generation configuration (`transformers serve`), "chat" messages
            alone; "auto" tries them in this order.
        logprobs: what the server's log-probabilities are of: "raw" the model as it is, "processed" the
            distribution drawn from.
        concurrency: requests at a time.
        timeout_s: seconds without an answer after which a request is tried again.
        retries: how often a request is tried again.
        backoff_s: seconds before the first retry; each further one waits twice as long, a minute at most.
        api_key_env: the environment variable that holds the key, if the server wants one.
    """

    url: str = ""
    model: str = ""
    api: Literal["auto", "tokens", "transformers", "chat"] = "auto"
    logprobs: Literal["raw", "processed"] = "raw"
    concurrency: int = 16
    timeout_s: float = 600.0
    retries: int = 5
    backoff_s: float = 1.0
    api_key_env: str = ""

    def __post_init__(self) -> None:
        if not self.url:
            refuse_idle(
                self,
                "without a server",
                *(option.name for option in fields(self)),
                prefix="server.",
                expected="server.url",
                do="Add --server.url URL or leave it out",
            )
            return
        if not self.url.startswith(("http://", "https://")):
            raise ConfigError(
                "server.url is no address", got=self.url, expected="http://HOST:PORT or https://HOST"
            )
        check_range(self, "[1, inf)", "concurrency", prefix="server.")
        check_range(self, "[0, inf)", "retries", "backoff_s", prefix="server.")
        check_range(self, "(0, inf)", "timeout_s", prefix="server.")


class Refused(ServerError):
    """The server answered that it will not: a status of 400 and above that another try does not mend."""

    def __init__(self, path: str, status: int, detail: str):
        super().__init__(
            f"The server refuses {path}",
            got=f"status {status}: {detail}",
            do="Change what it names, or choose another api or server",
        )
        self.status = status


def connect(options: ServerOptions) -> httpx2.AsyncClient:
    """A client whose connections are those of `concurrency` requests; the key is read from the environment
    now.
    """
    headers = {}
    if options.api_key_env:
        key = os.environ.get(options.api_key_env)
        if not key:
            raise ConfigError(
                f"The environment variable {options.api_key_env} holds no key",
                got="nothing",
                expected="what server.api_key_env names",
            )
        headers["Authorization"] = f"Bearer {key}"
    return httpx2.AsyncClient(
        base_url=options.url.rstrip("/").removesuffix("/v1"),
        headers=headers,
        timeout=options.timeout_s,
        limits=httpx2.Limits(max_connections=options.concurrency),
        verify=options.url.startswith(
            "https"
        ),  # certificates take a while to load, and http has no use for them
    )


async def ask(
    client: httpx2.AsyncClient,
    options: ServerOptions,
    path: str,
    body: dict[str, Any] | None,
    read: Callable[[str], T],
) -> T:
    """What `read` makes of the text that answers a POST of `body` as JSON (a GET if it is None).

    Tried again with back-off: no connection, no answer in time, a status that says "later", an answer that
    `read` cannot use (KeyError, IndexError, TypeError or ValueError, as of malformed JSON). Other refusals
    are Refused at once.
    """
    told, wait = "", 0.0
    for attempt in range(options.retries + 1):
        if attempt:
            await asyncio.sleep(min(max(wait, options.backoff_s * 2 ** (attempt - 1)), _LONGEST_WAIT_S))
        wait = 0.0
        try:
            answer = await (client.get(path) if body is None else client.post(path, json=body))
        except httpx2.TransportError as error:
            told = f"{type(error).__name__} {error}".strip()
            continue
        if answer.status_code in _AGAIN or answer.status_code >= 500:
            told = f"status {answer.status_code}: {shown(answer.text, 200)}"
            wait = _seconds(answer.headers.get("Retry-After", ""))
            continue
        if not answer.is_success:
            raise Refused(path, answer.status_code, shown(answer.text, 300))
        try:
            return read(answer.text)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            told = (
                f"an answer that cannot be used ({type(error).__name__}: {error}): {shown(answer.text, 200)}"
            )
    raise ServerError(
        f"The server at {options.url} gave no answer to {path} in {options.retries + 1} tries",
        got=told,
        do="See whether it runs; server.timeout_s and server.retries say how long to wait",
    )


def _seconds(text: str) -> float:
    return float(text) if text.isdigit() else 0.0


async def ask_all(
    options: ServerOptions, items: Iterable[T], work: Callable[[T], Coroutine[Any, Any, None]]
) -> None:
    """`await work(item)` for all items, `concurrency` at a time. The first error stops the others and is
    raised.
    """
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(options.concurrency):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None
