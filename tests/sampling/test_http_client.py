"""The HTTP client against real servers that drip, flood, compress, redirect, echo secrets and answer nonsense."""

import asyncio
import contextlib
import gzip
import json
import resource
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

import pytest

from preftune.errors import ConfigError, ServerError
from preftune.sampling import http_client
from preftune.sampling.http_client import Endpoint, EngineDied, HttpClient, Refused, check_url, run_all

FAST = Endpoint(url="", retries=1, backoff_s=0.01, timeout_s=5.0, concurrency=4)
SECRET = "sk-canary-1234567890"


@contextmanager
def serving(handle: Callable[[socket.socket, int], None]) -> Iterator[str]:
    """A TCP server; `handle` gets each connection, once its request was read, with the number of earlier ones."""
    listener = socket.create_server(("127.0.0.1", 0))
    count = iter(range(10**6))

    def one(connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):  # clients go away, which is what some tests are about
            request = b""
            while not request.endswith(b'{"a":1}'):
                request += connection.recv(1 << 16)
            handle(connection, next(count))

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=one, args=(connection,), daemon=True).start()

    threading.Thread(target=accept, daemon=True).start()
    with listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def reply(body: bytes | str, status: str = "200 OK", **headers: str) -> bytes:
    body = body.encode() if isinstance(body, str) else body
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def ask(url: str, endpoint: Endpoint = FAST, read=lambda content: content):
    async def run():
        async with HttpClient(replace(endpoint, url=url)) as client:
            return await client.request("/x", {"a": 1}, read)

    return asyncio.run(run())


def test_an_answer_is_read():
    with serving(lambda c, n: c.sendall(reply('{"choices": [1, "é"]}'))) as url:
        assert ask(url) == {"choices": [1, "é"]}


def test_a_drip_has_an_end():
    def drip(connection, number):
        connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        for _ in range(200):
            connection.sendall(b" ")
            time.sleep(0.05)

    started = time.monotonic()
    with serving(drip) as url, pytest.raises(ServerError, match=r"no complete answer within 0.3 s"):
        ask(url, replace(FAST, timeout_s=0.3))
    assert time.monotonic() - started < 5


def test_an_endless_body_is_cut_off(monkeypatch):
    monkeypatch.setattr(http_client, "MAX_BODY_BYTES", 1 << 20)
    sent = [0]

    def flood(connection, number):
        connection.sendall(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
        while True:
            connection.sendall(b"x" * (1 << 16))
            sent[0] += 1 << 16

    with serving(flood) as url, pytest.raises(ServerError, match="a reply of more than 1 MiB"):
        ask(url)
    assert sent[0] < 64 << 20  # what the sockets' buffers take


def test_a_compressed_bomb_takes_no_memory():
    bomb = gzip.compress(b" " * (300 << 20), compresslevel=6)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with (
        serving(lambda c, n: c.sendall(reply(bomb, Content_Encoding="gzip"))) as url,
        pytest.raises(ServerError, match="a reply of more than 64 MiB"),
    ):
        ask(url, replace(FAST, retries=0))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200 << 10  # KiB


def test_gzip_is_read_though_it_was_not_asked_for():
    body = gzip.compress(b'{"choices": []}')
    with serving(lambda c, n: c.sendall(reply(body, Content_Encoding="gzip"))) as url:
        assert ask(url) == {"choices": []}


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("[" * 200_000, "nested more than 64 deep"),
        ('{"a": ' * 70 + "1" + "}" * 70, "nested more than 64 deep"),
        ('{"choices": [NaN]}', "NaN is no JSON number"),
        ("9" * 5000, "ValueError"),
        ("{", "JSONDecodeError"),
        ("", "JSONDecodeError"),
        (b"\xff\xfe\x00", "JSONDecodeError"),
    ],
)
def test_bodies_that_are_no_answer(body, told):
    with serving(lambda c, n: c.sendall(reply(body))) as url, pytest.raises(ServerError, match=told):
        ask(url)


