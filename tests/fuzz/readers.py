"""The readers of preftune, each as a function of (content, folder), with a check of what they accept.

A reader returns if the reading is right, raises AssertionError if it is not, and PreftuneError to refuse.
"""

import asyncio
import csv
import decimal
import fractions
import gzip
import io
import json
import math
import socket
import threading
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import numpy
import torch
from beartype.door import is_bearable

from preftune.cli.main import main
from preftune.cli.settings import parse_settings
from preftune.cli.words import prepared
from preftune.commands.eval_options import EvalConfig
from preftune.commands.export import ExportConfig
from preftune.commands.inspect import InspectConfig
from preftune.commands.iterate import IterateConfig
from preftune.commands.merge import MergeConfig
from preftune.commands.reward import RewardConfig
from preftune.commands.sample import SampleConfig
from preftune.commands.select import SelectConfig
from preftune.commands.train_reward_model import RewardModelConfig
from preftune.data.options import DataOptions
from preftune.data.records import load_records
from preftune.errors import PreftuneError
from preftune.lab.problem import load_problem
from preftune.report.page import write_report
from preftune.rewards.call import call_reward
from preftune.rewards.judge import parsed_better, parsed_score
from preftune.sampling.http_client import Endpoint, HttpClient
from preftune.sampling.replies import read_chat, read_tokens
from preftune.storage import sealed
from preftune.train.checkpoint import read_state
from preftune.train.identity import read_manifest
from preftune.train.options import TrainConfig
from preftune.train.runlog import RunFolder
from tests.folders import save_tiny_model

Reader = Callable[[bytes, Path], None]

VOCABULARY = 300
BUDGET = 8
CONFIGS = {
    "train": TrainConfig,
    "sample": SampleConfig,
    "iterate": IterateConfig,
    "eval": EvalConfig,
    "reward": RewardConfig,
    "select": SelectConfig,
    "inspect": InspectConfig,
    "merge": MergeConfig,
    "export": ExportConfig,
    "train-reward-model": RewardModelConfig,
}


def read(target: str, content: bytes, folder: Path) -> None:
    kind, _, rest = target.partition(" ")
    if kind.startswith("data."):
        return read_data(content, folder, kind.removeprefix("data"))
    if kind == "config":
        return read_config(content, folder, rest)
    return READERS[target](content, folder)


# --- data ---


def read_data(content: bytes, folder: Path, suffix: str) -> None:
    """Every text of the records stands in the file as another reader reads it."""
    path = folder / f"rows{suffix}"
    path.write_bytes(content)
    loaded = load_records(str(path), DataOptions())
    texts = [text for record in loaded.records for text in _texts(record)]
    assert texts, "no row and no refusal"
    for text in texts:
        text.encode()  # no half of a surrogate pair
    if suffix in (".parquet", ".arrow"):
        return  # a changed letter cannot be noticed there
    raw = gzip.decompress(content) if suffix.endswith(".gz") else content
    known = set(_strings(raw.decode("utf-8-sig"), suffix.removesuffix(".gz")))
    assert all(text in known or text.strip() in known for text in texts), "a text that is not in the file"


def _texts(record: Any) -> list[str]:
    parts = [record.prompt, *record.completions]
    return [
        text for part in parts for text in ([part] if isinstance(part, str) else [m.content for m in part])
    ]


def _strings(text: str, suffix: str) -> list[str]:
    if suffix == ".csv":
        cells = [cell for row in csv.reader(io.StringIO(text, newline="")) for cell in row]
        return cells + [cell.strip() for cell in cells]
    found: list[str] = []
    for part in [text] if suffix == ".json" else text.split("\n"):
        if part.strip():
            _collect(json.loads(part), found)
    return found + [one.strip() for one in found]


def _collect(value: object, found: list[str]) -> None:
    if isinstance(value, str):
        found.append(value)
    for child in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _collect(child, found)


# --- settings ---


