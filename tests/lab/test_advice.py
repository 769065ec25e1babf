"""Evidence measured on problems against the laws it is drawn from; regret by hand; problems that are drawn."""

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from benchmarks.advice.contest import METHODS, Arm, Raced, choices, race
from benchmarks.advice.problems import STEPS, Draw, drawn
from benchmarks.advice.regret import Habit, habits, regret, regret_of_range, span, summary

from preftune.advice.advice import advise
from preftune.errors import ConfigError
from preftune.lab.environment import World
from preftune.lab.measured_evidence import cyclic_noise, labeled, measure_evidence, upper_share
from preftune.lab.problem import Problem
from tests.lab.problems import tiny

GROUPS = 400


def many(policy: str, **changes: object) -> Problem:
    """A small problem with so many prompts that measures come near to their expectations."""
    contexts = {"contexts": {"train": GROUPS}} if policy == "tabular" else {}
    return tiny(policy, data={"completions": 3, "law": {"kind": "skewed", "tilt": 0.5}} | changes, **contexts)


def below_best(law: np.ndarray, data: np.ndarray, reward: np.ndarray, size: int) -> float:
    """P(reward of one draw of `law` < best reward of `size` draws of `data`), ties half, by enumeration."""
    found = 0.0
    for outcomes in itertools.product(range(len(data)), repeat=size):
        chance, best = math.prod(data[i] for i in outcomes), max(reward[i] for i in outcomes)
        found += chance * float((law * ((reward < best) + (reward == best) / 2)).sum())
    return found


@pytest.mark.parametrize("policy", ["tabular", "hazard"])
def test_evidence_is_what_the_laws_say(policy):
    problem = many(policy)
    law, data, reward = problem.reference_law(), problem.data_law(), problem.reward_values()
    found = measure_evidence(problem, groups=GROUPS, can_reward=True, seed=3)
    assert found.num_prompts == GROUPS and found.completions_per_prompt == 3
    assert found.best_of_data == pytest.approx(below_best(law, data, reward, 3), abs=0.03)
    order = np.argsort(reward)
    below = np.cumsum(law[order])
    for n in (1, 4):
        exact = float((reward[order] * np.diff(below**n, prepend=0)).sum())
        assert found.best_of_n is not None and found.best_of_n[n] == pytest.approx(exact, abs=0.04)
    mean = (law * reward).sum()
    # The standard deviation of 16 draws is nearly unbiased: its mean is a little below the law's.
    assert found.reward_spread == pytest.approx(math.sqrt((law * (reward - mean) ** 2).sum()), rel=0.08)
    assert (
        found.noise is not None and 0 < found.noise < 0.01
    )  # no pair is exchanged; the upper end is above 0
    if policy == "tabular":
        assert found.off_policy == pytest.approx(((law - data) * np.log(law)).sum(), abs=0.05)
        assert found.completion_tokens == 1 and found.length_bias is None
    else:
        lengths = np.minimum(np.arange(1, 8), 6)
        assert found.completion_tokens == pytest.approx((data * lengths).sum(), abs=0.2)


def test_length_bias_by_enumeration():
    problem = many("hazard")
    data, reward, lengths = problem.data_law(), problem.reward_values(), np.minimum(np.arange(1, 8), 6)
    first, second = np.meshgrid(np.arange(7), np.arange(7), indexing="ij")
    chance = np.outer(data, data) * (reward[first] > reward[second])
    exact = (chance * ((np.sign(lengths[first] - lengths[second]) + 1) / 2)).sum() / chance.sum()
    found = measure_evidence(problem, groups=GROUPS, can_reward=False, seed=0)
    assert found.length_bias == pytest.approx(exact, abs=0.05)


def test_without_a_reward_nothing_that_wants_one():
    found = measure_evidence(many("tabular"), groups=GROUPS, can_reward=False, seed=0)
    assert found.best_of_data is found.best_of_n is found.reward_spread is found.zero_spread is None
    assert found.can_reward is False and found.num_pairs


@pytest.mark.parametrize("can_reward", [True, False])
def test_exchanged_pairs_are_counted(can_reward):
    """With a reward against it, without one from contradictions."""
    found = measure_evidence(
        many("tabular", completions=5, noise=0.2), groups=GROUPS, can_reward=can_reward, seed=1
    )
    assert found.noise is not None and 0.2 <= found.noise < 0.26


def test_evidence_is_of_the_data_that_training_uses():
    problem = many("tabular")
    world, found = World(problem, (5,)), measure_evidence(problem, groups=GROUPS, can_reward=True, seed=5)
    rewards = world.rewards(world.sample_data(GROUPS, 3), true=True)[0]
    assert found.num_pairs == sum(
        int(one[i] != one[j]) for one in rewards for i, j in ((0, 1), (0, 2), (1, 2))
    )


def test_labels_and_contradictions_by_hand():
    rewards = torch.tensor([[3.0, 2.0, 1.0]])
    straight = labeled(rewards, None)
    assert straight[0].int().tolist() == [[0, 1, 1], [0, 0, 1], [0, 0, 0]]
    turned = labeled(rewards, torch.tensor([[False, True, False]]))  # first against third
    assert turned[0].int().tolist() == [[0, 1, 0], [0, 0, 1], [1, 0, 0]]
    # One triple, a cycle: the upper end is 1, cut at the largest share that noise can make, 1/4, at a half
    # exchanged.
    assert cyclic_noise(turned) == pytest.approx(0.5)
    many_straight = straight.expand(1000, 3, 3)
    z2 = 1.645**2
    assert cyclic_noise(many_straight) == pytest.approx((1 - math.sqrt(1 - 4 * z2 / (1000 + z2))) / 2)
    assert cyclic_noise(labeled(torch.tensor([[1.0, 2.0]]), None)) is None


