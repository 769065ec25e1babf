"""REINFORCE with each baseline, and its moving average over several steps."""

import jaxtyping
import pytest
import torch

from preftune.errors import ConfigError
from preftune.objectives.reinforce import REINFORCE
from preftune.types import Rewards
from tests.objectives.samples import K3, SAMPLES, check_samples, couple, losses_of, numbers, sample_scores


@pytest.mark.parametrize(
    ("baseline", "advantage"), [("none", (3.0, 1.0)), ("mean", (1.0, -1.0)), ("leave_one_out", (2.0, -2.0))]
)
def test_baselines(baseline, advantage):
    """-A * logp, with logp -3 and -1.5; every token of a completion gets -A."""
    a, b = advantage
    check_samples(
        REINFORCE(baseline=baseline),
        units=[3 * a, 1.5 * b],
        slopes=[-a, -a, -b],
        metrics={"advantage/abs": [abs(a), abs(b)]},
    )


def test_the_penalty_is_in_the_reward():
    """r - .4 * h: 3 - .1 and 1 + .2, the log-ratios being .25 and -.5; no gradient flows through it."""
    check_samples(
        REINFORCE(baseline="none", beta=0.4),
        units=[3 * 2.9, 1.5 * 1.2],
        slopes=[-2.9, -2.9, -1.2],
        metrics={"advantage/abs": [2.9, 1.2], "kl": K3},
    )


def test_the_penalty_is_in_the_baseline_too():
    """2.9 and 1.2: each less the other."""
    check_samples(
        REINFORCE(beta=0.4),
        units=[3 * 1.7, -1.5 * 1.7],
        slopes=[-1.7, -1.7, 1.7],
        metrics={"advantage/abs": [1.7, 1.7], "kl": K3},
    )


def test_first_step_of_the_moving_average_is_the_step_s_own_mean():
    check_samples(
        REINFORCE(baseline="moving_average", momentum=0.5),
        units=[3.0, -1.5],
        slopes=[-1.0, -1.0, 1.0],
        metrics={"advantage/abs": [1.0, 1.0]},
    )


def test_moving_average_over_four_steps():
    """Means 2, 6, 2, -1 at momentum .75: 2; .75 * 2 + .25 * 2 = 2; .75 * 2 + .25 * 6 = 3; .75 * 3 + .25 * 2 =
    2.75.
    """
    objective = REINFORCE(baseline="moving_average", momentum=0.75)
    scores, state, found = sample_scores(objective), None, []
    for rewards in ([3.0, 1.0], [5.0, 7.0], [2.0, 2.0], [-1.0, -1.0]):
        signal = Rewards(reward=numbers(rewards), group=torch.tensor([0, 1]))
        before = None if state is None else {name: value.clone() for name, value in state.items()}
        coupling, new = couple(objective, scores, signal, state)
        assert before is None or all(torch.equal(before[name], state[name]) for name in before)
        found.append(coupling.whole["baseline"].item())
        state = new
    assert found == pytest.approx([2.0, 2.0, 3.0, 2.75])
    assert state["baseline"].item() == pytest.approx(0.75 * 2.75 - 0.25)
    assert state["steps"].item() == 4


def test_what_is_known_of_past_steps_is_subtracted():
    """The reward's penalty is not part of the average."""
    objective = REINFORCE(baseline="moving_average", momentum=0.0, beta=0.4)
    scores = sample_scores(objective)
    _, state = couple(objective, scores, Rewards(reward=numbers([5.0, 5.0]), group=torch.tensor([0, 0])))
    assert couple(objective, scores, SAMPLES, state)[0].whole["baseline"].item() == 5.0


def test_rewards_are_log_probabilities_or_log_ratios():
    """`rewards/*` of the better and the worse completion."""
    plain = losses_of(REINFORCE())[0].metrics
    assert (plain["rewards/chosen"].tolist(), plain["rewards/rejected"].tolist()) == ([-3.0], [-1.5])
    held = losses_of(REINFORCE(beta=0.4))[0].metrics
    assert held["rewards/chosen"].tolist() == pytest.approx([0.1])
    assert held["rewards/rejected"].tolist() == pytest.approx([-0.2])


def test_alone_with_others_as_baseline_there_is_nothing_to_learn():
    signal = Rewards(reward=numbers([3.0, 1.0]), group=torch.tensor([0, 1]))
    assert losses_of(REINFORCE(), signal)[0].per_unit.tolist() == [0.0, 0.0]


def test_momentum_belongs_to_the_moving_average(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ConfigError, match="momentum is out of range"):
        REINFORCE(baseline="moving_average")
    with pytest.raises(ConfigError, match="momentum has no effect with baseline mean"):
        REINFORCE(baseline="mean", momentum=0.9)
    for wrong in (-1e-6, 1.0):
        with pytest.raises(ConfigError, match="momentum is out of range"):
            REINFORCE(baseline="moving_average", momentum=wrong)
    REINFORCE(baseline="moving_average", momentum=0.0)


def test_needs():
    assert REINFORCE().needs == frozenset()
    assert REINFORCE(beta=0.1).needs == {"ref_logp"}
    moving = REINFORCE(baseline="moving_average", momentum=0.9)
    assert moving.needs == {"coupling"}
    assert moving.couples == frozenset()