def read_config(content: bytes, folder: Path, command: str) -> None:
    path = folder / "config.yaml"
    path.write_bytes(content)
    kind = CONFIGS[command]
    check_settings(parse_settings(kind, [*_required(kind), "--config", str(path)], f"preftune {command}"))


def read_flags(content: bytes, folder: Path) -> None:
    command, *words = json.loads(content)
    kind = CONFIGS[command]
    given = [word.partition("=")[0] for word in words]
    needed = [word for flag, word in _pairs(_required(kind)) if flag not in given for word in (flag, word)]
    ready = prepared(command, [*needed, *words])
    check_settings(parse_settings(kind, ready, f"preftune {command}"))


def _pairs(words: list[str]) -> list[tuple[str, str]]:
    return list(zip(words[::2], words[1::2], strict=True))


@cache
def _required(kind: type) -> list[str]:
    """Flags for the settings without a default."""
    from dataclasses import MISSING

    names = [f.name for f in fields(kind) if f.default is MISSING and f.default_factory is MISSING]
    hints = get_type_hints(kind)
    return [
        word for name in names for word in (f"--{name}", '["a","b"]' if "list" in str(hints[name]) else "x")
    ]


def check_settings(config: Any) -> None:
    """Every value is of its declared type, and no number is NaN."""
    hints = get_type_hints(type(config))
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            check_settings(value)
        elif field.name != "objective":
            assert is_bearable(value, hints[field.name]), f"{field.name} became {str(value)[:50]!r}"
            assert not (isinstance(value, float) and math.isnan(value)), f"{field.name} became NaN"


def read_command(content: bytes, folder: Path) -> None:
    """A whole command; its errors are one line each."""
    import contextlib

    words = [word.replace("{folder}", str(folder)) for word in json.loads(content)]
    words = [word.replace("{model}", str(_model(folder.parent))) for word in words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = main(words)
    said = err.getvalue()
    assert len(said) < 2000, f"an echo of {len(said)} characters"
    if status:
        told = [line for line in said.splitlines() if line.startswith("preftune")]
        assert len(told) == 1 and said.endswith(f"{told[0]}\n"), said
        raise PreftuneError(told[0])


@cache
def _model(folder: Path) -> Path:
    return save_tiny_model(folder / "model")


# --- files of a run ---


def read_checkpoint(content: bytes, folder: Path) -> None:
    """Accepted only if the text is sealed or of a version without digests, with counters that a run can have."""
    path = folder / "checkpoints" / "step-000003"
    path.mkdir(parents=True, exist_ok=True)
    (path / "state.json").write_bytes(content)
    state = read_state(path)
    counters = state.counters
    assert counters.step == 3 and is_bearable(vars(counters), dict[str, int | float])
    assert all(0 <= value < 2**62 for value in vars(counters).values())
    plain = json.loads(content)
    if set(plain) == set(vars(counters)):  # of a version without digests
        assert state.digests is None and plain == vars(counters)
    else:
        assert plain["digest"] in sealed(plain["content"])


def read_manifest_file(content: bytes, folder: Path) -> None:
    (folder / "manifest.json").write_bytes(content)
    found = read_manifest(RunFolder(path=folder))
    plain = json.loads(content)
    assert found == plain["content"] and plain["digest"] in sealed(found)
    assert is_bearable(found["inputs"], dict[str, str]) and is_bearable(found["settings"], dict)
    assert is_bearable(found["environment"], dict) and is_bearable(found["resumed"], list[dict])


def read_log(content: bytes, folder: Path) -> None:
    """A report of a run whose log is damaged is written, with notes of what could not be read."""
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "config.yaml").write_text("objective: {name: dpo}\nmodel: m\ndata: d\noutput: o\n")
    (run / "status.json").write_text('{"state": "finished", "step": 3, "message": ""}')
    (run / "metrics.jsonl").write_bytes(content)
    page = write_report(run).read_text(encoding="utf-8")
    assert "</html>" in page and "\x1b" not in page and "NaN" not in page


