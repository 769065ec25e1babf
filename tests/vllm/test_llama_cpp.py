"""Sampling from llama.cpp's own server: the model of a GGUF export, by token ids and by chat."""

import subprocess
import time

import pytest

from preftune.cli.main import main
from preftune.model.load import LoadOptions
from preftune.sampling.client import ServerOptions
from preftune.sampling.sample import SampleOptions, load_sampler, sample
from preftune.sampling.server import sample_server
from preftune.types import Record
from tests.vllm.server import PYTHON, answers, free_port, save_servable_model

SERVE = """
import sys, time
import xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.port = sys.argv[1], int(sys.argv[2])
settings.n_ctx, settings.n_parallel, settings.warmup = 512, 1, False
server = xllamacpp.Server(settings)
while True:
    time.sleep(60)
"""
RECORDS = [Record(prompt=f"Say {word}.", completions=(), origin=word) for word in ("sea", "poem", "tea")]


def _is_installed() -> bool:
    found = PYTHON.exists() and subprocess.run([PYTHON, "-c", "import xllamacpp"], capture_output=True)
    return bool(found) and found.returncode == 0


pytestmark = [
    pytest.mark.vllm,
    pytest.mark.xdist_group("vllm"),
    pytest.mark.skipif(not _is_installed(), reason="no llama.cpp: `make vllm` installs it"),
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_servable_model(tmp_path_factory.mktemp("model") / "servable")


@pytest.fixture(scope="module")
def url(model, tmp_path_factory):
    output, port = tmp_path_factory.mktemp("gguf") / "model", free_port()
    assert main(["export", str(model), "--to", "gguf", "--dtype", "f32", "--output", str(output)]) == 0
    process = subprocess.Popen(
        [PYTHON, "-c", SERVE, output / "model.gguf", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while not answers(f"http://127.0.0.1:{port}"):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("api", ["tokens", "chat"])
def test_greedy_text_is_that_of_transformers(model, url, api, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    sampler, renderer = load_sampler(str(model), LoadOptions(), "fp32", "cpu")
    options = SampleOptions(max_new_tokens=12, temperature=0.0)
    prompts = [renderer.render(record).prompt for record in RECORDS]
    here = [ones[0].text.rstrip("\ufffd") for ones in sample(sampler, renderer, prompts, options, 0)]
    drawn = sample_server(ServerOptions(url=url, api=api, retries=0), renderer, RECORDS, options, 0)
    assert [ones[0].text.rstrip("\ufffd") for ones in drawn] == here and all(map(len, here))
    assert all(one.logp is None for ones in drawn for one in ones)


def test_samples_differ_and_a_stop_text_ends_them(model, url, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    _, renderer = load_sampler(str(model), LoadOptions(), "fp32", "cpu")
    options = SampleOptions(num_completions=6, max_new_tokens=24)
    drawn = sample_server(ServerOptions(url=url, api="chat"), renderer, RECORDS, options, 0)
    texts = [one.text for ones in drawn for one in ones]
    assert len(set(texts)) == len(texts)
    stop = next(char for text in texts for char in text[2:] if char.isascii() and char.isalpha())
    stopped = SampleOptions(num_completions=6, max_new_tokens=24, stop=[stop])
    again = sample_server(ServerOptions(url=url, api="chat"), renderer, RECORDS, stopped, 0)
    assert not any(stop in one.text for ones in again for one in ones) and any(
        one.ended for ones in again for one in ones
    )