@pytest.mark.parametrize(
    "error", [KeyError("a"), AttributeError("b"), OverflowError("c"), TypeError("d"), ValueError("e")]
)
def test_answers_that_the_reader_cannot_use_are_asked_for_again(error):
    asked = [0]

    def handle(connection, number):
        asked[0] += 1
        connection.sendall(reply(json.dumps({"number": number})))

    def read(content):
        if content["number"] == 0:
            raise error
        return content["number"]

    with serving(handle) as url:
        assert ask(url, read=read) == 1
    assert asked[0] == 2


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("2", 2.0), ("999999", 60.0), ("²", 0.0), ("-1", 0.0), ("1e3", 0.0), ("soon", 0.0)],
)
def test_retry_after(header, seconds):
    headers = http_client.httpx2.Headers([(b"Retry-After", header.encode())])
    assert http_client._retry_after(headers) == seconds


def test_retries_wait_longer_each_time_with_jitter():
    client = HttpClient(replace(FAST, url="http://x", backoff_s=1.0))
    state = http_client.tenacity.RetryCallState(None, None, (), {})
    waits = []
    for attempt in (1, 2, 3, 30):
        state.attempt_number = attempt
        waits.append([client._wait(state) for _ in range(50)])
    for k, base in enumerate((1, 2, 4)):
        assert base <= min(waits[k]) < max(waits[k]) <= 2 * base
    assert set(waits[3]) == {60.0}


def test_an_error_with_status_200_is_asked_again_or_told():
    busy = '{"error": {"code": 502, "message": "upstream"}}'
    with serving(lambda c, n: c.sendall(reply(busy if n == 0 else '{"choices": [7]}'))) as url:
        assert ask(url) == {"choices": [7]}
    wrong = '{"error": {"code": 401, "message": "no such key"}}'
    with serving(lambda c, n: c.sendall(reply(wrong))) as url, pytest.raises(Refused, match="no such key"):
        ask(url)


def test_a_redirect_is_told_and_not_followed():
    other = [0]

    def target(connection, number):
        other[0] += 1
        connection.sendall(reply('{"choices": []}'))

    with serving(target) as there:
        answer = reply("", "307 Temporary Redirect", Location=f"{there}/x")
        with (
            serving(lambda c, n: c.sendall(answer)) as url,
            pytest.raises(Refused, match=r"a redirect to .*Redirects are not followed"),
        ):
            ask(url, replace(FAST, api_key=SECRET))
    assert other[0] == 0


@pytest.mark.parametrize("status", ["401 Unauthorized", "500 Internal Server Error", "200 OK", "307 Moved"])
def test_a_key_that_a_server_echoes_is_struck_out(status):
    echo = reply(f"no: Bearer {SECRET}", status, Location=f"http://x/{SECRET}")
    with serving(lambda c, n: c.sendall(echo)) as url, pytest.raises(ServerError) as caught:
        ask(url, replace(FAST, api_key=SECRET))
    assert SECRET not in str(caught.value) and SECRET not in repr(caught.value.__dict__)


@pytest.mark.parametrize(
    "url",
    [
        f"http://user:{SECRET}@host:1/v1",
        f"https://{SECRET}@host",
        f"http://host/v1?key={SECRET}",
        f"http://host/v1#{SECRET}",
        f"ftp://u:{SECRET}@host",
        f"http://u:{SECRET}@",
        f"//u:{SECRET}@host",
        f"http://u:{SECRET}@[bad",
    ],
)
def test_urls_with_secrets_are_refused_without_showing_them(url):
    with pytest.raises(ConfigError) as caught:
        check_url("server.url", url)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("url", ["localhost:8000", "", "http://", "http://a b", "http://a\n", "file:///etc"])
def test_what_is_no_address_is_refused(url):
    with pytest.raises(ConfigError, match="is no address"):
        check_url("server.url", url)


@pytest.mark.parametrize(
    "url", ["http://localhost:8000", "https://api.example.org/v1", "http://[::1]:80/v1/"]
)
def test_addresses_are_taken(url):
    check_url("server.url", url)


def test_no_more_at_once_than_asked():
    running, most, done = [0], [0], []

    async def work(item):
        running[0] += 1
        most[0] = max(most[0], running[0])
        await asyncio.sleep(0.001)
        running[0] -= 1
        done.append(item)

    asyncio.run(run_all(3, range(20), work))
    assert most[0] == 3 and sorted(done) == list(range(20))


def test_the_first_error_ends_the_rest():
    async def work(item):
        if item == 2:
            raise ServerError("two")
        await asyncio.sleep(30 if item > 2 else 0)

    started = time.monotonic()
    with pytest.raises(ServerError, match="two"):
        asyncio.run(run_all(4, range(20), work))
    assert time.monotonic() - started < 5


