"""Runs whose completions a server draws: it gets the adapter before every draw, and one that does not follow
is found out.
"""

import json
import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from preftune.cli.main import main
from preftune.cli.settings import settings_from_run
from preftune.errors import ConfigError, ModelError, ServerError, TrainingError
from preftune.model.adapters import LoraOptions, quiet_peft
from preftune.objectives.bnf import BNF
from preftune.objectives.grpo import GRPO
from preftune.sampling.client import ServerOptions
from preftune.sampling.sample import SampleOptions
from preftune.sampling.server_weights import load_weights
from preftune.train.loop import resume, train
from preftune.train.onpolicy.collect import CollectOptions
from preftune.train.options import TrainConfig
from tests.folders import metric_rows, tiny_config, write_rows

PROMPTS = [{"prompt": f"Say {word}."} for word in ("sea", "poem", "tea", "snow", "blue", "Paris")]
REWARD = """
def vowels(prompts, completions, **columns):
    return [sum(c in 'aeiou' for c in text) / max(len(text), 1) for text in completions]
"""


@dataclass
class Served:
    """A server's models by name, and what it was asked to do."""

    url: str
    folder: Path
    follows: bool
    tells_tokens: bool
    scores_tokens: bool
    models: dict[str, torch.nn.Module] = field(default_factory=dict)
    calls: list[tuple[str, str]] = field(default_factory=list)
    requests: int = 0
    version: str = "default"
    restarts: int = 0  # requests for completions before which the server starts again from its own weights
    forgets: int = 0  # requests for completions before which the server loses its adapters

    def manage(self, path: str, body: dict) -> str:
        """vLLM's requests for all weights; what a server that does not follow does is nothing."""
        if path == "/collective_rpc" and self.follows:
            self.models["base"] = AutoModelForCausalLM.from_pretrained(body["kwargs"]["weights_path"]).eval()
        self.version = body.get("new_version", self.version)
        return "{}"

    def load(self, name: str, folder: str) -> None:
        base = AutoModelForCausalLM.from_pretrained(self.folder).eval()
        with quiet_peft():
            self.models[name] = peft.PeftModel.from_pretrained(base, folder).eval() if self.follows else base

    @torch.no_grad()
    def score(self, body: dict) -> dict:
        """The log-probability of each token of the prompt but the first."""
        ids = body["prompt"]
        logp = self.models[body["model"]](torch.tensor([ids])).logits[0].log_softmax(-1)
        told = [{str(ids[k]): {"logprob": float(logp[k - 1, ids[k]])}} for k in range(1, len(ids))]
        return {"choices": [{"text": "?", "prompt_logprobs": [None, *told] if self.scores_tokens else None}]}

    @torch.no_grad()
    def complete(self, body: dict, end: int) -> dict:
        """Token by token from the whole text so far, which is slow and plain."""
        random, ids, logps = torch.Generator().manual_seed(body["seed"]), list(body["prompt"]), []
        while len(logps) < body["max_tokens"] and ids[-1] != end:
            logp = self.models[body["model"]](torch.tensor([ids])).logits[0, -1].log_softmax(-1)
            ids.append(int(torch.multinomial(logp.exp(), 1, generator=random)))
            logps.append(float(logp[ids[-1]]))
        drawn = ids[len(body["prompt"]) :]
        told = {"token_ids": drawn, "logprobs": {"token_logprobs": logps}} if self.tells_tokens else {}
        return {"choices": [{"text": "?", "finish_reason": "stop" if drawn[-1] == end else "length", **told}]}


@contextmanager
def serving(folder: Path, *, follows: bool = True, tells_tokens: bool = True, scores_tokens: bool = True):
    lock, end = threading.Lock(), AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids("<|im_end|>")

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def answer(self, text: str, status: int = 200) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(text.encode())))
            self.end_headers()
            self.wfile.write(text.encode())

        def do_GET(self):
            if self.path == "/weight_info":
                self.answer(json.dumps({"weight_version": served.version}))
                return
            self.answer(json.dumps({"data": [{"id": "base"}]}))

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                if self.path == "/v1/completions" and "prompt_logprobs" in body:
                    self.answer(json.dumps(served.score(body)))
                    return
                if self.path == "/v1/completions":
                    served.requests += 1
                    if served.restarts:
                        served.restarts -= 1
                        served.models["base"] = AutoModelForCausalLM.from_pretrained(folder).eval()
                        served.version = "default"
                    if served.forgets:
                        served.forgets -= 1
                        served.models.clear()
                    if body["model"] not in served.models:
                        self.answer("no such model", 404)
                        return
                    self.answer(json.dumps(served.complete(body, end)))
                    return
                if not self.path.startswith("/v1/"):
                    served.calls.append((self.path, ""))
                    self.answer(served.manage(self.path, body))
                    return
                what = self.path.removeprefix("/v1/").removesuffix("_lora_adapter")
                served.calls.append((what, body["lora_name"]))
                if what == "load":
                    served.load(body["lora_name"], body["lora_path"])
                elif served.models.pop(body["lora_name"], None) is None:
                    self.answer('{"error": {"type": "NotFoundError"}}', 404)
                    return
                self.answer("Success")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    served = Served(
        url=f"http://127.0.0.1:{server.server_port}",
        folder=folder,
        follows=follows,
        tells_tokens=tells_tokens,
        scores_tokens=scores_tokens,
    )
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


