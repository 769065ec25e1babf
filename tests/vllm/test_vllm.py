"""Sampling from a real vLLM server and training with it."""

import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preftune.data.render import make_renderer
from preftune.errors import ModelError, ServerError, TrainingError
from preftune.model.adapters import LoraOptions
from preftune.model.load import LoadOptions, load_model, load_tokenizer, resolve_model
from preftune.model.policy import Policy
from preftune.objectives.bnf import BNF
from preftune.objectives.grpo import GRPO
from preftune.sampling.agreement import agreement
from preftune.sampling.client import ServerOptions
from preftune.sampling.http_client import EngineDied, Refused
from preftune.sampling.sample import SampleOptions
from preftune.sampling.server import sample_server, sample_server_tokens
from preftune.sampling.server_weights import load_adapter, load_weights
from preftune.train.loop import train
from preftune.types import Record
from tests.folders import metric_rows, tiny_config, write_rows
from tests.vllm.server import LARGE_BATCH, PYTHON, save_servable_model, served_models, stuck, vllm

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.xdist_group("vllm"),
    pytest.mark.skipif(not PYTHON.exists(), reason="no vLLM: `make vllm` installs it"),
]
RECORDS = [Record(prompt=f"Say {word}.", completions=(), origin=word) for word in ("sea", "poem", "tea")]
WORDS = ("sea", "poem", "tea", "snow", "blue", "Paris")
REWARD = """
def vowels(prompts, completions, **columns):
    return [sum(c in 'aeiou' for c in text) / max(len(text), 1) for text in completions]
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    return save_servable_model(tmp_path_factory.mktemp("model") / "servable")


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    with vllm(folder, "float32", tmp_path_factory.mktemp("vllm") / "log", *LARGE_BATCH) as running:
        yield running


@pytest.fixture(scope="module")
def low_server(folder, tmp_path_factory):
    """In bf16."""
    with vllm(folder, "bfloat16", tmp_path_factory.mktemp("vllm") / "log", *LARGE_BATCH) as running:
        yield running


@pytest.fixture(autouse=True)
def _direct(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")


@pytest.fixture
def config(folder, tmp_path):
    rewards = tmp_path / "taste.py"
    rewards.write_text(REWARD)
    prompts = write_rows(tmp_path / "prompts.jsonl", [{"prompt": f"Say {word}."} for word in WORDS])

    def made(url: str | None, name: str = "run", **settings):
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
            "server": ServerOptions() if url is None else ServerOptions(url=url, retries=1, backoff_s=0.1),
            "sampling": SampleOptions(num_completions=4, max_new_tokens=8),
            "optim": {"learning_rate": 0.01},
        } | settings
        return tiny_config(folder, prompts, tmp_path / name, **chosen)

    return made


def policy_of(folder: Path) -> Policy:
    model = load_model(resolve_model(str(folder)), LoadOptions()).eval()
    return Policy(model=model, precision="fp32", sharing="shared", sharing_reason="")


def renderer_of(folder: Path):
    return make_renderer(load_tokenizer(resolve_model(str(folder)), LoadOptions()), "chat")


def test_samples_have_the_trainer_s_log_probabilities_and_stop(server, folder):
    renderer, options = renderer_of(folder), SampleOptions(num_completions=8, max_new_tokens=24)
    asked = ServerOptions(url=server.url)
    drawn = sample_server(asked, renderer, RECORDS, options, 1)
    prompts = [renderer.render(record).prompt for record in RECORDS]
    found = agreement(policy_of(folder), prompts, drawn)
    assert found.num_tokens > 200 and found.mean < 2e-5 and found.max < 1e-3
    completions = [one for ones in drawn for one in ones]
    assert all((one.token_ids[-1] == renderer.end_of_turn) == one.ended for one in completions)
    assert all(one.ended or len(one.token_ids) == 24 for one in completions)
    letter = next(char for one in completions for char in one.text[2:] if char.isascii() and char.isalpha())
    stopped = sample_server(asked, renderer, RECORDS, replace(options, stop=[letter]), 1)
    ends = [one for ones in stopped for one in ones if one.ended and letter in one.text]
    before = [
        renderer.tokenizer.decode(one.token_ids[:-1].tolist(), skip_special_tokens=True) for one in ends
    ]
    assert ends and not any(letter in text for text in before)


def test_what_the_server_lacks_is_one_sentence(server, folder, tmp_path):
    renderer = renderer_of(folder)
    with pytest.raises(ServerError, match=r"takes no request for a completion.*nobody"):
        sample_server(ServerOptions(url=server.url, model="nobody"), renderer, RECORDS, SampleOptions(), 1)
    with pytest.raises(Refused, match="status 404"):
        sample_server_tokens(
            ServerOptions(url=server.url, model="nobody"),
            renderer,
            [renderer.render(RECORDS[0]).prompt],
            SampleOptions(),
            1,
            [0],
        )
    with pytest.raises(ModelError, match="does not find the weights"):
        load_adapter(ServerOptions(url=server.url), "lost", tmp_path / "nowhere")


@pytest.mark.parametrize("rank", [4, 0], ids=["adapter", "all weights"])
def test_a_run_follows_and_leaves_nothing_behind(server, folder, config, tmp_path, rank):
    settings = {"objective": GRPO(), "lora": LoraOptions(rank=rank) if rank else LoraOptions()}
    result = train(config(server.url, **settings), quiet=True)
    rows = [row for row in metric_rows(tmp_path / "run") if row["phase"] == "train"]
    assert result.state == "finished" and max(row["sampler_gap"] for row in rows) < 1e-4
    assert [row["sampler_follows"] for row in rows[1:]] == pytest.approx([1.0] * 3, abs=1e-2)
    assert served_models(server.url) == [str(folder)] and not (tmp_path / "run" / "server").exists()
    if not rank:
        load_weights(ServerOptions(url=server.url), "first", folder)


def test_the_server_s_run_learns_what_the_process_s_own_samples_teach(server, folder, config, tmp_path):
    """vLLM draws with other random numbers; on its samples the gradient has the ratios of a policy that drew them."""
    train(config(server.url, objective=GRPO(), max_steps=1), quiet=True)
    row = next(row for row in metric_rows(tmp_path / "run") if row["phase"] == "train")
    assert row["ratio/mean"] == pytest.approx(1.0, abs=1e-4) and row["ratio/clipped"] == 0


def test_a_server_that_is_started_again_gets_the_weights_again(server, folder, config, tmp_path):
    def restart(row) -> None:
        if row["step"] == 2:
            server.kill()
            server.start()

    result = train(config(server.url), quiet=True, on_step=restart)
    rows = [row for row in metric_rows(tmp_path / "run") if row["phase"] == "train"]
    assert result.state == "finished" and len(rows) == 4
    assert max(row["sampler_gap"] for row in rows) < 1e-4
    assert server.process.poll() is None and served_models(server.url) == [str(folder)]


@pytest.mark.parametrize("rank", [4, 0], ids=["adapter", "all weights"])
def test_in_bf16_a_server_that_keeps_its_weights_is_noticed_at_once(
    low_server, folder, config, tmp_path, rank
):
    settings = {"lora": LoraOptions(rank=rank) if rank else LoraOptions(), "precision": "bf16"}
    with stuck(low_server.url) as url, pytest.raises(TrainingError, match="does not follow") as stopped:
        train(config(url, "stuck", **settings), quiet=True)
    assert "Step 2 stopped" in str(stopped.value)
    train(config(low_server.url, **settings), quiet=True)
    gaps = [row["sampler_gap"] for row in metric_rows(tmp_path / "run") if "sampler_gap" in row]
    assert len(gaps) == 4 and 1e-3 < np.mean(gaps) < 0.1
    if not rank:
        load_weights(ServerOptions(url=low_server.url), "first", folder)


def test_in_fp32_a_bf16_server_is_named(low_server, config):
    with pytest.raises(TrainingError, match=r"bf16 or fp8.*--precision bf16.*--collect\.sampler_gap 0\.0"):
        train(config(low_server.url), quiet=True)


def test_an_engine_that_dies_is_named(low_server, folder):
    """Last in this file: the server is gone afterwards."""
    renderer, options = renderer_of(folder), SampleOptions(num_completions=64, max_new_tokens=400)
    timer = threading.Timer(1.0, low_server.kill_engine)
    timer.start()
    with pytest.raises(EngineDied, match="--max-num-batched-tokens 8192"):
        sample_server(ServerOptions(url=low_server.url, concurrency=64), renderer, RECORDS, options, 1)
    timer.join()
