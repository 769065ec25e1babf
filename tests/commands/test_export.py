"""A trained model for other programs: merged, adapter, GGUF, Ollama, and a hub."""

import json
import re
import shlex
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from preftune.cli.main import main
from preftune.commands.export import ExportConfig, model_card, modelfile
from preftune.errors import ConfigError
from preftune.model.adapters import quiet_peft
from preftune.model.load import LoadOptions, load_model, load_tokenizer
from tests.folders import weights_of
from tests.model.test_adapters import logits, trained


@pytest.fixture
def adapter(tiny_folder, tmp_path):
    trained(tiny_folder, tmp_path / "run")
    load_tokenizer(str(tiny_folder), LoadOptions()).save_pretrained(tmp_path / "run")
    return tmp_path / "run"


def exported(capsys, *words) -> dict:
    assert main(["export", *map(str, words), "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize(("dtype", "kind"), [("f32", torch.float32), ("bf16", torch.bfloat16)])
def test_merged_weights_in_the_chosen_type(dtype, kind, adapter, tmp_path, capsys):
    wanted = logits(load_model(str(adapter), LoadOptions()))
    exported(capsys, adapter, "--to", "merged", "--dtype", dtype, "--output", tmp_path / "out")
    assert {tensor.dtype for tensor in weights_of(tmp_path / "out").values()} == {kind}
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    torch.testing.assert_close(logits(again), wanted, atol=1e-5 if dtype == "f32" else 0.5, rtol=0)


def test_the_line_to_try_is_a_command_that_runs(adapter, tmp_path, capsys):
    folder = tmp_path / "for friends"  # a shell would split this name
    assert main(["export", str(adapter), "--to", "merged", "--output", str(folder)]) == 0
    line = next(one for one in capsys.readouterr().out.splitlines() if one.startswith("try it  "))
    program, *words = shlex.split(line.removeprefix("try it  "))
    assert (program, words) == ("preftune", ["chat", str(folder)])
    assert main(["sample", *words[1:], "--prompt", "hi", "--max_new_tokens", "3"]) == 0


@torch.no_grad()
def greedy(model, ids: list[int]) -> list[int]:
    """The ids with eight more, each the most probable."""
    for _ in range(8):
        ids = [*ids, int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())]
    return ids


def test_the_adapter_alone_is_the_same_in_plain_peft(adapter, tiny_folder, tmp_path, capsys):
    exported(capsys, adapter, "--to", "adapter", "--output", tmp_path / "out")
    assert not (tmp_path / "out" / "model.safetensors").exists()
    ours = load_model(str(adapter), LoadOptions())
    torch.testing.assert_close(
        logits(load_model(str(tmp_path / "out"), LoadOptions())), logits(ours), atol=0, rtol=0
    )
    with quiet_peft():
        base = AutoModelForCausalLM.from_pretrained(tiny_folder)
        plain = peft.PeftModel.from_pretrained(base, tmp_path / "out").eval()
    torch.testing.assert_close(logits(plain), logits(ours), atol=1e-5, rtol=0)
    with plain.disable_adapter():
        assert (logits(plain) - logits(ours)).abs().max() > 0.01
    for start in ([5, 6, 7], [9], [30, 4, 5, 6, 8, 20]):
        assert greedy(plain, start) == greedy(ours, start)
    assert main(["export", str(tiny_folder), "--to", "adapter", "--output", str(tmp_path / "no")]) == 2
    assert "is no adapter" in capsys.readouterr().err


@pytest.mark.parametrize(("dtype", "most"), [("f32", 1e-4), ("f16", 0.05)])
def test_gguf_is_the_same_function(dtype, most, adapter, tmp_path, capsys):
    told = exported(capsys, adapter, "--to", "gguf", "--dtype", dtype, "--output", tmp_path / "out")
    assert told["largest_difference"] < most and told["same_text"]
    again = load_model(str(tmp_path / "out" / "model.gguf"), LoadOptions())
    torch.testing.assert_close(
        logits(again), logits(load_model(str(adapter), LoadOptions())), atol=most, rtol=0
    )


def test_ollama_gets_the_template_and_the_stop_tokens(tiny_folder):
    model, tokenizer = (
        load_model(str(tiny_folder), LoadOptions()),
        load_tokenizer(str(tiny_folder), LoadOptions()),
    )
    text = modelfile(model, tokenizer)
    assert text.startswith("FROM ./model.gguf\n")
    assert (
        "{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}<|im_start|>user\n{{ .Prompt }}<|im_end|>\n"
        "<|im_start|>assistant\n{{ .Response }}<|im_end|>" in text
    )
    assert 'PARAMETER stop "<|im_end|>"' in text


def test_the_output_is_a_folder_and_no_file():
    with pytest.raises(
        ConfigError, match=r"folder, not a file.*model.gguf is written.*Use --output out/x\.$"
    ):
        ExportConfig(run="r", to="gguf", output="out/x.gguf")


def test_an_architecture_without_gguf_is_refused(tiny_folder, tmp_path, capsys):
    from tests.architectures import tiny_architecture

    tiny_architecture("mamba").save_pretrained(tmp_path / "model")
    load_tokenizer(str(tiny_folder), LoadOptions()).save_pretrained(tmp_path / "model")
    assert main(["export", str(tmp_path / "model"), "--to", "gguf", "--output", str(tmp_path / "out")]) == 2
    assert "no GGUF conversion" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_the_card_states_settings_and_versions(tmp_path):
    config = "model: owner/base\nseed: 3\nenvironment:\n  python: 3.11.7\n  torch: 2.13.0\n  peft: null\n"
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    card = model_card(str(tmp_path / "final"), ExportConfig(run="x", to="hub", output="someone/model"))
    assert "base_model: owner/base" in card and "| seed | 3 |" in card
    assert "| versions | python 3.11.7, torch 2.13.0 |" in card


def test_the_card_states_intervals(tmp_path):
    """Wilson's interval of 3 of 4, by hand: (0.75 + z^2 / 8 +- z sqrt(0.75 * 0.25 / 4 + z^2 / 64)) / (1 + z^2 / 4)."""
    config = "model: owner/base\nobjective: dpo\nenvironment:\n  held_out: 4\n"
    (tmp_path / "config.yaml").write_text(config, encoding="utf-8")
    row = {"step": 2, "phase": "eval", "eval_rewards/accuracies": 0.75, "eval_rewards/margins": 0.5}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(row) + "\n", encoding="utf-8")
    card = model_card(str(tmp_path / "final"), ExportConfig(run="x", to="hub", output="someone/model"))
    assert (
        "| Evaluation accuracy | 75% | of pairs have a positive margin (95% interval 30% to 95%, 4 held-out"
        in card
    )
    assert "| eval_rewards/margins | 0.5 |" in card