@pytest.fixture
def config(tiny_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    rewards = tmp_path / "taste.py"
    rewards.write_text(REWARD)
    prompts = write_rows(tmp_path / "prompts.jsonl", PROMPTS)

    def made(server: ServerOptions, **settings):
        chosen = {
            "source": "on-policy",
            "reward": f"{rewards}:vowels",
            "objective": BNF(),
            "batch_size": 2,
            "eval_fraction": 0.34,
            "epochs": 3.0,
            "max_steps": 4,
            "eval_every": 4,
            "lora": LoraOptions(rank=4),
            "server": server,
            "sampling": SampleOptions(num_completions=4, max_new_tokens=6),
            "optim": {"learning_rate": 0.05},
        } | settings
        return tiny_config(tiny_folder, prompts, tmp_path / "run", **chosen)

    return made


def options(served: Served, **settings) -> ServerOptions:
    return ServerOptions(url=served.url, retries=0, **settings)


def test_the_server_follows_the_adapter(config, tiny_folder, tmp_path):
    with serving(tiny_folder) as served:
        result = train(config(options(served)), quiet=True)
    rows = metric_rows(tmp_path / "run")
    assert result.state == "finished"
    gaps = [row["sampler_gap"] for row in rows if "sampler_gap" in row]
    assert len(gaps) == 4 and max(gaps) < 1e-5
    assert (
        abs(rows[0]["eval_kl"]) < 1e-4 and abs(rows[-1]["eval_kl"]) > 1e-3
    )  # the policy has moved, and the gap has not
    assert (
        served.requests == 4 * 2 * 4 + 2 * 2
    )  # four draws of two prompts, and two evaluations on two held-out prompts
    loads = [name for what, name in served.calls if what == "load"]
    assert len(set(loads)) == 6 and [name for what, name in served.calls if what == "unload"] == loads
    assert not served.models and not (tmp_path / "run" / "server").exists()
    follows = [row["sampler_follows"] for row in rows if "sampler_follows" in row]
    assert follows == pytest.approx([1.0] * 3, abs=1e-3)  # at the first draw nothing has changed yet
    drawn = [json.loads(line) for line in (tmp_path / "run" / "completions.jsonl").read_text().splitlines()]
    assert {(row["step"], row["policy_step"]) for row in drawn} == {(1, 0), (2, 1), (3, 2), (4, 3)}


ALL_WEIGHTS = {"lora": LoraOptions(), "collect": CollectOptions(sampler_gap=9.0)}


def with_base(served: Served) -> Served:
    served.models["base"] = AutoModelForCausalLM.from_pretrained(served.folder).eval()
    return served


def test_the_server_follows_all_weights_and_a_restart_within_a_draw_is_repaired(
    config, tiny_folder, tmp_path
):
    with serving(tiny_folder) as served:

        def restart(row) -> None:
            if row["step"] == 2:
                served.restarts = 1

        train(config(options(with_base(served)), **ALL_WEIGHTS), quiet=True, on_step=restart)
    rows = [row for row in metric_rows(tmp_path / "run") if row["phase"] == "train"]
    assert served.restarts == 0 and max(row["sampler_gap"] for row in rows) < 1e-5
    assert [row["sampler_follows"] for row in rows[1:]] == pytest.approx([1.0] * 3, abs=1e-3)
    update = [
        "/pause?mode=wait",
        "/collective_rpc",
        "/reset_prefix_cache",
        "/update_weight_version",
        "/resume",
    ]
    assert [what for what, _ in served.calls] == update * 7  # four draws, one repeated, and two evaluations
    assert not (tmp_path / "run" / "server").exists()


def test_a_server_that_keeps_its_weights_stops_the_run(config, tiny_folder):
    with (
        serving(tiny_folder, follows=False) as served,
        pytest.raises(TrainingError, match="does not follow the policy") as stopped,
    ):
        train(config(options(with_base(served)), **ALL_WEIGHTS), quiet=True)
    assert "Step 2 stopped" in str(stopped.value)


def test_a_server_without_the_requests_for_weights_is_named(peer_url, tmp_path):
    with pytest.raises(ModelError, match=r"does not take weights while it runs.*VLLM_SERVER_DEV_MODE=1"):
        load_weights(ServerOptions(url=peer_url, retries=0), "v1", tmp_path)


@pytest.fixture
def peer_url(tmp_path):
    """A server that knows none of them."""

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_):
            pass

        def do_POST(self):
            self.send_error(404)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def test_a_server_that_does_not_follow_stops_the_run(config, tiny_folder):
    with (
        serving(tiny_folder, follows=False) as served,
        pytest.raises(
            TrainingError, match=r"does not follow the policy.*0\.00 of the policy's change"
        ) as stopped,
    ):
        train(config(options(served), collect=CollectOptions(sampler_gap=9.0)), quiet=True)
    assert "Step 2 stopped" in str(stopped.value)  # at the first draw the adapter changes nothing yet


