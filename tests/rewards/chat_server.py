"""A real HTTP server that speaks as much of the chat protocol as a judge needs, and misbehaves on demand."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Reply = str | tuple[int, str] | tuple[int, str, dict[str, str]] | None
"""The text of an answer; or status, body and headers as they stand; None drops the connection."""


def chat(content: object) -> str:
    return json.dumps(
        {"choices": [{"message": {"role": "assistant", "content": content}, "finish_reason": "stop"}]}
    )


@dataclass
class Peer:
    """What was asked, and how to answer: `answer(question, number)` with the number of requests so far, from
    0.
    """

    url: str
    port: int
    questions: list[str] = field(default_factory=list)
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    most_at_once: int = 0


@contextmanager
def serving(
    answer: Callable[[str, int], Reply], port: int = 0, *, chunk: int = 1 << 20, pause: float = 0.0
) -> Iterator[Peer]:
    """A server that sends `chunk` bytes at a time, with pauses (seconds) after each."""
    lock, busy = threading.Lock(), [0]

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            question = body["messages"][-1]["content"]
            with lock:
                busy[0] += 1
                peer.most_at_once = max(peer.most_at_once, busy[0])
                number = len(peer.questions)
                peer.questions.append(question)
                peer.bodies.append(body)
                peer.headers.append(dict(self.headers))
            try:
                reply = answer(question, number)
            finally:
                with lock:
                    busy[0] -= 1
            if reply is None or self.path != "/v1/chat/completions":
                self.close_connection = True
                self.connection.close()
                return
            status, text, *more = (200, chat(reply)) if isinstance(reply, str) else reply
            self.send_response(status)
            for name, value in {
                "Content-Length": str(len(text.encode())),
                **(more[0] if more else {}),
            }.items():
                self.send_header(name, value)
            self.end_headers()
            for start in range(0, len(text.encode()), chunk):
                self.wfile.write(text.encode()[start : start + chunk])
                self.wfile.flush()
                time.sleep(pause)

        def log_message(self, *_: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True
        allow_reuse_address = True

        def handle_error(self, *_: object) -> None:  # clients go away, which is the point of some tests
            pass

    server = Server(("127.0.0.1", port), Handler)
    peer = Peer(url=f"http://127.0.0.1:{server.server_port}/v1", port=server.server_port)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield peer
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
