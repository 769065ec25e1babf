"""Requests to an HTTP server: many at a time, within limits of time and size, retried, every reply checked.

Everything that preftune sends over HTTP goes through `HttpClient`: completions, judges, adapters.
"""

import asyncio
import json
import os
import random
import re
import zlib
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar
from urllib.request import getproxies

import httpx2
import tenacity

from preftune.errors import ConfigError, ServerError, shown

T = TypeVar("T")

RETRIED = frozenset({408, 409, 425, 429})  # and all of 500 and above: the same request may succeed later
MAX_WAIT_S = 60.0  # seconds between two attempts at most, whatever Retry-After states
MAX_CONNECT_S = 30.0
MAX_BODY_BYTES = 64 << 20  # of a reply, decompressed; 32,000 tokens with log-probabilities are about 4 MiB
MAX_DEPTH = 64  # of nested arrays and objects in a reply
_ENGINE_DIED = ("EngineCore encountered an issue", "EngineDeadError")  # what vLLM's front end answers then
MIN_SECRET = 4  # characters; shorter values would strike out ordinary text
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")  # other names may be a key: no message shows them


@dataclass(frozen=True, kw_only=True)
class Endpoint:
    """A server and how patiently to wait for it.

    `timeout_s` bounds one request as a whole: connecting, waiting and reading. After a failure that may pass,
    a request is sent again up to `retries` times, after `backoff_s`, twice that, ... seconds with jitter.
    """

    url: str
    subject: str = "The server"  # how messages name it
    setting: str = "server"  # the section whose settings messages name
    api_key: str | None = None
    concurrency: int = 16
    timeout_s: float = 600.0
    retries: int = 5
    backoff_s: float = 1.0


class Refused(ServerError):
    """The server answered with a status that another attempt does not change."""

    def __init__(self, endpoint: Endpoint, path: str, status: int, detail: str, do: str | None = None):
        super().__init__(
            f"{endpoint.subject} at {endpoint.url} refuses {path}",
            got=f"status {status}: {detail}",
            do=do or "Change what the request names, or choose another server",
        )
        self.status = status
        self.detail = detail


class Silent(ServerError):
    """The server gave no usable answer in all attempts: it may be gone, or about to come back."""


class EngineDied(ServerError):
    """The server's front end still answers, but its engine has stopped; only a new start of it helps."""


class Withheld(Exception):
    """The server withholds this one answer for good, for example because of a content filter."""


class _Retry(Exception):
    """An attempt failed in a way that may pass; `wait_s` is what the server requested."""

    def __init__(self, detail: str, wait_s: float = 0.0):
        super().__init__(detail)
        self.wait_s = wait_s


_KEY_ADVICE = "Put the key into an environment variable and name the variable in api_key_env"


def check_url(name: str, url: str, do: str = _KEY_ADVICE) -> None:
    """Refuse what is no address of a server. A URL may hold a password: the message never shows that part, and `do`
    states where the password belongs.
    """
    try:
        parsed = httpx2.URL(url)
        usable = parsed.scheme in ("http", "https") and bool(parsed.host) and (parsed.port or 1) < 65536
    except (httpx2.InvalidURL, TypeError, ValueError):
        parsed, usable = None, False
    bare = re.sub(r"//.*@", "//", url)
    if parsed is not None and (parsed.userinfo or "@" in url.partition("//")[2].partition("/")[0]):
        raise ConfigError(
            f"{name} holds a user name or password, which would be written into configurations and reports",
            got="an address with '@'",
            expected="http://HOST:PORT",
            do=do,
        )
    if parsed is not None and (parsed.query or parsed.fragment):
        raise ConfigError(
            f"{name} has a query or fragment, which may hold a key",
            got=shown(bare.partition("?")[0].partition("#")[0]),
            expected="http://HOST:PORT without '?' and '#'",
            do=do,
        )
    if not usable or any(char.isspace() or not char.isprintable() for char in url):
        raise ConfigError(
            f"{name} is no address", got=shown(bare), expected="http://HOST:PORT or https://HOST"
        )


