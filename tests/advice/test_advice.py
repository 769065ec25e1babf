"""Each rule of advice by evidence made for it, and none without."""

import dataclasses

import pytest

from preftune.advice.advice import advise
from preftune.advice.evidence import Evidence
from preftune.advice.rules import COLLECT, OFFLINE, ON_POLICY, SOURCE_RULES
from preftune.objectives import OBJECTIVES

OFFLINE_PAIRS = {"can_sample": False, "can_reward": False, "num_pairs": 1000}
OWN = {"can_sample": True, "can_reward": True, "samples": 1000}


def first(**known) -> tuple[str, str]:
    advice = advise(Evidence(**known))
    return advice.source[0].choice, advice.objective[0].choice


def collected(**known) -> list[str]:
    return [one.choice for one in advise(Evidence(**known)).collect]


@pytest.mark.parametrize("missing", ["can_sample", "can_reward"])
def test_own_samples_want_all_three(missing):
    assert first(**OWN)[0] == "on-policy"
    assert first(**OWN | {missing: False})[0] == "offline"
    assert first(**{name: value for name, value in OWN.items() if name != missing})[0] == "offline"
    assert first(**OWN | {"samples": 0})[0] == "offline"


def test_data_that_own_samples_do_not_reach_are_a_start():
    assert [one.choice for one in advise(Evidence(**OWN, best_of_data=0.97)).source] == [
        "offline",
        "mixed",
        "on-policy",
    ]
    assert [one.choice for one in advise(Evidence(**OWN, best_of_data=0.96)).source] == [
        "on-policy",
        "offline",
    ]
    assert [one.choice for one in advise(Evidence(can_reward=True, best_of_data=1.0)).source] == ["offline"]


def test_objectives_for_own_samples():
    assert first(**OWN) == ("on-policy", "rloo")
    assert first(**OWN, completion_tokens=1.0) == ("on-policy", "rloo")
    assert first(**OWN, completion_tokens=2.0) == ("on-policy", "dpo")
    assert first(**OWN, num_prompts=4, completions_per_prompt=2.0) == ("on-policy", "nca")
    assert first(**OWN, num_prompts=9, completions_per_prompt=1.0) == ("on-policy", "rloo")
    assert first(**OWN, num_prompts=4, completions_per_prompt=2.0, completion_tokens=2.0) == (
        "on-policy",
        "dpo",
    )
    assert first(**OWN, can_hold_reference=False) == ("on-policy", "reinforce")
    once = {
        "completion_tokens": 2.0,
        "num_prompts": 251,
        "completions_per_prompt": 2.0,
    }  # 1000 samples: 1.99 collections
    assert first(**OWN, **once) == ("on-policy", "rloo")
    assert first(**OWN, **once | {"num_prompts": 250}) == ("on-policy", "dpo")


def test_objectives_for_data():
    assert first() == first(**OFFLINE_PAIRS) == ("offline", "dpo")
    assert first(**OFFLINE_PAIRS | {"num_pairs": 0}) == ("offline", "bnf")
    assert first(**OFFLINE_PAIRS, can_hold_reference=False) == ("offline", "simpo")
    assert first(**OFFLINE_PAIRS, overlap=0.7) == ("offline", "bnf")
    assert first(**OFFLINE_PAIRS, overlap=0.69) == ("offline", "dpo")
    assert first(**OFFLINE_PAIRS, off_policy=0.3) == ("offline", "wpo")
    assert first(**OFFLINE_PAIRS, off_policy=-0.3) == ("offline", "dpo")
    assert first(**OFFLINE_PAIRS, noise=0.2) == ("offline", "robust-dpo")
    assert (
        first(**OFFLINE_PAIRS, noise=0.19)
        == first(**OFFLINE_PAIRS | {"num_pairs": 199}, noise=0.2)
        == ("offline", "dpo")
    )
    assert advise(Evidence(**OFFLINE_PAIRS, noise=0.3)).objective[0].settings == {"label_smoothing": 0.3}
    assert first(can_reward=True, completion_tokens=1.0) == ("offline", "nca")
    assert first(can_reward=True, completion_tokens=50.0) == ("offline", "dpo")


def test_length_is_left_out_only_where_the_user_says_so():
    assert first(**OFFLINE_PAIRS, length_bias=0.6, keep_length=True) == ("offline", "ln-dpo")
    assert first(**OFFLINE_PAIRS, length_bias=0.6) == ("offline", "dpo")
    assert first(**OFFLINE_PAIRS, length_bias=0.59, keep_length=True) == ("offline", "dpo")


def test_nothing_that_wants_a_reference_where_there_is_none():
    for known in (
        OFFLINE_PAIRS,
        OFFLINE_PAIRS | {"num_pairs": 0},
        OWN,
        OFFLINE_PAIRS | {"overlap": 0.9, "noise": 0.5},
    ):
        found = advise(Evidence(**known, can_hold_reference=False)).objective
        assert all("ref_logp" not in OBJECTIVES[one.choice]().needs for one in found)


def test_no_pairs_no_objective_on_pairs():
    found = [one.choice for one in advise(Evidence(**OFFLINE_PAIRS | {"num_pairs": 0})).objective]
    assert found == ["bnf", "kto"]


@pytest.mark.parametrize(
    ("known", "choice"),
    [
        ({"leakage": 0.001}, "remove the held-out prompts from the training data"),
        ({"duplicates": 0.1}, "remove repeated rows"),
        ({"noise": 0.2, "num_pairs": 200}, "a second judgment of each pair"),
        ({"can_reward": False}, "a reward: a rule, a judge, or a reward model of these pairs"),
        ({"can_reward": True, "samples": 0}, "a budget of own samples"),
        ({"zero_spread": 0.5}, "prompts on which the policy both fails and succeeds"),
        ({"best_of_n": {1: 0.0, 4: 0.04}, "reward_spread": 0.1}, "answers of a better author, to begin with"),
        ({"num_pairs": 199}, "more prompts rather than more completions of each"),
        ({"length_bias": 0.6}, "pairs in which the shorter side is chosen"),
    ],
)
def test_what_to_collect(known, choice):
    assert choice in collected(**known)


def test_nothing_to_collect_where_all_is_well():
    assert (
        collected(
            **OWN,
            leakage=0.0,
            duplicates=0.05,
            noise=0.1,
            zero_spread=0.1,
            best_of_n={1: 0.0, 4: 0.06},
            reward_spread=0.1,
            num_pairs=200,
            length_bias=0.5,
        )
        == []
    )


def test_advice_shows_what_it_rests_on_and_only_what_is_known():
    advice = advise(Evidence(**OWN, best_of_data=0.5))
    assert dict(advice.source[0].evidence) == {"samples": 1000, "best_of_data": 0.5}
    assert advice.as_json()["source"][0]["choice"] == "on-policy"


def test_a_budget_of_steps_says_how_many_samples_each_has():
    assert advise(Evidence(**OWN, steps=40)).source[0].settings == {"new_samples_per_step": 25.0}
    assert (
        advise(Evidence(**OWN)).source[0].settings
        == advise(Evidence(**OWN, steps=0)).source[0].settings
        == {}
    )


def test_every_rule_names_what_exists():
    fields = {field.name for field in dataclasses.fields(Evidence)}
    for rule in (*SOURCE_RULES, *ON_POLICY, *OFFLINE, *COLLECT):
        assert set(rule.rests_on) <= fields and rule.reason.endswith(".") and rule.basis
    for rule in (*ON_POLICY, *OFFLINE):
        OBJECTIVES[rule.choice](**rule.settings(Evidence(noise=1.0)))
