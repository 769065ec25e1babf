"""Rewards of steps, against values worked by hand and against the exact gradient of an expected reward."""

import itertools
import math

import numpy as np
import pytest
import torch

from preftune import losses
from preftune.errors import ConfigError
from preftune.model.layout import batch_signal
from preftune.objectives import OBJECTIVES
from preftune.objectives.credit import outcome_reward, own_step, received, received_before, standardized_steps
from preftune.objectives.grpo import GRPO
from preftune.objectives.ppo import PPO
from preftune.objectives.reinforce import REINFORCE
from preftune.objectives.reinforce_plus_plus import ReinforcePlusPlus
from preftune.objectives.rloo import RLOO
from preftune.train.step import join_signals
from preftune.types import Coupling, Group, Rewards, StepView, TokenScores

NAN = math.nan
LENGTHS = torch.tensor([4, 3])
SIGNAL = Rewards(
    reward=torch.tensor([1.75, 1.0], dtype=torch.float64),  # outcomes 1 and 0
    group=torch.tensor([0, 0]),
    step=torch.tensor([NAN, 0.5, NAN, 0.25, 1.0, NAN, 0.0], dtype=torch.float64),
)


def test_what_tokens_receive():
    assert outcome_reward(SIGNAL, LENGTHS).tolist() == [1.0, 0.0]
    assert received(SIGNAL, LENGTHS).tolist() == [0, 0.5, 0, 1.25, 1, 0, 0]
    assert received_before(SIGNAL, LENGTHS).tolist() == [0, 0, 0.5, 0.5, 0, 1, 1]
    assert own_step(SIGNAL, LENGTHS).tolist() == [0.5, 0.5, 0.25, 0.25, 1, 0, 0]
    behind = Rewards(reward=SIGNAL.reward, group=SIGNAL.group, step=SIGNAL.step.clone())
    behind.step[3] = behind.step[6] = NAN
    assert own_step(behind, LENGTHS).tolist() == [0.5, 0.5, 0, 0, 1, 0, 0]


def test_steps_are_standardized_over_all_of_a_group():
    """0.5, 0.25, 1, 0: mean 0.4375, squares sum to 0.546875, over 3."""
    deviation = math.sqrt(0.546875 / 3)
    expected = [0, 0.0625, 0, -0.1875, 0.5625, 0, -0.4375]
    found = standardized_steps(SIGNAL, LENGTHS, 0.0)
    assert found.tolist() == pytest.approx([value / deviation for value in expected])
    equal = Rewards(reward=SIGNAL.reward, group=SIGNAL.group, step=torch.where(SIGNAL.step.isnan(), NAN, 0.1))
    assert standardized_steps(equal, LENGTHS, 1e-4).abs().max() == 0


def scores_of(logp):
    return TokenScores(
        logp=logp, lengths=LENGTHS, behaviour_logp=logp.detach(), value=torch.zeros(7).double()
    )


ROOT = math.sqrt(2) / 2  # 1 / the deviation of outcomes 1 and 0, halved: (1 - 0.5) / 0.7071
D = math.sqrt(0.546875 / 3)
ADVANTAGES = {
    "return": (REINFORCE(baseline="none"), [1.75, 1.75, 1.25, 1.25, 1, 0, 0]),
    "return, others' mean": (REINFORCE(), [0.75, 0.75, 0.25, 0.25, -0.75, -1.75, -1.75]),
    "step": (REINFORCE(baseline="none", credit="step"), [1.5, 1.5, 1.25, 1.25, 1, 0, 0]),
    "step, others' mean": (REINFORCE(credit="step"), [1.5, 1.5, 1.25, 1.25, 0, -1, -1]),
    "rloo": (RLOO(beta=0.0), [0.75, 0.75, 0.25, 0.25, -0.75, -1.75, -1.75]),
}


@pytest.mark.parametrize("name", ADVANTAGES)
def test_the_gradient_is_the_advantage_of_each_token(name):
    objective, expected = ADVANTAGES[name]
    logp = torch.linspace(-1, -2, 7, dtype=torch.float64, requires_grad=True)
    found = objective(scores_of(logp), SIGNAL)
    found.per_unit.sum().backward()
    assert logp.grad.tolist() == pytest.approx([-value for value in expected])


def test_the_functions_of_losses_take_steps():
    logp, step = torch.linspace(-1, -2, 7, dtype=torch.float64), SIGNAL.step
    found = losses.reinforce(
        logp, lengths=LENGTHS, rewards=[1.75, 1.0], step_rewards=step, baseline="none", credit="step"
    )
    expected = -torch.tensor(ADVANTAGES["step"][1], dtype=torch.float64) @ logp / 2
    assert float(found.loss) == pytest.approx(float(expected))
    with pytest.raises(ConfigError, match="dr-grpo does not use step_rewards"):
        losses.dr_grpo(logp, lengths=LENGTHS, rewards=[1, 0], behaviour_logp=logp, step_rewards=step)