def read_key(variable: str | None, setting: str) -> str | None:
    """The key that an environment variable holds; None if no variable is named."""
    if not variable:
        return None
    key = os.environ.get(variable, "").strip()
    if not key and not _VARIABLE.fullmatch(variable):
        raise ConfigError(
            f"{setting} names no environment variable",
            got=f"{len(variable)} characters, which may be the key itself",
            expected="the name of a variable that is set, such as MY_API_KEY",
            do="Put the key into an environment variable and give the name of the variable",
        )
    if not key:
        raise ConfigError(
            f"The environment variable {variable} holds no key",
            got="nothing",
            expected=f"the variable that {setting} names",
            do=f"Set {variable}, or leave {setting} out",
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(
            f"The environment variable {variable} holds no key that a header can carry",
            expected="printable ASCII characters",
        )
    return key


class HttpClient:
    """An open connection pool to one endpoint; use as `async with HttpClient(endpoint) as client`."""

    def __init__(self, endpoint: Endpoint):
        self.endpoint = endpoint
        headers = {"Accept-Encoding": "identity"}
        if endpoint.api_key is not None:
            headers["Authorization"] = f"Bearer {endpoint.api_key}"
        with _environment_errors():
            for proxy in getproxies().values():
                if (httpx2.URL(proxy).port or 1) > 65535:
                    raise ValueError("the port of a proxy")
            self._client = httpx2.AsyncClient(
                base_url=endpoint.url,
                headers=headers,
                timeout=httpx2.Timeout(endpoint.timeout_s, connect=min(endpoint.timeout_s, MAX_CONNECT_S)),
                limits=httpx2.Limits(max_connections=endpoint.concurrency),
                follow_redirects=False,  # a key must not travel to another host
                verify=endpoint.url.startswith(
                    "https"
                ),  # loading certificates takes a while; http has no use
            )

    async def __aenter__(self) -> "HttpClient":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self._client.aclose()

    async def request(self, path: str, body: dict[str, Any] | None, read: Callable[[Any], T]) -> T:
        """What `read` makes of the JSON that answers a POST of `body` (a GET if it is None).

        Retried: no connection, no complete answer within `timeout_s`, a status that means "later", an error
        object in place of an answer, an answer that `read` cannot use. Raises Refused for other statuses,
        Withheld where `read` does, ServerError once the attempts are used up.
        """
        return await self._retried(path, body, lambda text: read(self._unescaped(_parsed(text))))

    async def send(self, path: str, body: dict[str, Any]) -> None:
        """POST `body` where the text of the answer does not matter."""
        await self._retried(path, body, lambda text: None)

    async def _retried(self, path: str, body: dict[str, Any] | None, use: Callable[[str], T]) -> T:
        endpoint = self.endpoint
        waits = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(endpoint.retries + 1),
            retry=tenacity.retry_if_exception_type(_Retry),
            wait=self._wait,
            reraise=True,
        )
        try:
            return await waits(self._attempt, path, body, use)
        except _Retry as failure:
            raise Silent(
                f"{endpoint.subject} at {endpoint.url} gave no answer to {path} in {endpoint.retries + 1} tries",
                got=str(failure),
                do=f"Check that it runs; {endpoint.setting}.timeout_s and {endpoint.setting}.retries set how "
                "long to wait",
            ) from None

    def _wait(self, state: tenacity.RetryCallState) -> float:
        """Seconds before the next attempt: exponential with jitter, or what Retry-After requests."""
        failure = state.outcome.exception() if state.outcome is not None else None
        asked = failure.wait_s if isinstance(failure, _Retry) else 0.0
        backoff = self.endpoint.backoff_s * 2.0 ** min(state.attempt_number - 1, 30) * random.uniform(1, 2)
        return min(max(asked, backoff), MAX_WAIT_S)

    async def _attempt(self, path: str, body: dict[str, Any] | None, use: Callable[[str], T]) -> T:
        endpoint = self.endpoint
        try:
            async with asyncio.timeout(endpoint.timeout_s):  # httpx limits each read; a slow drip has no end
                status, headers, text = await self._exchange(path, body)
        except TimeoutError:
            raise _Retry(f"no complete answer within {endpoint.timeout_s:g} s") from None
        except (httpx2.TransportError, httpx2.DecodingError, zlib.error) as error:
            raise _Retry(self._redacted(_sentence_of(error))) from None
        except OSError as error:
            raise ServerError(
                f"Cannot connect to {endpoint.subject.lower()} at {endpoint.url}",
                got=error.strerror or str(error),
                do=f"Raise the limit of open files, or lower {endpoint.setting}.concurrency",
            ) from error
        text = self._redacted(text)
        if status >= 500 and any(sign in text for sign in _ENGINE_DIED):
            raise EngineDied(
                f"The engine of {endpoint.subject.lower()} at {endpoint.url} died",
                got=f"status {status} for {path}: {shown(text, 200)}",
                do="Its log shows why. Start it again; on a CPU, vLLM dies of many seeded requests at once "
                f"unless it has --max-num-batched-tokens 8192, or a lower {endpoint.setting}.concurrency",
            )
        if status in RETRIED or status >= 500:
            raise _Retry(f"status {status}: {shown(text, 200)}", _retry_after(headers))
        if 300 <= status < 400:
            target = self._redacted(headers.get("location", "nowhere"))
            raise Refused(
                endpoint,
                path,
                status,
                f"a redirect to {shown(target, 120)}",
                "Redirects are not followed; if you trust that address, name it as the url",
            )
        if not 200 <= status < 300:
            raise Refused(endpoint, path, status, shown(text, 300))
        try:
            self._check_error(path, text)
            return use(text)
        except (KeyError, IndexError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
            raise _Retry(
                f"an answer that cannot be used ({type(error).__name__}: {shown(str(error), 120)}): "
                f"{shown(text, 200)}"
            ) from None

    async def _exchange(self, path: str, body: dict[str, Any] | None) -> tuple[int, httpx2.Headers, str]:
        method = "GET" if body is None else "POST"
        async with self._client.stream(method, path, json=body) as response:
            encoding = response.headers.get("content-encoding", "identity").lower()
            content = await _read_limited(response.aiter_raw(), encoding)
            return response.status_code, response.headers, content.decode("utf-8", errors="replace")

    def _check_error(self, path: str, text: str) -> None:
        """Some servers put an error into a reply of status 200."""
        if not text.lstrip().startswith("{"):
            return
        content = _parsed(text)
        error = content.get("error")
        if not error or any(key in content for key in ("choices", "data")):
            return
        code = error.get("code", error.get("status")) if isinstance(error, dict) else None
        status = int(str(code)) if str(code).isdecimal() else 500
        if status in RETRIED or status >= 500:
            raise _Retry(f"an error in place of an answer: {shown(text, 200)}")
        raise Refused(self.endpoint, path, status, shown(text, 300))

    def _redacted(self, text: str) -> str:
        """The text of a server without the key that was sent to it."""
        key = self.endpoint.api_key
        return text if key is None or len(key) < MIN_SECRET else text.replace(key, "[key]")

    def _unescaped(self, value: Any) -> Any:
        """The same for the value of a JSON text, in which escapes may have hidden the key."""
        if isinstance(value, str):
            return self._redacted(value)
        if isinstance(value, list) and value and not isinstance(value[0], int | float):
            return [self._unescaped(item) for item in value]
        if isinstance(value, dict):
            return {name: self._unescaped(item) for name, item in value.items()}
        return value


@contextmanager
def _environment_errors() -> Iterator[None]:
    """Within, environment variables that no client can be made of are errors. An address of a proxy may hold a
    password, so no message shows the variable.
    """
    try:
        yield
    except OSError as error:
        raise ConfigError(
            "The certificates of HTTPS servers cannot be read",
            got=error.strerror or str(error),
            expected="files with certificates in SSL_CERT_FILE and SSL_CERT_DIR",
            do="Correct these environment variables, or unset them",
        ) from error
    except ImportError as error:
        raise ConfigError(
            "The environment names a SOCKS proxy, and the library for SOCKS is not installed",
            do="Install it with: pip install socksio, or unset ALL_PROXY, HTTP_PROXY and HTTPS_PROXY",
        ) from error
    except (ValueError, httpx2.InvalidURL) as error:
        raise ConfigError(
            "An environment variable names a proxy that cannot be used",
            got=type(error).__name__,
            expected="http://HOST:PORT in HTTP_PROXY, HTTPS_PROXY and ALL_PROXY",
            do="Correct these variables, or unset them",
        ) from None


def only_choice(content: Any) -> Any:
    """The one answer that was requested."""
    choices = content["choices"]
    if not isinstance(choices, list) or len(choices) != 1:
        raise ValueError(f"one choice was requested: {shown(choices)}")
    return choices[0]


async def run_all(
    concurrency: int, items: Iterable[T], work: Callable[[T], Coroutine[Any, Any, None]]
) -> None:
    """`await work(item)` for all items, `concurrency` at a time. The first error stops the rest and is raised."""
    waiting = iter(items)

    async def worker() -> None:
        for item in waiting:
            await work(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(worker())
    except BaseExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def _read_limited(chunks: AsyncIterator[bytes], encoding: str) -> bytes:
    """A body, decompressed, of at most MAX_BODY_BYTES: a small compressed body can hold gigabytes."""
    if encoding not in ("identity", "", "gzip", "x-gzip", "deflate"):
        raise httpx2.DecodingError(f"content-encoding {shown(encoding)}, although none was requested")
    inflate = None if encoding in ("identity", "") else zlib.decompressobj(wbits=47)  # gzip or zlib by header
    body = bytearray()
    async for chunk in chunks:
        room = MAX_BODY_BYTES + 1 - len(body)
        body += chunk[:room] if inflate is None else inflate.decompress(chunk, room)
        if len(body) > MAX_BODY_BYTES or (inflate is not None and inflate.unconsumed_tail):
            raise httpx2.DecodingError(f"a reply of more than {MAX_BODY_BYTES >> 20} MiB")
    return bytes(body)


def _parsed(text: str) -> Any:
    """JSON without NaN, of limited depth."""
    _check_depth(text)

    def refuse(name: str) -> float:
        raise ValueError(f"{name} is no JSON number")

    return json.loads(text, parse_constant=refuse)


def _check_depth(text: str) -> None:
    depth = 0
    for match in re.finditer(r'"(?:[^"\\]|\\.)*+"|[\[{]|[\]}]', text, re.DOTALL):
        char = match[0]
        depth += 1 if char in "[{" else -1 if char in "]}" else 0
        if depth > MAX_DEPTH:
            raise ValueError(f"JSON nested more than {MAX_DEPTH} deep")


def _retry_after(headers: httpx2.Headers) -> float:
    """Seconds to wait by the server's reply, where it states them in ASCII digits."""
    text = headers.get("retry-after", "").strip()
    return min(float(text), MAX_WAIT_S) if text.isascii() and text.isdecimal() and len(text) < 9 else 0.0


def _sentence_of(error: Exception) -> str:
    return f"{type(error).__name__} {error}".strip()