class Hub(BaseHTTPRequestHandler):
    """The few addresses of a hub that an upload of small files needs; it keeps what came."""

    seen: dict[str, object]

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        answer: object = {}
        if self.path == "/api/repos/create":
            self.seen["created"] = json.loads(body)
            answer = {"url": f"http://{self.headers['Host']}/someone/model"}
        elif "/preupload/" in self.path:
            files = json.loads(body)["files"]
            answer = {
                "files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in files]
            }
        elif "/commit/" in self.path:
            lines = [json.loads(line) for line in body.decode().splitlines() if line]
            self.seen["files"] = {
                line["value"]["path"]: line["value"]["content"] for line in lines if line["key"] == "file"
            }
            answer = {
                "commitUrl": f"http://{self.headers['Host']}/someone/model/commit/1",
                "commitOid": "1",
                "success": True,
            }
        elif self.path == "/api/validate-yaml":
            answer = {"errors": [], "warnings": []}
        self.reply(answer)

    def do_GET(self):
        self.reply({"id": "someone/model", "sha": "1", "siblings": [], "private": False})

    def reply(self, answer: object) -> None:
        data = json.dumps(answer).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setenv("HF_TOKEN", "hf_test")
    kind = type("OneHub", (Hub,), {"seen": {}})
    server = ThreadingHTTPServer(("127.0.0.1", 0), kind)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", kind.seen
    server.shutdown()
    server.server_close()


def test_the_hub_gets_the_files_and_a_card(hub, adapter, capsys):
    address, seen = hub
    told = exported(
        capsys,
        adapter,
        "--to",
        "hub",
        "--output",
        "someone/model",
        "--endpoint",
        address,
        "--private",
        "true",
        "--license",
        "apache-2.0",
    )
    assert seen["created"]["name"] == "model" and "private" in json.dumps(seen["created"])
    assert {"README.md", "adapter_config.json", "adapter_model.safetensors"} <= set(told["files"])
    import base64

    card = base64.b64decode(seen["files"]["README.md"]).decode()
    assert "license: apache-2.0" in card and "library_name: peft" in card
    assert not re.search(r"base_model: /", card)
