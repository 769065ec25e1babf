"""Completions from a server: a peer process that speaks the protocol, with its faults, and a real
`transformers serve`.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.request
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from preftune.cli.main import main
from preftune.data.render import make_renderer
from preftune.errors import ConfigError, ModelError, ServerError
from preftune.sampling.client import ServerOptions
from preftune.sampling.replies import read_tokens
from preftune.sampling.sample import SampleOptions
from preftune.sampling.server import _Prompt, _sampled, sample_server
from preftune.sampling.server_weights import load_adapter, unload_adapter
from preftune.types import Message, Record
from tests.data.tokenizers_for_tests import CHATML, byte_tokenizer

RENDERER = make_renderer(byte_tokenizer(CHATML, eos="<|im_end|>"))
RECORDS = [
    Record(prompt="Hi", completions=()),
    Record(prompt="What is tea?", completions=()),
    Record(
        prompt=(Message(role="system", content="Be brief."), Message(role="user", content="And coffee?")),
        completions=(),
    ),
]
OPTIONS = SampleOptions(num_completions=4, max_new_tokens=6)


@pytest.fixture
def peer(tmp_path, monkeypatch):
    """Starts peer processes; gives the options that reach one."""
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    processes = []

    def start(**settings) -> ServerOptions:
        where = tmp_path / f"port{len(processes)}"
        script = Path(__file__).with_name("peer.py")
        processes.append(
            subprocess.Popen([sys.executable, script, where, json.dumps(settings)], stderr=subprocess.DEVNULL)
        )
        wait_for(where.exists)
        return ServerOptions(url=f"http://127.0.0.1:{where.read_text()}", backoff_s=0.01, timeout_s=20.0)

    yield start
    for process in processes:
        process.kill()
        process.wait()


def wait_for(condition, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def stats(server: ServerOptions) -> dict:
    with urllib.request.urlopen(f"{server.url}/stats") as answer:
        return json.load(answer)


def as_lists(drawn):
    return [[(one.token_ids.tolist(), one.text, one.ended) for one in ones] for ones in drawn]


# What is sent, and what comes of the answer


def test_token_ids_go_and_come(peer):
    server = peer()
    told = []
    drawn = sample_server(server, RENDERER, RECORDS, OPTIONS, 3, lambda done, of: told.append((done, of)))
    assert [len(ones) for ones in drawn] == [4, 4, 4]
    flat = [one for ones in drawn for one in ones]
    assert {one.ended for one in flat} == {True, False}
    for one in flat:
        assert one.ended == (one.token_ids[-1] == RENDERER.end_of_turn)
        assert one.text == RENDERER.decode(one.token_ids[:-1] if one.ended else one.token_ids)
        assert one.logp.shape == one.token_ids.shape and one.logp.dtype == np.float32
        assert one.behaviour_logp.tolist() == one.logp.tolist()
    assert told[0] == (0, 12) and told[-1] == (12, 12) and told == sorted(told)
    bodies = [body for path, body in stats(server)["bodies"] if path == "/v1/completions"][
        1:
    ]  # the first is the probe
    prompts = [RENDERER.render(record).prompt.tolist() for record in RECORDS]
    assert sorted(body["prompt"] for body in bodies) == sorted(prompts * 4)
    assert len({body["seed"] for body in bodies}) == 12
    for body in bodies:
        sent = {
            "model": "tiny",
            "max_tokens": 6,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": -1,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
            "logprobs": 1,
            "stop_token_ids": [RENDERER.end_of_turn],
        }
        assert {name: body[name] for name in sent} == sent


def test_the_seed_decides_and_keys_move_along(peer):
    server = peer()
    first = as_lists(sample_server(server, RENDERER, RECORDS, OPTIONS, 3))
    assert first == as_lists(sample_server(server, RENDERER, RECORDS, OPTIONS, 3))
    assert first != as_lists(sample_server(server, RENDERER, RECORDS, OPTIONS, 4))
    backwards = sample_server(server, RENDERER, RECORDS[::-1], OPTIONS, 3, keys=[2, 1, 0])
    assert as_lists(backwards)[::-1] == first


@pytest.mark.parametrize("concurrency", [1, 3])
def test_requests_run_side_by_side_but_not_more_than_asked(peer, concurrency):
    server = replace(peer(delay=0.05), concurrency=concurrency)
    sample_server(server, RENDERER, RECORDS, OPTIONS, 0)
    assert stats(server)["most"] == concurrency


def test_an_end_of_turn_token_that_is_left_out_is_added(peer):
    assert as_lists(sample_server(peer(eos=False), RENDERER, RECORDS, OPTIONS, 3)) == as_lists(
        sample_server(peer(), RENDERER, RECORDS, OPTIONS, 3)
    )


@pytest.mark.parametrize(
    "options, logprobs, logp, behaviour",
    [
        ({}, "raw", True, True),
        ({}, "processed", True, True),
        ({"temperature": 0.5}, "raw", True, False),
        ({"temperature": 0.5}, "processed", False, True),
        ({"top_p": 0.9}, "raw", True, False),
        ({"min_p": 0.1}, "processed", False, True),
    ],
)
def test_what_log_probabilities_are_of(peer, options, logprobs, logp, behaviour):
    server = replace(peer(), logprobs=logprobs)
    [[one]] = sample_server(server, RENDERER, RECORDS[:1], SampleOptions(max_new_tokens=6, **options), 0)
    assert (one.logp is not None, one.behaviour_logp is not None) == (logp, behaviour)


@pytest.mark.parametrize(
    "style, api", [("bare", "tokens"), ("transformers", "transformers"), ("chat", "chat")]
)
def test_a_server_that_tells_text_alone(peer, style, api):
    server = peer(style=style)
    drawn = sample_server(server, RENDERER, RECORDS, OPTIONS, 3)
    assert as_lists(drawn) == as_lists(sample_server(replace(server, api=api), RENDERER, RECORDS, OPTIONS, 3))
    flat = [one for ones in drawn for one in ones]
    assert {one.ended for one in flat} == {True, False}
    for one in flat:
        assert one.logp is None and one.behaviour_logp is None
        assert RENDERER.decode(one.token_ids) == one.text + ("<|im_end|>" if one.ended else "")
    requests = stats(server)["bodies"][-12:]
    assert {path for path, _ in requests} == {
        "/v1/completions" if style == "bare" else "/v1/chat/completions"
    }
    if style == "bare":
        return
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "And coffee?"}]
    body, *others = [body for _, body in requests if body["messages"] == turns]
    assert len(others) == 3
    if style == "transformers":
        assert json.loads(body["generation_config"]) == {
            "do_sample": True,
            "max_new_tokens": 6,
            "repetition_penalty": 1.0,
            "eos_token_id": RENDERER.end_of_turn,
            "pad_token_id": RENDERER.end_of_turn,
            "temperature": 1.0,
            "top_p": 1.0,
            "top_k": 0,
        }


def test_what_a_chat_server_does_not_know_is_its_refusal(peer):
    server = replace(peer(style="chat"), api="chat")
    with pytest.raises(ServerError, match=r"refuses /v1/chat/completions; got status 422: .*min_p.*top_k"):
        sample_server(server, RENDERER, RECORDS, replace(OPTIONS, top_k=5), 0)


@pytest.mark.parametrize(
    "choice, ids, ended, told",
    [
        (
            {"token_ids": [50, 4], "finish_reason": "stop", "logprobs": {"token_logprobs": [-1.0, -2.0]}},
            [50, 4],
            True,
            True,
        ),
        (
            {"token_ids": [50], "finish_reason": "stop", "logprobs": {"token_logprobs": [-1.0]}},
            [50, 4],
            True,
            False,
        ),
        ({"token_ids": [], "finish_reason": "stop"}, [4], True, False),
        (
            {"token_ids": [50, 2], "finish_reason": "stop"},
            [50, 2],
            True,
            False,
        ),  # another special token ended it
        (
            {"token_ids": [50], "finish_reason": "length", "logprobs": {"token_logprobs": [-1.0]}},
            [50],
            False,
            True,
        ),
        ({"token_ids": [50], "finish_reason": "stop", "stop_reason": "I"}, [50], True, False),
        ({"token_ids": [50], "finish_reason": "stop", "matched_stop": "I"}, [50], True, False),
        ({"token_ids": [51], "finish_reason": "stop", "matched_stop": 4}, [51, 4], True, False),
        (
            {"token_ids": [50], "finish_reason": "stop", "text": "I"},
            [50],
            True,
            False,
        ),  # it says nothing, the text does
        (
            {
                "finish_reason": "length",
                "logprobs": {"tokens": ["token_id:50", "token_id:51"], "token_logprobs": [-1.0, -2.0]},
            },
            [50, 51],
            False,
            True,
        ),
    ],
)
def test_ends_as_servers_tell_them(choice, ids, ended, told):
    row = read_tokens({"choices": [{"text": ""} | choice]}, 6, 256)
    prompt = _Prompt(tokens=np.array([1], dtype=np.int32), record=None)
    one = _sampled(row, prompt, RENDERER, SampleOptions(stop=["I"]), ServerOptions(url="http://x"))
    assert (one.token_ids.tolist(), one.ended, one.logp is not None) == (ids, ended, told)


@pytest.mark.parametrize(
    "choice",
    [
        {},
        {"text": None, "finish_reason": "stop"},
        {"text": "", "finish_reason": "abort"},
        {"text": "", "finish_reason": "stop", "token_ids": [None]},
        {"text": "hello", "finish_reason": "stop", "token_ids": []},
        {"text": "hello", "finish_reason": "stop", "token_ids": {}},
        {"text": "a", "finish_reason": "stop", "token_ids": [10**12]},
        {"text": "a", "finish_reason": "stop", "token_ids": [-5]},
        {"text": "a", "finish_reason": "stop", "token_ids": [256]},
        {"text": "a", "finish_reason": "stop", "token_ids": [True]},
        {"text": "a", "finish_reason": "length", "token_ids": [1] * 7},
        {"text": "a", "finish_reason": "stop", "token_ids": [1] * 5000},
        {"text": "a", "finish_reason": "stop", "token_ids": [1], "logprobs": {"token_logprobs": [0.5]}},
        {"text": "a", "finish_reason": "stop", "token_ids": [1], "logprobs": {"token_logprobs": ["-1"]}},
        {"text": "a", "finish_reason": "tool_calls", "token_ids": [1]},
    ],
    ids=str,
)
def test_answers_that_cannot_be_used(choice):
    with pytest.raises((KeyError, TypeError, ValueError)) as caught:
        read_tokens({"choices": [choice]}, 6, 256)
    assert "positional argument" not in str(caught.value)


# Dialects, and answers that are withheld


def test_a_completion_that_is_filtered_is_left_out_and_counted(peer, tmp_path):
    server, notes = replace(peer(style="chat", filtered="tea"), api="chat"), []
    journal = tmp_path / "j.jsonl"
    drawn = sample_server(server, RENDERER, RECORDS, OPTIONS, 0, journal=journal, note=notes.append)
    assert [len(ones) for ones in drawn] == [4, 0, 4]
    assert notes == ["the server withholds 4 of 12 completions (content_filter); they are left out"]
    again = sample_server(server, RENDERER, RECORDS, OPTIONS, 0, journal=journal)
    assert as_lists(again) == as_lists(drawn)


def test_the_command_goes_past_a_filtered_prompt(peer, tmp_path, tiny_folder, capsys):
    prompts, output = tmp_path / "p.jsonl", tmp_path / "o.jsonl"
    prompts.write_text('{"prompt": "Hi"}\n{"prompt": "What is tea?"}\n')
    server = peer(style="chat", filtered="tea")
    words = ["sample", "--model", tiny_folder, "--prompts", str(prompts), "--output", str(output)]
    words += ["--server.url", server.url, "--server.api", "chat", "--max_new_tokens", "6"]
    assert main([str(word) for word in words]) == 0
    told = capsys.readouterr()
    assert "withholds 1 of 2 completions" in told.err + told.out
    assert [json.loads(line)["prompt"] for line in output.read_text().splitlines()] == ["Hi"]


def test_a_server_of_reasoning_models_gets_what_it_takes(peer):
    server = peer(style="reasoning")
    sample_server(server, RENDERER, RECORDS[:1], OPTIONS, 0)
    path, body = stats(server)["bodies"][-1]
    assert path == "/v1/chat/completions" and body["max_completion_tokens"] == 6
    assert not {"max_tokens", "temperature", "top_p"} & set(body)
    warm = replace(OPTIONS, temperature=0.7)
    with pytest.raises(ServerError, match=r"refuses the settings of sampling; got temperature 0.7, top_p 1"):
        sample_server(server, RENDERER, RECORDS[:1], warm, 0)


# Faults


@pytest.mark.parametrize("fault", ["fail", "busy", "malformed", "incomplete", "hang"])
def test_what_fails_is_tried_again_and_nothing_changes(peer, fault):
    times = 1 if fault == "hang" else 3
    server = replace(peer(**{fault: times}), timeout_s=1.5 if fault == "hang" else 20.0)
    expected = as_lists(sample_server(peer(), RENDERER, RECORDS, OPTIONS, 5))
    assert as_lists(sample_server(server, RENDERER, RECORDS, OPTIONS, 5)) == expected
    requests = stats(server)["requests"]
    assert requests == 12 + 1 + times or (
        fault == "hang" and requests > 14
    )  # a busy machine may be late by itself


@pytest.mark.parametrize(
    "fault, message",
    [
        ("fail", "gave no answer to /v1/completions in 3 tries; got status 500: 'out of order'"),
        ("malformed", "JSONDecodeError"),
        ("incomplete", "one choice was requested"),
        ("hang", "no complete answer within 0.3 s"),
    ],
)
def test_a_server_that_goes_on_failing_is_an_error(peer, fault, message):
    server = replace(peer(**{fault: 1000}), retries=2, timeout_s=0.3 if fault == "hang" else 20.0)
    with pytest.raises(ServerError, match=message):
        sample_server(server, RENDERER, RECORDS, OPTIONS, 5)
    assert stats(server)["requests"] == 3


def test_no_server_at_all():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = ServerOptions(url=f"http://127.0.0.1:{free.getsockname()[1]}", retries=1, backoff_s=0.01)
    with pytest.raises(ServerError, match="ConnectError"):
        sample_server(server, RENDERER, RECORDS, OPTIONS, 0)


def test_refusals_are_not_tried_again(peer, monkeypatch):
    server = replace(peer(key="secret"), model="tiny", api_key_env="TEST_KEY")
    with pytest.raises(ConfigError, match="TEST_KEY holds no key"):
        sample_server(server, RENDERER, RECORDS, OPTIONS, 0)
    monkeypatch.setenv("TEST_KEY", "wrong")
    with pytest.raises(ServerError, match="status 401") as caught:
        sample_server(server, RENDERER, RECORDS, OPTIONS, 0)
    assert "wrong" not in str(caught.value)
    monkeypatch.setenv("TEST_KEY", "secret")
    assert len(sample_server(server, RENDERER, RECORDS, OPTIONS, 0)) == 3
    with pytest.raises(
        ServerError, match=r"takes no request for a completion; got api tokens: .*there is no model other"
    ):
        sample_server(replace(server, model="other"), RENDERER, RECORDS, OPTIONS, 0)


def test_what_was_drawn_outlives_the_server(peer, tmp_path):
    journal = tmp_path / "deep" / "journal.jsonl"
    dying = replace(peer(die_after=6), retries=1, concurrency=2)
    with pytest.raises(ServerError):
        sample_server(dying, RENDERER, RECORDS, OPTIONS, 5, journal=journal)
    kept = [json.loads(line) for line in journal.read_text().splitlines() if line]
    assert len(kept) == 5  # one of the six answers was to the probe
    with open(journal, "a") as file:
        file.write('{"request": "half a li')
    server = peer()
    told = []
    drawn = sample_server(
        server, RENDERER, RECORDS, OPTIONS, 5, lambda done, of: told.append((done, of)), journal=journal
    )
    assert told[0] == (5, 12)
    assert stats(server)["requests"] == 1 + 7
    assert as_lists(drawn) == as_lists(sample_server(server, RENDERER, RECORDS, OPTIONS, 5))
    assert as_lists(sample_server(server, RENDERER, RECORDS, OPTIONS, 5, journal=journal)) == as_lists(drawn)
    before = stats(server)["requests"]
    sample_server(
        server, RENDERER, RECORDS, OPTIONS, 6, journal=journal
    )  # another seed: nothing of it was drawn before
    assert stats(server)["requests"] == before + 1 + 12


# Settings, adapters, the command line


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"url": "localhost:8000"}, "server.url is no address"),
        ({"concurrency": 4}, "server.concurrency has no effect without a server"),
        ({"url": "http://x", "concurrency": 0}, "server.concurrency is out of range"),
        ({"url": "http://x", "retries": -1}, "retries"),
        ({"url": "http://x", "timeout_s": 0.0}, "timeout_s"),
        ({"url": "http://x", "backoff_s": -1.0}, "backoff_s"),
    ],
)
def test_settings_out_of_range(settings, message):
    with pytest.raises(ConfigError, match=message):
        ServerOptions(**settings)


def test_plain_text_has_no_place_in_a_chat(peer):
    plain = make_renderer(byte_tokenizer(), "plain")
    with pytest.raises(ConfigError, match="plain-text prompt has no place in a chat"):
        sample_server(replace(peer(), api="chat"), plain, RECORDS[:1], OPTIONS, 0)
    with pytest.raises(ServerError, match="takes no request for a completion"):
        sample_server(peer(style="chat"), plain, RECORDS[:1], OPTIONS, 0)


def test_an_adapter_is_swapped_while_the_server_runs(peer):
    server = peer()
    swapped = load_adapter(server, "mine", Path("/runs/7/final"))
    unload_adapter(server, "older")
    assert stats(server)["adapters"] == [
        ["/v1/load_lora_adapter", {"lora_name": "mine", "lora_path": "/runs/7/final"}],
        ["/v1/unload_lora_adapter", {"lora_name": "older"}],
    ]
    sample_server(swapped, RENDERER, RECORDS[:1], OPTIONS, 0)
    assert stats(server)["bodies"][-1][1]["model"] == "mine"
    with pytest.raises(ModelError, match="does not take weights while it runs"):
        load_adapter(peer(style="chat"), "mine", Path("/runs/7/final"))


def test_the_verb_draws_from_a_server_and_goes_on_after_a_fault(peer, tiny_folder, tmp_path, capsys):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "drawn.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"Question {k}"}) + "\n" for k in range(5)))
    words = [
        "sample",
        "--model",
        str(tiny_folder),
        "--prompts",
        str(prompts),
        "--output",
        str(output),
        "--num_completions",
        "2",
        "--max_new_tokens",
        "6",
        "--server.backoff_s",
        "0.01",
        "--server.retries",
        "1",
        "--server.concurrency",
        "1",
    ]
    assert main([*words, "--server.url", peer(die_after=5).url]) == 5
    journal = Path(f"{output}.journal")
    told = capsys.readouterr().err
    assert journal.exists() and not output.exists()
    assert (
        f"finished completions are kept in {journal}" in told
        and "gave no answer" in told
        and "Traceback" not in told
    )
    server = peer()
    assert main([*words, "--server.url", server.url]) == 0
    assert "going on with what" in capsys.readouterr().err
    assert stats(server)["requests"] == 1 + 10 - 4
    rows = [json.loads(line) for line in output.read_text().splitlines()]
    assert [
        row["prompt"][0]["content"] if isinstance(row["prompt"], list) else row["prompt"] for row in rows
    ] == [f"Question {k}" for k in range(5)]
    assert all(len(row["completions"]) == len(row["ended"]) == 2 for row in rows)
    assert not journal.exists()
    assert main(["sample", "--server.url", server.url, "--prompt", "Hi", "--device", "cpu"]) == 2
    assert "device has no effect on a server" in capsys.readouterr().err


# The real thing


def test_transformers_serve(tiny_folder, tmp_path, monkeypatch):
    pytest.importorskip("fastapi")
    pytest.importorskip("uvicorn")
    pytest.importorskip("openai")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1,localhost")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "transformers.cli.transformers",
        "serve",
        str(tiny_folder),
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--device",
        "cpu",
    ]
    log = open(tmp_path / "log", "w")  # noqa: SIM115
    process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
    try:
        wait_for(lambda: answers(port) or process.poll() is not None, 120)
        assert process.poll() is None, (tmp_path / "log").read_text()
        server = ServerOptions(url=f"http://127.0.0.1:{port}/v1", model=str(tiny_folder), concurrency=1)
        records = RECORDS[:2]
        options = SampleOptions(num_completions=2, max_new_tokens=7)
        drawn = sample_server(server, RENDERER, records, options, 1)
        assert len({one.text for ones in drawn for one in ones}) == 4  # it really samples
        assert all(one.logp is None and len(one.token_ids) for ones in drawn for one in ones)
        greedy = SampleOptions(max_new_tokens=7, temperature=0.0)
        one, two = (as_lists(sample_server(server, RENDERER, records, greedy, seed)) for seed in (1, 2))
        assert one == two
        assert one == as_lists(greedy_here(tiny_folder, records, greedy))
    finally:
        process.kill()
        process.wait()
        log.close()


def greedy_here(folder, records, options):
    from preftune.model.load import LoadOptions
    from preftune.sampling.sample import load_sampler, sample

    model, renderer = load_sampler(str(folder), LoadOptions(), "fp32", "cpu")
    drawn = sample(model, renderer, [renderer.render(record).prompt for record in records], options, 0)
    # A server tells text: what the tokens of it are is the tokenizer's word.
    return [
        [
            replace(
                one,
                token_ids=renderer.render(
                    Record(prompt=record.prompt, completions=(one.text,), ended=(one.ended,))
                ).completions[0],
            )
            for one in ones
        ]
        for record, ones in zip(records, drawn, strict=True)
    ]


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
            return True
    except OSError:
        return False