def read_status(content: bytes, folder: Path) -> None:
    run = folder / "run"
    run.mkdir(exist_ok=True)
    (run / "status.json").write_bytes(content)
    assert isinstance(RunFolder(path=run).state(), str)
    read_log(b'{"step": 1, "loss": 0.5}\n', folder)


# --- problems, servers, rewards ---


def read_problem(content: bytes, folder: Path) -> None:
    path = folder / "problem.yaml"
    path.write_bytes(content)
    problem = load_problem(str(path))
    for law in (problem.reference_law(), problem.data_law()):
        assert numpy.isfinite(law).all() and (law >= 0).all() and abs(law.sum() - 1) < 1e-6
    assert numpy.isfinite(problem.reward_values()).all()


class _Server:
    """Answers every request with the same bytes."""

    def __init__(self) -> None:
        self.content = b""
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.listener.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self.listener.accept()
            with connection:
                request = b""
                while not request.endswith(b'{"a":1}'):
                    request += connection.recv(1 << 16)
                head = f"HTTP/1.1 200 OK\r\nContent-Length: {len(self.content)}\r\nConnection: close\r\n\r\n"
                try:
                    connection.sendall(head.encode() + self.content)
                except OSError:
                    continue


@cache
def _server() -> _Server:
    return _Server()


def _replied(content: bytes, use: Callable[[Any], Any]) -> Any:
    server = _server()
    server.content = content
    endpoint = Endpoint(url=server.url, retries=0, timeout_s=5.0)

    async def ask() -> Any:
        async with HttpClient(endpoint) as client:
            return await client.request("/v1/completions", {"a": 1}, use)

    return asyncio.run(ask())


def read_token_reply(content: bytes, folder: Path) -> None:
    row = _replied(content, lambda reply: read_tokens(reply, BUDGET, VOCABULARY))
    assert isinstance(row["text"], str) and isinstance(row["ended"], bool)
    ids, logprobs = row["token_ids"], row["logprobs"]
    assert ids is None or (len(ids) <= BUDGET + 1 and all(0 <= one < VOCABULARY for one in ids))
    assert logprobs is None or all(math.isfinite(one) and one <= 1e-3 for one in logprobs)
    assert ids is None or logprobs is None or len(ids) == len(logprobs)


def read_chat_reply(content: bytes, folder: Path) -> None:
    row = _replied(content, read_chat)
    assert isinstance(row["text"], str) and isinstance(row["ended"], bool)


class Broken:
    """Looks like a number and is none."""

    ndim = 0

    def item(self) -> float:
        raise SystemExit("no number")

    def __float__(self) -> float:
        raise GeneratorExit


def read_reward(content: bytes, folder: Path) -> None:
    names = {"nan": math.nan, "inf": math.inf, "numpy": numpy, "torch": torch, "Broken": Broken}
    names |= {"fractions": fractions, "decimal": decimal}

    def function(prompts: list[str], completions: list[str], **columns: object) -> object:
        return eval(content.decode(), names)

    found = call_reward(function, "fuzz", ["p"] * 3, ["a", "b", "c"], {}, timeout_s=5.0)
    assert len(found) == 3
    assert all(one is None or (type(one) is float and math.isfinite(one)) for one in found)


def read_judge(content: bytes, folder: Path) -> None:
    answer = content.decode("utf-8", "replace")
    score = parsed_score(answer, 1, 10)
    lines = [line for line in answer.splitlines() if line.strip()]
    assert score is None or (1 <= score <= 10 and f"{score:g}" in lines[-1])
    assert parsed_better(answer) in (None, 0.0, 0.5, 1.0)


READERS: dict[str, Reader] = {
    "flags": read_flags,
    "command": read_command,
    "state": read_checkpoint,
    "manifest": read_manifest_file,
    "log": read_log,
    "status": read_status,
    "lab": read_problem,
    "reply tokens": read_token_reply,
    "reply chat": read_chat_reply,
    "reward": read_reward,
    "judge": read_judge,
}