def test_grpo_adds_what_the_outcome_and_the_later_steps_are_worth():
    logp = torch.linspace(-1, -2, 7, dtype=torch.float64, requires_grad=True)
    GRPO(beta=0.0, eps=1e-12)(scores_of(logp), SIGNAL).per_unit.sum().backward()
    later = [-0.125 / D, -0.125 / D, -0.1875 / D, -0.1875 / D, 0.125 / D, -0.4375 / D, -0.4375 / D]
    sizes = [4, 4, 4, 4, 3, 3, 3]
    expected = [
        -((ROOT if t < 4 else -ROOT) + value) / size
        for t, (value, size) in enumerate(zip(later, sizes, strict=True))
    ]
    assert logp.grad.tolist() == pytest.approx(expected)


def test_returns_of_whitened_methods_hold_steps():
    """The reward to go of each token, whitened over the step by its own moments."""
    to_go = torch.tensor([1.75, 1.75, 1.25, 1.25, 1, 0, 0], dtype=torch.float64)
    view = StepView(lengths=LENGTHS, prompt=torch.tensor([0, 0]), signal=SIGNAL)
    coupling, _ = ReinforcePlusPlus(beta=0.0).couple(view, {})
    assert coupling.whole["mean"] == pytest.approx(float(to_go.mean()))
    assert coupling.whole["variance"] == pytest.approx(float(to_go.var()))
    logp = torch.linspace(-1, -2, 7, dtype=torch.float64, requires_grad=True)
    ppo = PPO(kl_coef=0.0, lam=1.0, vf_coef=0.0, normalize_returns=False)
    whole = {"mean": torch.zeros(()).double(), "variance": torch.ones(()).double()}
    scores = TokenScores(
        **{name: getattr(scores_of(logp), name) for name in ("logp", "lengths", "behaviour_logp", "value")},
        coupling=Coupling(whole=whole),
    )
    ppo(scores, SIGNAL).per_unit.sum().backward()
    assert logp.grad.tolist() == pytest.approx((-to_go).tolist(), rel=1e-6)


@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
def test_credit_for_what_follows_has_the_gradient_of_the_expected_reward(baseline):
    """Two tokens of two values, all completions by enumeration; pairs of them where the baseline is another's."""
    theta = torch.tensor([0.3, -0.7, 0.9], dtype=torch.float64, requires_grad=True)
    first, second = torch.tensor([0.2, 1.1]), torch.tensor([[0.0, 2.0], [0.7, -0.4]])

    def logps(a, b):
        return torch.stack(
            [
                torch.nn.functional.logsigmoid((2 * a - 1) * theta[0]),
                torch.nn.functional.logsigmoid((2 * b - 1) * theta[1 + a]),
            ]
        )

    texts = list(itertools.product((0, 1), (0, 1)))
    chance = [logps(a, b).sum().exp() for a, b in texts]
    rewards = [float(first[a] + second[a, b]) for a, b in texts]
    expected = sum(p * r for p, r in zip(chance, rewards, strict=True))
    [exact] = torch.autograd.grad(expected, theta, retain_graph=True)
    count = 1 if baseline == "none" else 2
    total = torch.zeros(3, dtype=torch.float64)
    for drawn in itertools.product(range(4), repeat=count):
        flat = torch.cat([logps(*texts[i]) for i in drawn])
        step = [value for i in drawn for value in (float(first[texts[i][0]]), NAN)]
        signal = Rewards(
            reward=torch.tensor([rewards[i] for i in drawn], dtype=torch.float64),
            group=torch.zeros(count, dtype=torch.long),
            step=torch.tensor(step, dtype=torch.float64),
        )
        lengths = torch.full((count,), 2)
        found = REINFORCE(baseline=baseline)(TokenScores(logp=flat, lengths=lengths), signal)
        [gradient] = torch.autograd.grad(found.per_unit.mean(), theta, retain_graph=True)
        total += float(math.prod(chance[i].item() for i in drawn)) * gradient
    assert total.tolist() == pytest.approx((-exact).tolist())


def test_steps_reach_the_signal_and_pieces_without_them_are_filled():
    ids = np.array([1, 2, 3], dtype=np.int32)
    with_steps = Group(
        prompt=ids, completions=(ids,), rewards=(1.0,), step_rewards=(np.array([NAN, 1, NAN]),)
    )
    without = Group(prompt=ids, completions=(ids[:2],), rewards=(2.0,))
    one, two = (batch_signal([group], Rewards) for group in (with_steps, without))
    assert two.step is None
    joined = join_signals([one, two], [torch.tensor([3]), torch.tensor([2])])
    both = batch_signal([with_steps, without], Rewards)
    for found in (joined, both):
        assert found.step.nan_to_num(nan=9).tolist() == [9, 1, 9, 9, 9]
        assert found.group.tolist() == [0, 1]
    assert join_signals([two, two], [torch.tensor([2])] * 2).step is None


def test_who_uses_steps():
    made = {name: kind() for name, kind in OBJECTIVES.items() if name not in ("mixture",)}
    assert {name for name, one in made.items() if one.uses_steps} == {
        "reinforce",
        "rloo",
        "reinforce-plus-plus",
        "ppo",
        "grpo",
    }
    assert not RLOO(clip=0.2).uses_steps and REINFORCE(credit="step").wants_steps
