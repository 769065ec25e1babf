"""Rollouts with servers: one that draws the answers, and one that plays the user."""

import json

import numpy as np
import pytest

from preftune.environments.base import NamedEnvironment, RolloutOptions
from preftune.environments.drawers import server_drawer
from preftune.environments.played_user import PlayedUser
from preftune.environments.rollout import Rollouts
from preftune.environments.scripted import SelfCheck
from preftune.environments.steps import Steps
from preftune.errors import ConfigError, ServerError
from preftune.sampling.sample import SampleOptions
from preftune.types import Record
from tests.rewards.chat_server import serving
from tests.sampling.test_server import RENDERER, peer, stats

__all__ = ["peer"]  # a fixture

ROW = {"prompt": "Sell me tea.", "seed": 7, "mood": "hurried"}


def test_a_server_draws_the_answers_of_a_rollout(peer):
    """The second request holds the prompt, the first answer and the question, as the chat template writes them."""
    server = peer(style="tokens")
    options = SampleOptions(num_completions=2, max_new_tokens=12)
    environment = NamedEnvironment(
        name="self-check", environment=SelfCheck(question="Sure?"), has_rewards=False
    )
    rollouts = Rollouts(
        steps=Steps(environment, RolloutOptions(environment="self-check")),
        renderer=RENDERER,
        answer_tokens=12,
    )
    records = [Record(prompt="Hi", completions=(), origin="here")]
    prompt = RENDERER.render(records[0]).prompt

    def drawn():
        drawer = server_drawer(server, RENDERER, options, seed=3)
        return rollouts.draw(drawer, records, [prompt], [0], num_completions=2, seed=3)[0]

    found = drawn()
    asked = [
        body
        for path, body in stats(server)["bodies"]
        if path == "/v1/completions" and body["max_tokens"] == 12
    ]
    second = [body["prompt"] for body in asked if len(body["prompt"]) > len(prompt)]
    two = [one for one in found if one.num_answers == 2]
    assert two and len(second) == len(two)
    for one in two:
        ids, mask = one.sampled.token_ids, one.sampled.scored
        last = len(one.turns[-1].content) + bool(one.sampled.ended)  # the peer's tokens are letters
        assert [*prompt.tolist(), *ids[: len(ids) - last].tolist()] in second
        assert [turn.role for turn in one.turns] == ["assistant", "user", "assistant"]
        assert mask.sum() == len(one.sampled.logp) and "Sure?" in RENDERER.decode(ids[~mask])
        assert "Sure?" not in RENDERER.decode(ids[mask])
    again = drawn()
    assert all(
        np.array_equal(a.sampled.token_ids, b.sampled.token_ids) for a, b in zip(found, again, strict=True)
    )


def played(url, **settings):
    return PlayedUser(url=url, model="player", **({"retries": 0} | settings))


def test_a_played_user_sees_the_dialogue_from_the_other_side(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    replies = ["Green or black?", "Black then. END_OF_DIALOGUE"]
    with serving(lambda question, number: replies[number]) as server:
        user = played(server.url, instruction="You are {mood}. First: {prompt} End: {end}. {unknown}")
        state = user.reset(ROW)
        assert user.step(state, "We have tea.") == ("Green or black?", None)
        assert user.step(state, "Both.") == (None, None)  # the word that ends it
    first, second = [body["messages"] for body in server.bodies]
    assert [one["role"] for one in first] == ["user"]
    assert "You are hurried. First: Sell me tea. End: END_OF_DIALOGUE. {unknown}" in first[0]["content"]
    assert first[0]["content"].endswith("We have tea.")
    assert [one["role"] for one in second] == ["user", "assistant", "user"]
    assert [one["content"] for one in second[1:]] == ["Green or black?", "Both."]
    assert {body["seed"] for body in server.bodies} == {7}
    assert {body["model"] for body in server.bodies} == {"player"}


def test_a_played_user_stops_after_its_turns(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(lambda question, number: "And?") as server:
        user = played(server.url, turns=2)
        state = user.reset(ROW)
        assert [user.step(state, "Yes.")[0] for _ in range(3)] == ["And?", "And?", None]
    assert len(server.questions) == 2


@pytest.mark.parametrize(
    "reply", [(500, "out of order"), (200, json.dumps({"choices": [{"message": {"content": "a"}}] * 2}))]
)
def test_a_player_that_gives_no_usable_answer_is_an_error(reply, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with serving(lambda question, number: reply) as server:
        user = played(server.url)
        with pytest.raises(ServerError, match="The played user"):
            user.step(user.reset(ROW), "Yes.")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"url": "nowhere"}, "url"),
        ({"turns": 0}, "turns is out of range"),
        ({"instruction": "Be rude."}, "has no place {end}"),
        ({"end": " "}, "end"),
    ],
)
def test_settings_of_a_played_user(settings, message):
    with pytest.raises(ConfigError, match=message):
        PlayedUser(**({"url": "http://127.0.0.1:1/v1", "model": "m"} | settings))
