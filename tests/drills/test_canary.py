"""A secret in an address, a header, the environment or a server's echo appears in no file and in no output."""

import io
import json
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from preftune.cli.main import main
from tests.folders import PAIRS, save_tiny_model, write_rows

SECRET = "hunter2-canary-57ac"


@contextmanager
def echoing(status: int) -> Iterator[str]:
    """A server that puts the key it was sent into everything it answers: headers, errors, completions."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self) -> None:
            key = self.headers.get("Authorization", "")
            self.rfile.read(int(self.headers.get("Content-Length", "0")))
            choice = {
                "message": {"role": "assistant", "content": f"Your key is {key}\nScore: 7"},
                "text": f"Your key is {key}",
                "finish_reason": "stop",
            }
            reply = (
                {"choices": [choice], "data": [{"id": "tiny"}]} if status == 200 else {"error": f"key {key}"}
            )
            body = json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("X-Key", key)
            self.send_header("Location", f"http://elsewhere.invalid/?key={key}")
            self.send_header("Content-Length", str(len(body)))
            with suppress(ConnectionError):  # a client that has seen the status may close before the body
                self.end_headers()
                self.wfile.write(body)

        do_GET = do_POST = answer

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.setenv("MY_KEY", SECRET)
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    prompts = [{"prompt": f"What is {k}?"} for k in range(4)]
    answered = [{**row, "completions": ["An answer.", "Another."]} for row in prompts]
    return {
        "model": str(save_tiny_model(tmp_path / "model")),
        "prompts": write_rows(tmp_path / "prompts.jsonl", prompts),
        "answered": write_rows(tmp_path / "answered.jsonl", answered),
        "out": str(tmp_path / "out"),
    }


COMMANDS = {
    "sample": "sample --model {model} --prompts {prompts} --output {out} --max_new_tokens 8 {server}",
    "reward": "reward {answered} --reward {judge} --output {out}",
    "train": "train --model {model} --data {prompts} --source on-policy --objective rloo --reward {judge} "
    "--output {out} --batch_size 2 --max_steps 1 --max_new_tokens 8 --num_completions 2 {train_server}",
    "iterate": "iterate --model {model} --prompts {prompts} --reward {judge} --rounds 1 --objective sft "
    "--selection best-of-n --max_new_tokens 8 --output {out}",
    "eval": "eval {model} --reference {model} --prompts {prompts} --reward {judge} --max_new_tokens 8 --json",
    "compare": "compare --model {model} --data {prompts} --source on-policy --objectives rloo,grpo --reward {judge} "
    "--steps 1 --seeds 2 --rates [0.001] --batch_size 2 --eval_fraction 0.5 --max_new_tokens 8 --output {out}",
}


def words_of(command: str, files: dict[str, str], url: str) -> list[str]:
    judge = f"judge(url='{url}/v1',model=tiny,api_key_env=MY_KEY,retries=0,backoff_s=0.01)"
    server = f"--server.url {url} --server.api chat --server.model tiny --server.api_key_env MY_KEY"
    patient = "--server.retries 0 --server.backoff_s 0.01"
    values = files | {"judge": judge, "server": f"{server} {patient}", "train_server": ""}
    return COMMANDS[command].format(**values).split()


def check_nothing_holds(secret: str, root: Path, said: str) -> None:
    assert secret not in said
    held = [path for path in root.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
    assert not held
    assert not [path for path in root.rglob("*") if secret in path.name]


@pytest.mark.parametrize("status", [200, 302, 401, 500])
@pytest.mark.parametrize("command", COMMANDS)
def test_a_key_of_a_server_appears_nowhere(command, status, files, tmp_path, capfd):
    with echoing(status) as url:
        done = main(words_of(command, files, url))
    assert done in ((0,) if status == 200 else (2, 3, 4, 5))
    for folder in tmp_path.glob("out*"):
        if (folder / "config.yaml").is_file() and (folder / "metrics.jsonl").is_file():
            main(["report", str(folder)])
    out, err = capfd.readouterr()
    check_nothing_holds(SECRET, tmp_path, out + err)


@pytest.mark.parametrize(
    "place", ["http://user:{}@127.0.0.1:9", "http://127.0.0.1:9/?key={}", "http://127.0.0.1:9/#{}"]
)
@pytest.mark.parametrize("command", COMMANDS)
def test_a_key_in_an_address_is_refused_and_appears_nowhere(command, place, files, tmp_path, capfd):
    assert main(words_of(command, files, place.format(SECRET))) == 2
    out, err = capfd.readouterr()
    check_nothing_holds(SECRET, tmp_path, out + err)


@pytest.mark.parametrize("command", ["sample", "train"])
def test_a_key_in_a_configuration_is_refused_and_not_copied(command, files, tmp_path, capfd):
    path = tmp_path / "given" / "run.yaml"
    path.parent.mkdir()
    path.write_text(f"server:\n  url: http://user:{SECRET}@127.0.0.1:9\n")
    words = words_of(command, files, "http://127.0.0.1:9")
    words = [word for place, word in enumerate(words) if "server.url" not in (word + words[place - 1])]
    assert main([*words, "--config", str(path)]) == 2
    path.unlink()
    out, err = capfd.readouterr()
    check_nothing_holds(SECRET, tmp_path, out + err)


def test_a_key_that_a_function_of_the_user_quotes_is_not_told(files, tmp_path, capfd):
    """In the sentence, and in the status of the run that it ends."""
    code = tmp_path / "quoting.py"
    code.write_text(
        "import os\ndef r(prompts, completions, **columns):\n    raise RuntimeError('key ' + os.environ['MY_KEY'])\n"
    )
    words = words_of("train", files, "http://127.0.0.1:9")
    words[words.index("--reward") + 1] = f"{code}:r"
    assert main(words) == 3
    out, err = capfd.readouterr()
    assert "key [hidden]" in err
    check_nothing_holds(SECRET, tmp_path, out + err)


def plain_words(files: dict[str, str]) -> dict[str, str]:
    """Commands that send nothing, with a secret in an argument that holds no key, or none."""
    run, address = files["run"], f"https://user:{SECRET}@127.0.0.1:9"
    return {
        "merge": f"merge {files['model']} {files['model']} --output {files['out']}",
        "merge of an address": f"merge {address}/m {files['model']} --output {files['out']}",
        "export": f"export {run} --to merged --output {files['out']}",
        "export to a hub": f"export {run} --to hub --output a/b --endpoint {address}",
        "upload": f"export {run} --to hub --output a/b --endpoint http://127.0.0.1:9",
        "chat": f"chat --model {address}/m",
        "train-reward-model": f"train-reward-model --model {files['model']} --data {files['pairs']} --batch_size 4 "
        f"--max_steps 1 --output {files['out']}",
        "data of an address": f"train --model {files['model']} --data {address}/x.jsonl?key={SECRET} "
        f"--output {files['out']}",
        "annotate": f"annotate {address}/x.jsonl --output {files['out']}",
        "start": f"start {files['pairs']} --model {files['model']} --minutes 0.05 --output {files['out']}",
        "report": f"report {run} --output {files['out']}.html",
        "env": "env",
        "import-config": f"import-config {files['foreign']} --output {files['out']}.yaml",
    }


@pytest.fixture
def finished(files, tmp_path):
    """The files with a finished run, pairs, and a configuration of another tool that holds secrets."""
    pairs = write_rows(tmp_path / "pairs.jsonl", PAIRS)
    foreign = tmp_path.parent / f"{tmp_path.name}-foreign.yaml"
    foreign.write_text(
        f"model_name_or_path: m\ndataset_name: https://user:{SECRET}@host/x\nlearning_rate: 1e-6\n"
        f"hub_token: {SECRET}\nvllm_server_base_url: http://user:{SECRET}@host\n"
    )
    words = (
        f"train --model {files['model']} --data {pairs} --objective dpo --max_steps 1 --output {tmp_path}/run"
    )
    assert main([*words.split(), "--batch_size", "4", "--json"]) == 0
    yield files | {"run": str(tmp_path / "run"), "pairs": pairs, "foreign": str(foreign)}
    foreign.unlink()


@pytest.mark.parametrize("command", plain_words(defaultdict(str)))
def test_a_secret_of_the_environment_or_an_address_appears_nowhere(
    command, finished, tmp_path, monkeypatch, capfd
):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "OPENAI_API_KEY"):
        monkeypatch.setenv(name, SECRET)
    for name in ("HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, f"http://user:{SECRET}@127.0.0.1:9")
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    assert main(plain_words(finished)[command].split()) in (0, 2, 3, 4, 5)
    out, err = capfd.readouterr()
    assert "Traceback" not in err
    check_nothing_holds(SECRET, tmp_path, out + err)