def test_upper_share_by_hand():
    assert upper_share(0, 0) == 1
    assert upper_share(0, 10) == pytest.approx(1.645**2 / (10 + 1.645**2))
    assert upper_share(50, 100) == pytest.approx(0.5811, abs=1e-4)


# --- problems, contests, regret ---


def test_a_problem_depends_on_its_seed_and_number_only():
    assert drawn(3, 7) == drawn(3, 7) != drawn(4, 7)
    kinds = {drawn(5, index).problem.policy for index in range(40)}
    assert kinds == {"tabular", "mlp", "hazard"}


@pytest.mark.parametrize("index", range(40))
def test_every_drawn_problem_has_loops_within_its_budget(index):
    draw = drawn(11, index)
    for source in ("offline", "on-policy") if draw.on_policy else ("offline",):
        loop = draw.loop(source)
        assert loop.steps in STEPS
        groups, step, size = loop.sizes(World(draw.posed(source), (0,)))
        assert (groups, size) == (draw.groups, draw.problem.data.completions)
        if source == "on-policy":
            assert loop.epochs is not None
            collections = math.ceil(draw.steps / (loop.epochs * groups // step))
            assert collections * groups * size <= draw.samples
            assert draw.posed(source).data.noise == 0


def test_who_may_take_part():
    problem = tiny("tabular", contexts={"train": 4})

    def names(**changes):
        found = choices(
            Draw(**{"problem": problem, "groups": 4, "steps": 2, "rounds": 2, "can_reward": True} | changes)
        )
        return {(one.source, one.objective) for one in found}

    assert len(METHODS) >= 12
    both = names()
    assert ("on-policy", "rloo") in both and ("offline", "rloo") not in both and ("offline", "nca") in both
    assert names(can_reward=False) == {
        ("offline", n) for n in ("sft", "bnf", "kto", "dpo", "robust-dpo", "ipo", "simpo", "wpo")
    }
    assert {source for source, _ in names(rounds=0)} == {"offline"}


def test_a_race_runs_everything_and_says_the_same_twice():
    draw = Draw(problem=tiny("tabular", contexts={"train": 4}), groups=4, steps=3, rounds=2, can_reward=True)
    found, poor = race(draw, 50), replace(draw, can_reward=False)
    again = race(poor, 50)
    assert set(found.returns) == set(choices(draw)) and set(again.returns) == set(choices(poor))
    assert all(found.returns[choice] == value for choice, value in again.returns.items())
    law, reward = draw.problem.reference_law(), draw.problem.reward_values()
    assert found.start == pytest.approx((law * reward).sum(), abs=1e-5) and found.full_range == 3.0
    assert all(
        value > found.start for choice, value in found.returns.items() if choice.objective in ("dpo", "rloo")
    )


A, B = Arm(source="offline", objective="dpo"), Arm(source="offline", objective="bnf")
C = Arm(source="on-policy", objective="rloo")


def raced(**returns: float) -> Raced:
    of = {"a": A, "b": B, "c": C}
    return Raced(
        returns={of[name]: value for name, value in returns.items()}, rates={}, start=0.2, full_range=1.0
    )


def test_regret_by_hand():
    found = raced(a=0.5, b=0.1, c=0.7)
    assert span(found) == pytest.approx(0.5)
    assert [regret(found, choice) for choice in (A, B, C)] == pytest.approx([0.4, 1.2, 0.0])
    little = raced(a=0.21, b=0.2)  # a gain of 0.01 counts as one of a twentieth of the range
    assert span(little) == pytest.approx(0.05) and regret(little, B) == pytest.approx(0.2)
    wide = replace(found, full_range=4.0)
    assert [regret_of_range(wide, choice) for choice in (A, B, C)] == pytest.approx([0.05, 0.15, 0.0])
    with pytest.raises(ConfigError, match="did not take part"):
        regret(little, C)


def test_habits_by_hand():
    races = [raced(a=0.5, b=0.1, c=0.7), raced(a=0.3, b=0.4)]
    pair, single = Habit(on_policy="rloo", offline="dpo"), Habit(on_policy=None, offline="dpo")
    assert [pair.choice(one) for one in races] == [C, A] and [single.choice(one) for one in races] == [A, A]
    assert set(habits(races)) == {
        Habit(on_policy=on, offline=off) for on in (None, "rloo") for off in ("bnf", "dpo")
    }


def test_summary_by_hand():
    found = summary([0.0, 0.05, 0.1, 0.2, 1.0])
    assert found == {"median": 0.1, "p90": 0.68, "mean": 0.27, "share_within_5_percent": 0.4}


@pytest.mark.parametrize("index", range(30))
def test_what_is_advised_can_be_run(index):
    draw = drawn(12, index)
    evidence = measure_evidence(draw.problem, groups=draw.groups, can_reward=draw.can_reward, seed=index)
    advice = advise(
        evidence.with_answers(can_sample=draw.rounds > 0, samples=draw.samples, can_hold_reference=True)
    )
    assert Arm(source=advice.source[0].choice, objective=advice.objective[0].choice) in choices(draw)  # type: ignore[arg-type]
