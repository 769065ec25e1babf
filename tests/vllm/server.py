"""A real vLLM server on the CPU, from the environment that `make vllm` installs, and a proxy that lets no new weights
through.
"""

import json
import os
import signal
import socket
import subprocess
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psutil
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from tests.data.tokenizers_for_tests import CHATML, byte_tokenizer

PYTHON = Path(__file__).parents[2] / ".vllm" / "bin" / "python"
LARGE_BATCH = ("--max-num-batched-tokens", "8192")
_SETTINGS = {
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
    "VLLM_SERVER_DEV_MODE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_NO_USAGE_STATS": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
}


def save_servable_model(folder: Path) -> Path:
    """A two-layer Llama with random weights and heads of 32, the smallest that vLLM's CPU attention takes."""
    tokenizer = byte_tokenizer(CHATML, eos="<|im_end|>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=32,
        bos_token_id=1,
        eos_token_id=tokenizer.convert_tokens_to_ids("<|im_end|>"),
        pad_token_id=0,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config).float()
    random = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * 0.2)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass
class VLLM:
    """A server that can be killed and started again at the same port."""

    folder: Path
    dtype: str
    log: Path
    arguments: tuple[str, ...]
    port: int
    process: subprocess.Popen | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        command = [str(PYTHON), "-m", "vllm.entrypoints.openai.api_server", "--model", str(self.folder)]
        command += ["--dtype", self.dtype, "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--max-model-len", "512", "--max-num-seqs", "64", "--enable-lora", *self.arguments]
        around = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                env=around | _SETTINGS,
                cwd=self.log.parent,
                start_new_session=True,
            )

    def wait(self, limit_s: float = 300.0) -> None:
        deadline = time.monotonic() + limit_s
        while not answers(self.url):
            assert self.process is not None and self.process.poll() is None, self.log.read_text()[-3000:]
            assert time.monotonic() < deadline, "vLLM does not start"
            time.sleep(0.5)

    def kill_engine(self) -> None:
        """The process that computes, whose front end goes on answering for a moment."""
        assert self.process is not None
        for child in psutil.Process(self.process.pid).children(recursive=True):
            if "EngineCore" in " ".join(child.cmdline()):
                child.kill()

    def kill(self) -> None:
        """The server and its engine, at once."""
        if self.process is not None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{url}/health", timeout=5):
            return True
    except OSError:
        return False


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextmanager
def vllm(folder: Path, dtype: str, log: Path, *arguments: str) -> Iterator[VLLM]:
    server = VLLM(folder=folder, dtype=dtype, log=log, arguments=arguments, port=free_port())
    server.start()
    try:
        server.wait()
        yield server
    finally:
        server.kill()


def served_models(url: str) -> list[str]:
    with urllib.request.urlopen(f"{url}/v1/models", timeout=10) as answer:
        return [model["id"] for model in json.loads(answer.read())["data"]]


@contextmanager
def stuck(url: str) -> Iterator[str]:
    """The address of a proxy that says yes to new weights and lets the server sample from its first ones."""
    first = served_models(url)[0]

    class Handler(BaseHTTPRequestHandler):
        version = "default"

        def log_message(self, *_):
            pass

        def answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def do_GET(self):
            if self.path == "/weight_info":
                return self.answer(200, json.dumps({"weight_version": Handler.version}).encode())
            with urllib.request.urlopen(url + self.path) as answer:
                self.answer(answer.status, answer.read())

        def do_POST(self):
            content = self.rfile.read(int(self.headers["Content-Length"]))
            if self.path != "/v1/completions":
                Handler.version = json.loads(content or b"{}").get("new_version", Handler.version)
                return self.answer(200, b"{}")
            body = json.loads(content) | {"model": first}
            request = urllib.request.Request(
                url + self.path, json.dumps(body).encode(), {"Content-Type": "application/json"}
            )
            try:
                with urllib.request.urlopen(request) as answer:
                    self.answer(answer.status, answer.read())
            except urllib.error.HTTPError as error:
                self.answer(error.code, error.read())

    proxy = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=proxy.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{proxy.server_port}"
    finally:
        proxy.shutdown()
        proxy.server_close()