def test_nobody_listens():
    with socket.create_server(("127.0.0.1", 0)) as gone:
        port = gone.getsockname()[1]
    with pytest.raises(ServerError, match=r"in 2 tries; got ConnectError"):
        ask(f"http://127.0.0.1:{port}")


def test_what_a_server_says_is_cut_short_in_messages():
    long = reply(json.dumps("x" * 100_000), "400 Bad Request")
    with serving(lambda c, n: c.sendall(long)) as url, pytest.raises(Refused) as caught:
        ask(url)
    assert len(str(caught.value)) < 700


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 Bearer %s\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nBearer %s\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: %s\r\nContent-Length: 1\r\n\r\nx",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%s\r\n{}",
    ],
)
def test_a_key_in_a_malformed_answer_is_not_told(answer):
    with (
        serving(lambda c, n: c.sendall(answer % SECRET.encode())) as url,
        pytest.raises(ServerError, match=r"\[key\]") as caught,
    ):
        ask(url, replace(FAST, api_key=SECRET, retries=0))
    assert SECRET not in str(caught.value)


def test_a_key_that_a_server_writes_in_escapes_is_struck_out():
    key, escaped = "abc/def+123", r"abc\/def\u002b123"
    body = f'{{"choices": [{{"text": "{escaped}", "names": {{"a": ["{escaped}"]}}, "ids": [1, 2]}}]}}'
    with serving(lambda c, n: c.sendall(reply(body))) as url:
        content = ask(url, replace(FAST, api_key=key))
    assert content == {"choices": [{"text": "[key]", "names": {"a": ["[key]"]}, "ids": [1, 2]}]}


@pytest.mark.parametrize("choices", ["[]", "[{}, {}]", '{"0": {}}', "null"])
def test_another_number_of_choices_than_requested_is_refused(choices):
    with (
        serving(lambda c, n: c.sendall(reply(f'{{"choices": {choices}}}'))) as url,
        pytest.raises(ServerError, match="one choice was requested"),
    ):
        ask(url, replace(FAST, retries=0), http_client.only_choice)


@pytest.mark.parametrize(
    ("variable", "value", "told"),
    [
        ("ALL_PROXY", "ftp://user:{}@127.0.0.1:9", "a proxy that cannot be used"),
        ("HTTP_PROXY", "http://user:{}/x@127.0.0.1:9", "a proxy that cannot be used"),
        ("HTTP_PROXY", "http://user:{}@127.0.0.1:9999999", "a proxy that cannot be used"),
        ("HTTP_PROXY", "socks5://user:{}@127.0.0.1:9", "pip install socksio"),
        ("HTTP_PROXY", "http://user:{}@127.0.0.1:9", "ConnectError"),
    ],
)
def test_a_proxy_that_cannot_be_used_is_one_sentence_without_its_password(variable, value, told, monkeypatch):
    for name in ("NO_PROXY", "no_proxy", "http_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(variable, value.format(SECRET))
    with pytest.raises((ConfigError, ServerError), match=told) as caught:
        ask("http://example.invalid", replace(FAST, retries=0))
    assert SECRET not in str(caught.value)


def test_certificates_that_are_not_there_are_one_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    with pytest.raises(ConfigError, match="SSL_CERT_FILE"):
        ask("https://127.0.0.1:9", replace(FAST, retries=0))


@pytest.mark.parametrize("name", [f"sk-{SECRET}", SECRET.replace("-", "_")])
def test_a_key_in_the_place_of_its_variable_is_not_told(name):
    with pytest.raises(ConfigError, match="names no environment variable") as caught:
        http_client.read_key(name, "server.api_key_env")
    assert name not in str(caught.value)


def test_an_engine_that_died_is_named_and_not_asked_again():
    asked = []

    def handle(connection: socket.socket, earlier: int) -> None:
        asked.append(earlier)
        told = {"error": {"message": "EngineCore encountered an issue. See stack trace (above)", "code": 500}}
        connection.sendall(reply(json.dumps(told), "500 Internal Server Error"))

    with (
        serving(handle) as url,
        pytest.raises(EngineDied, match=r"engine of the server.*--max-num-batched-tokens 8192"),
    ):
        ask(url)
    assert asked == [0]
