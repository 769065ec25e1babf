"""Completions that go on from a given beginning: where it is cut, and whose the log-probabilities are."""

import json

import numpy as np
import pytest

from preftune.commands.sample import run
from preftune.data.options import DataOptions
from preftune.data.render import make_renderer
from preftune.errors import ConfigError, DataError
from preftune.model.load import LoadOptions, load_model, load_tokenizer
from preftune.model.policy import Policy
from preftune.sampling.agreement import agreement
from preftune.sampling.client import ServerOptions
from preftune.sampling.prefix import PrefixOptions, beginnings, behind, check_prefix, with_beginnings
from preftune.sampling.sample import SampleOptions, sample
from preftune.sampling.sampled import Sampled
from preftune.sampling.server import sample_server
from preftune.types import Record
from tests.folders import write_rows
from tests.sampling.test_server import peer, stats  # noqa: F401

ANSWER = "First, 2 + 2 = 4.\nThen 4 + 1 = 5.\n\nSo the answer is 5."


@pytest.fixture(scope="module")
def model(tiny_folder):
    return load_model(str(tiny_folder), LoadOptions())


@pytest.fixture(scope="module")
def renderer(tiny_folder):
    return make_renderer(load_tokenizer(str(tiny_folder), LoadOptions()), DataOptions().template)


def record(text=ANSWER):
    return Record(prompt="Add.", completions=(), columns={"answer": text}, origin="f:1")


def cut(renderer, share, where="token", text=ANSWER):
    [ids] = beginnings(renderer, [record(text)], PrefixOptions(column="answer", share=share, cut=where))
    return ids, renderer.decode(ids)


def test_where_an_answer_is_cut(renderer):
    whole, text = cut(renderer, 1.0)
    assert text == ANSWER and renderer.end_of_turn not in whole
    half, _ = cut(renderer, 0.5)
    assert half.tolist() == whole[: len(whole) // 2].tolist()
    first, second = ANSWER.index("\n") + 1, ANSWER.index("\n\n") + 2
    ends = {round(share, 2): cut(renderer, share, "step")[1] for share in np.arange(0.05, 1.0, 0.05)}
    assert set(ends.values()) == {"", ANSWER[:first], ANSWER[:second]}
    for share, found in ends.items():  # the longest that is within the share
        room = len(cut(renderer, share)[1])
        assert found == max((ANSWER[:end] for end in (0, first, second) if end <= room), key=len)
    assert cut(renderer, 1.0, "step")[1] == ANSWER
    assert [len(cut(renderer, 1.0, where, " ")[0]) for where in ("token", "step")] == [0, 0]
    assert beginnings(renderer, [record()], PrefixOptions()) is None


@pytest.mark.parametrize("engine", ["shared", "repeated", "recomputed"])
def test_what_is_drawn_goes_on_from_it_and_is_scored_alone(engine, model, renderer):
    records = [record(), record("No."), record("")]
    options = SampleOptions(num_completions=3, max_new_tokens=7)
    given = beginnings(renderer, records, PrefixOptions(column="answer", share=0.6))
    prompts = [renderer.render(one).prompt for one in records]
    drawn = sample(model, renderer, behind(prompts, given), options, 3, engine=engine)
    whole = with_beginnings(drawn, given, renderer)
    policy = Policy(model=model, precision="fp32", sharing="shared", sharing_reason="")
    found = agreement(policy, prompts, whole)  # scored by the trainer, in the places of the mask
    assert found.max < 1e-4
    assert found.num_tokens == sum(one.num_scored for ones in whole for one in ones)
    for ids, ones, own in zip(given, whole, drawn, strict=True):
        for one, alone in zip(ones, own, strict=True):
            assert one.token_ids.tolist() == [*ids.tolist(), *alone.token_ids.tolist()]
            assert one.text.startswith(renderer.decode(ids)) and one.num_scored == len(alone.token_ids)
    assert whole[2][0].scored is None
    plain = sample(model, renderer, prompts, options, 3, engine=engine)
    assert [one.text for one in plain[0]] != [one.text for one in drawn[0]]
    assert [one.text for one in plain[2]] == [one.text for one in whole[2]]


def test_a_letter_that_is_cut_through_is_whole_again(renderer):
    ids = renderer.render(Record(prompt="x", completions=("né",))).completions[0]
    for at in range(1, len(ids) - 1):
        one = Sampled(token_ids=ids[at:], text="?", ended=True)
        [[found]] = with_beginnings([[one]], [ids[:at]], renderer)
        assert found.text == "né"


def test_a_server_gets_the_beginning_as_tokens(peer, renderer):  # noqa: F811
    server = peer()
    records = [record(), record("No, it is not.")]
    given = beginnings(renderer, records, PrefixOptions(column="answer", share=0.5))
    options = SampleOptions(num_completions=2, max_new_tokens=6)
    drawn = with_beginnings(
        sample_server(server, renderer, records, options, 0, given=given), given, renderer
    )
    bodies = [body["prompt"] for path, body in stats(server)["bodies"] if path == "/v1/completions"]
    prompts = [renderer.render(one).prompt for one in records]
    wanted = [
        [*prompt.tolist(), *ids.tolist()] for prompt, ids in zip(prompts, given, strict=True) for _ in "12"
    ]
    assert sorted(bodies) == sorted(wanted)
    for ids, ones in zip(given, drawn, strict=True):
        for one in ones:
            assert one.token_ids[: len(ids)].tolist() == ids.tolist()
            assert not one.scored[: len(ids)].any() and one.scored[len(ids) :].all()
            assert len(one.logp) == one.num_scored
    chat = ServerOptions(url=server.url, api="chat")
    with pytest.raises(ConfigError, match="A beginning of completions has no place in a chat"):
        sample_server(chat, renderer, records, options, 0, given=given)


def test_the_command_writes_whole_answers(tiny_folder, tmp_path, capsys):
    prompts = write_rows(tmp_path / "p.jsonl", [{"prompt": "Add.", "answer": ANSWER}] * 2)
    words = f"--model {tiny_folder} --prompts {prompts} --prefix.column answer --prefix.share 0.5 --prefix.cut step"
    run([*words.split(), "--max_new_tokens", "5", "--output", str(tmp_path / "s.jsonl")])
    rows = [json.loads(line) for line in (tmp_path / "s.jsonl").read_text().splitlines()]
    first = ANSWER[: ANSWER.index("\n") + 1]
    assert all(row["completions"][0].startswith(first) and row["completions"][0] != ANSWER for row in rows)
    assert [row["num_tokens"][0] <= 5 for row in rows] == [True, True] and rows[0]["answer"] == ANSWER


def test_refusals():
    with pytest.raises(ConfigError, match=r"prefix.share has no effect without answers to begin with"):
        PrefixOptions(share=0.5)
    with pytest.raises(ConfigError, match=r"prefix.share is out of range"):
        PrefixOptions(column="answer", share=0.0)
    with pytest.raises(
        DataError, match=r"f:1: the column chosen holds no answer to continue.* --rows.format prompts"
    ):
        check_prefix([record()], PrefixOptions(column="chosen"))
    check_prefix([record()], PrefixOptions(column="answer"))
