"""Questions to a model behind an OpenAI-compatible chat endpoint: many at a time, each with a time limit,
repeated after faults.
"""

import asyncio
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preftune.errors import TrainingError, shown
from preftune.timed import run_apart

AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)  # statuses after which the same question may succeed
LONGEST_WAIT_S = 60.0


@dataclass(frozen=True, kw_only=True)
class ChatServer:
    """Where to ask and how. After a fault the question is put again `retries` times, after waits of
    `backoff_s`, twice that, ..., each made up to twice as long at random, so that clients do not come back
    together.
    """

    url: str  # up to and without /chat/completions
    model: str
    api_key: str | None
    temperature: float
    max_tokens: int
    concurrency: int
    timeout_s: float  # of one request
    retries: int
    backoff_s: float


def ask_all(server: ChatServer, questions: Sequence[str]) -> list[str]:
    """The text of each answer, empty where there is none; a TrainingError if the server fails for good."""
    return run_apart(lambda: asyncio.run(_ask_all(server, questions)), None) if questions else []


async def _ask_all(server: ChatServer, questions: Sequence[str]) -> list[str]:
    import httpx2

    headers = {} if server.api_key is None else {"Authorization": f"Bearer {server.api_key}"}
    places = asyncio.Semaphore(server.concurrency)
    async with httpx2.AsyncClient(timeout=server.timeout_s, headers=headers) as client:

        async def one(question: str) -> str:
            async with places:
                return await _ask(server, client, question)

        return list(await asyncio.gather(*map(one, questions)))


async def _ask(server: ChatServer, client: Any, question: str) -> str:
    import httpx2

    body = {
        "model": server.model,
        "messages": [{"role": "user", "content": question}],
        "temperature": server.temperature,
        "max_tokens": server.max_tokens,
    }
    address, fault, wait = f"{server.url.rstrip('/')}/chat/completions", "", 0.0
    for attempt in range(server.retries + 1):
        if attempt:
            await asyncio.sleep(max(wait, server.backoff_s * 2 ** (attempt - 1) * random.uniform(1, 2)))
        try:
            # The client's own limit is for each read; a server that drips bytes would never reach it.
            response = await asyncio.wait_for(client.post(address, json=body), server.timeout_s)
        except (httpx2.TransportError, TimeoutError) as error:
            fault, wait = f"{type(error).__name__} {error}".strip(), 0.0
            continue
        if response.status_code in AGAIN:
            fault, wait = _told(response), _retry_after(response)
            continue
        if not response.is_success:
            raise TrainingError(
                f"The judge at {address} refuses the question",
                got=_told(response),
                do="Check url, model and api_key_env",
            )
        return _content(response, address)
    raise TrainingError(
        f"The judge at {address} does not answer, asked {server.retries + 1} times",
        got=fault,
        do="Start the server again, or raise timeout_s or retries",
    )


def _told(response: Any) -> str:
    return f"HTTP {response.status_code} {shown(response.text, 200)}"


def _retry_after(response: Any) -> float:
    """Seconds that the server asks to wait, where it says so in seconds."""
    text = response.headers.get("retry-after", "")
    return min(float(text), LONGEST_WAIT_S) if text.isdecimal() else 0.0


def _content(response: Any, address: str) -> str:
    try:
        content = response.json()["choices"][0]["message"]["content"]
    except (ValueError, KeyError, IndexError, TypeError):
        raise TrainingError(
            f"The judge at {address} is no chat endpoint",
            got=shown(response.text, 120),
            expected="JSON {choices: [{message: {content}}]}",
            do="Check url",
        ) from None
    return content if isinstance(content, str) else ""  # null: a refusal, or thoughts up to the limit
