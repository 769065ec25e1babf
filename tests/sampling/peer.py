"""A small HTTP server that speaks the OpenAI protocol, as a process of its own. Its completions follow from
the request.

    python peer.py PORT_FILE '{"style": "tokens", "fail": 0, ...}'

`style`: "tokens" takes token ids and tells token ids and log-probabilities; "bare" takes token ids and tells
text alone; "transformers" takes messages with a generation configuration and refuses fields it does not know;
"chat" takes messages alone; "reasoning" the same with max_completion_tokens and without temperature. A prompt
that holds `filtered` gets finish_reason content_filter. Faults, each for so many of the first requests for a
completion: `fail` (status 500), `busy` (429 with Retry-After), `malformed` (half a JSON object), `incomplete`
(JSON without choices), `hang` (no answer); `die_after` ends the process in the middle of an answer once so
many have been given; `key` is the key that is wanted.
"""

import hashlib
import json
import os
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

SETTINGS = {
    "style": "tokens",
    "die_after": -1,
    "key": "",
    "eos": True,
    "delay": 0.0,
    "filtered": "",
} | json.loads(sys.argv[2])
FAULTS = {name: SETTINGS.get(name, 0) for name in ("fail", "busy", "malformed", "incomplete", "hang")}
STATS = {"requests": 0, "answered": 0, "running": 0, "most": 0, "bodies": [], "adapters": []}
LOCK = threading.Lock()
END = 4  # <|im_end|> of the tests' tokenizer
COMMON = {"model", "max_tokens", "temperature", "top_p", "seed", "stop"}


def drawn(body) -> tuple[list[int], list[float], bool]:
    """Tokens of printable letters, with their log-probabilities."""
    digest = hashlib.sha256(json.dumps(body, sort_keys=True).encode()).digest()
    length = min(body["max_tokens"], 1 + digest[0] % 9)
    ids = [42 + byte % 26 for byte in digest[1 : length + 1]]
    ended = length < body["max_tokens"]
    if ended:
        ids[-1] = END
    return ids, [-byte / 100 for byte in digest[1 : length + 1]], ended


def text_of(ids: list[int]) -> str:
    return "".join(chr(token - 42 + ord("A")) for token in ids if token != END)


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_):
        pass

    def send(self, status: int, text: str, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def do_GET(self) -> None:
        if self.path == "/stats":
            self.send(200, json.dumps(STATS))
        elif self.path == "/v1/models":
            self.send(200, json.dumps({"data": [{"id": "tiny"}]}))
        else:
            self.send(404, "no such page")

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if SETTINGS["key"] and self.headers.get("Authorization") != f"Bearer {SETTINGS['key']}":
            return self.send(401, json.dumps({"error": "a key is wanted"}))
        if self.path.endswith("lora_adapter"):
            if SETTINGS["style"] != "tokens":
                return self.send(404, "not found")
            STATS["adapters"].append([self.path, body])
            return self.send(200, "Success: it is loaded")
        with LOCK:
            STATS["requests"] += 1
            STATS["bodies"].append([self.path, body])
            STATS["running"] += 1
            STATS["most"] = max(STATS["most"], STATS["running"])
            fault = next((name for name, left in FAULTS.items() if left > 0), None)
            if fault:
                FAULTS[fault] -= 1
        try:
            time.sleep(SETTINGS["delay"])
            self.answer(fault, body)
        finally:
            with LOCK:
                STATS["running"] -= 1

    def answer(self, fault: str | None, body) -> None:
        if fault == "hang":
            time.sleep(60)
        elif fault == "fail":
            self.send(500, "out of order")
        elif fault == "busy":
            self.send(429, "later", Retry_After="0")
        elif fault == "malformed":
            self.send(200, '{"choices": [{"te')
        elif fault == "incomplete":
            self.send(200, '{"choices": []}')
        elif refusal := self.refusal(body):
            self.send(422, json.dumps({"detail": refusal}))
        else:
            self.complete(body)

    def refusal(self, body) -> str:
        if body["model"] not in ("tiny", "mine"):
            return f"there is no model {body['model']}"
        if SETTINGS["style"] in ("tokens", "bare"):
            return "" if self.path == "/v1/completions" else "no chat here"
        known = (
            COMMON | {"messages"} | ({"generation_config"} if SETTINGS["style"] == "transformers" else set())
        )
        if SETTINGS["style"] == "reasoning":
            if "max_tokens" in body:
                return "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
            if "temperature" in body:
                return "Unsupported value: 'temperature' does not support 0.7 with this model."
            return ""
        return "" if set(body) <= known else f"Unexpected fields in the request: {sorted(set(body) - known)}"

    def complete(self, body) -> None:
        budget = body.get("max_tokens", body.get("max_completion_tokens"))
        ids, logps, ended = drawn(body | {"max_tokens": budget})
        choice = {"index": 0, "finish_reason": "stop" if ended else "length"}
        if SETTINGS["filtered"] and SETTINGS["filtered"] in json.dumps(body.get("messages", "")):
            choice["finish_reason"] = "content_filter"
        if self.path == "/v1/completions":
            choice["text"] = text_of(ids)
            if SETTINGS["style"] == "tokens":
                kept = ids if SETTINGS["eos"] or not ended else ids[:-1]
                choice |= {
                    "token_ids": kept,
                    "stop_reason": None,
                    "logprobs": {"tokens": [f"token_id:{token}" for token in ids], "token_logprobs": logps},
                }
        else:
            choice["message"] = {"role": "assistant", "content": text_of(ids)}
        text = json.dumps({"object": "text_completion", "choices": [choice]})
        with LOCK:
            if STATS["answered"] == SETTINGS["die_after"]:
                self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{")
                self.wfile.flush()
                os._exit(1)
            STATS["answered"] += 1
            self.send(200, text)  # within the lock: an answer that counts has left before the process may end


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(SETTINGS.get("port", 0))), Handler)
    with open(sys.argv[1] + ".part", "w") as file:
        file.write(str(server.server_address[1]))
    os.replace(sys.argv[1] + ".part", sys.argv[1])
    server.serve_forever()