def test_without_scores_of_given_tokens_the_gap_alone_tells(config, tiny_folder):
    with (
        serving(tiny_folder, follows=False, scores_tokens=False) as served,
        pytest.raises(TrainingError, match=r"disagree.*other weights") as stopped,
    ):
        train(config(options(served)), quiet=True)
    assert "Step 2 stopped" in str(stopped.value)


def test_an_adapter_that_the_server_forgot_is_loaded_again(config, tiny_folder, tmp_path):
    with serving(tiny_folder) as served:

        def forget(row) -> None:
            if row["step"] == 2:
                served.forgets = 1

        train(config(options(served)), quiet=True, on_step=forget)
    rows = metric_rows(tmp_path / "run")
    assert served.forgets == 0 and len([row for row in rows if "sampler_gap" in row]) == 4
    assert len([what for what, _ in served.calls if what == "load"]) == 7  # and the six of an undisturbed run


def test_what_a_killed_run_left_is_removed(config, tiny_folder, tmp_path):
    made = config
    with serving(tiny_folder) as served:
        left = tmp_path / "run" / "server" / "preftune-left"
        config = made(options(served), save_every=2, max_steps=4)
        train(config, quiet=True)
        left.mkdir(parents=True)
        served.models["preftune-left"] = torch.nn.Identity()
        for name in ("final", "status.json"):
            (tmp_path / "run" / name).rename(tmp_path / name)
        (tmp_path / "run" / "status.json").write_text(
            json.dumps({"state": "interrupted", "step": 2, "message": ""})
        )
        resume(settings_from_run(TrainConfig, tmp_path / "run"), quiet=True)
    assert not served.models and not left.exists()


def test_what_was_drawn_is_learned_from_after_a_resume(config, tiny_folder, tmp_path):
    with serving(tiny_folder) as served:
        train(config(options(served), save_every=2, max_steps=4), quiet=True)
        last = metric_rows(tmp_path / "run")[-1]
        for name in ("final", "status.json"):
            path = tmp_path / "run" / name
            path.rename(tmp_path / name)
        (tmp_path / "run" / "status.json").write_text(
            json.dumps({"state": "interrupted", "step": 2, "message": ""})
        )
        assert resume(settings_from_run(TrainConfig, tmp_path / "run"), quiet=True).state == "finished"
    again = metric_rows(tmp_path / "run")[-1]
    assert again["eval_reward"] == last["eval_reward"] and again["eval_kl"] == pytest.approx(
        last["eval_kl"], rel=1e-6
    )


def test_objectives_with_ratios_get_the_server_s_log_probabilities(config, tiny_folder, tmp_path):
    with serving(tiny_folder) as served:
        train(config(options(served), objective=GRPO()), quiet=True)
    ratios = [row for row in metric_rows(tmp_path / "run") if row["phase"] == "train"]
    assert all(row["sampler_gap"] < 1e-5 for row in ratios)


def test_a_server_of_text_is_refused(config, tiny_folder):
    with (
        serving(tiny_folder, tells_tokens=False) as served,
        pytest.raises(ServerError, match="returns no token ids"),
    ):
        train(config(options(served)), quiet=True)


SOMEWHERE = ServerOptions(url="http://127.0.0.1:9")
COOLER = SampleOptions(num_completions=4, temperature=0.7)


@pytest.mark.parametrize(
    ("server", "settings", "message"),
    [
        (
            ServerOptions(),
            {"collect": CollectOptions(restart_s=1.0)},
            "restart_s has no effect without a server",
        ),
        (ServerOptions(url=SOMEWHERE.url, model="m"), {}, "server.model has no effect"),
        (ServerOptions(url=SOMEWHERE.url, api="chat"), {}, "needs its token ids"),
        (SOMEWHERE, {"objective": GRPO(), "sampling": COOLER}, "this run needs both"),
        (ServerOptions(url=SOMEWHERE.url, logprobs="processed"), {"sampling": COOLER}, "this run needs both"),
        (
            SOMEWHERE,
            {"source": "offline", "reward": None, "sampling": SampleOptions(num_completions=4)},
            "server has no effect",
        ),
    ],
)
def test_what_cannot_work_is_refused_before_it_starts(config, server, settings, message):
    with pytest.raises(ConfigError, match=message):
        config(server, **settings)


def test_no_server_is_one_sentence(tiny_folder, tmp_path, capsys):
    prompts = write_rows(tmp_path / "prompts.jsonl", PROMPTS)
    words = [
        "train",
        "--model",
        str(tiny_folder),
        "--data",
        prompts,
        "--output",
        str(tmp_path / "run"),
        "--source",
        "on-policy",
        "--reward",
        "brief",
        "--lora.rank",
        "4",
        "--server.url",
        SOMEWHERE.url,
        "--server.retries",
        "0",
    ]
    assert main(words) == 5
    told = capsys.readouterr().err
    assert "gave no answer" in told and "Traceback" not in told
