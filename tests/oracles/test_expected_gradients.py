"""Objectives on the policy's own samples: the gradient of their expected loss in closed form, group by group.

All K^G groups of draws from a softmax policy over K arms are enumerated. What an objective says of a group is
its loss, reduced over that group; the expectation weighs it by the group's probability.
"""

import itertools

import pytest
import torch
from torch import Tensor

from preftune.objectives import OBJECTIVES, Objective
from preftune.objectives.best_of_n import BestOfN
from preftune.objectives.bpo import BPO
from preftune.objectives.dpo import DPO
from preftune.objectives.group_regression import AGRO, GVPO, CoPG
from preftune.objectives.inpo import INPO
from preftune.objectives.ipo import IPO
from preftune.objectives.nash_md import NashMD
from preftune.objectives.rebel import REBEL
from preftune.objectives.reward_aware_rpo import RewardAwareRPO
from preftune.objectives.reward_distillation import RewardDistillation
from preftune.objectives.rwr import RWR
from preftune.objectives.spo import SPO
from preftune.types import Pairs, Rewards, TokenScores
from tests.oracles import test_bandit_gradient
from tests.oracles.test_bandit_gradient import ARMS, LOGITS, REF, REWARD, SIZE, assert_same, exact_gradient

BETA = 0.7


def expected_gradient(
    objective: Objective, *, reward: Tensor = REWARD, size: int = SIZE, ref: Tensor = REF
) -> Tensor:
    """d E[loss of a group] / d logits, on groups that the policy draws; pairs are two draws with the chance
    that the first wins.
    """
    logits = LOGITS.clone().requires_grad_()
    pairs = objective.signal is Pairs
    size = 2 if pairs else size
    arms = torch.tensor(list(itertools.product(range(ARMS), repeat=size))).flatten()
    num_groups = ARMS**size
    chance = LOGITS.log_softmax(0)[arms].view(-1, size).sum(1).exp()
    known = {"ref_logp": ref.log_softmax(0)[arms], "behaviour_logp": LOGITS.log_softmax(0)[arms]}
    scores = TokenScores(
        logp=logits.log_softmax(0)[arms],
        lengths=torch.ones(len(arms), dtype=torch.long),
        **{name: values for name, values in known.items() if name in objective.needs},
    )
    if pairs:
        first, second = torch.arange(num_groups) * 2, torch.arange(num_groups) * 2 + 1
        signal = Pairs(
            chosen=first,
            rejected=second,
            probability=torch.sigmoid(reward[arms[first]] - reward[arms[second]]),
        )
    else:
        signal = Rewards(reward=reward[arms], group=torch.arange(num_groups).repeat_interleave(size))
    losses = objective(scores, signal)
    weight = losses.weight.double().view(num_groups, -1)
    of_group = (losses.per_unit.view(num_groups, -1) * weight).sum(1) / weight.sum(1)
    return torch.autograd.grad((of_group * chance).sum(), logits)[0]


def win_gradient(win: Tensor) -> Tensor:
    """d -E[P(y beats a fresh sample)] / d logits, the opponent being held fixed."""
    logits = LOGITS.clone().requires_grad_()
    pi = logits.softmax(0)
    return torch.autograd.grad(-(pi[:, None] * pi.detach()[None, :] * win).sum(), logits)[0]


def reward_gradient(reward: Tensor, beta: float) -> Tensor:
    """d -(E[reward] - beta KL(pi || ref)) / d logits."""
    logits = LOGITS.clone().requires_grad_()
    logp = logits.log_softmax(0)
    return torch.autograd.grad(-(logp.exp() * (reward - beta * (logp - REF.log_softmax(0)))).sum(), logits)[0]


LOGISTIC = torch.sigmoid(REWARD[:, None] - REWARD[None, :])
ORDER = (torch.sign(REWARD[:, None] - REWARD[None, :]) + 1) / 2


@pytest.mark.parametrize(
    ("objective", "beta", "factor"),
    [
        # A pair's expected gradient is twice the covariance of reward and score; the square brings another
        # two.
        (RewardDistillation(beta=BETA), BETA, 4 * BETA),
        (REBEL(eta=0.3, kl_coef=BETA), BETA, 4 * 0.3),
        (REBEL(eta=0.3, kl_coef=0.0), 0.0, 4 * 0.3),
        (CoPG(beta=BETA), BETA, 2 * BETA * SIZE),
        (AGRO(beta=BETA), BETA, BETA),
        (GVPO(beta=BETA), 0.0, 2 * BETA * (SIZE - 1) / SIZE),
        (NashMD(beta=BETA), BETA, 1.0),
        (NashMD(beta=0.0), 0.0, 1.0),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else "",
)
def test_regressions_follow_the_policy_gradient(objective, beta, factor):
    """On the policy's own samples all of them descend on KL(pi || optimum), each at its own scale."""
    assert_same(expected_gradient(objective), factor * exact_gradient(beta))


def test_reward_aware_rpo_squared_scales_the_reward():
    objective = RewardAwareRPO(beta=BETA, eta=0.4, distance="squared")
    assert_same(expected_gradient(objective), 4 * BETA * reward_gradient(0.4 * REWARD, BETA))


@pytest.mark.parametrize("max_weight", [20.0, 1.5])
def test_rwr_raises_the_expected_exponential_of_the_reward(max_weight):
    """So it is a policy gradient without a baseline, on a reward that is never negative."""
    weight = (REWARD / 2.0).exp().clamp(max=max_weight)
    assert_same(expected_gradient(RWR(temperature=2.0, max_weight=max_weight)), reward_gradient(weight, 0.0))


def test_best_of_n_is_likelihood_of_the_law_of_the_best():
    """pi minus that law, whose sums are powers of the policy's."""
    order = REWARD.argsort()
    below = LOGITS.softmax(0)[order].cumsum(0)
    best = torch.zeros(ARMS, dtype=torch.float64)
    best[order] = torch.diff(below**SIZE, prepend=torch.zeros(1, dtype=torch.float64))
    assert_same(expected_gradient(BestOfN(negative_weight=0.0)), LOGITS.softmax(0) - best)


@pytest.mark.parametrize(("win", "law"), [("sign", ORDER), ("sigmoid", LOGISTIC)])
def test_spo_raises_the_chance_to_win(win, law):
    """The group's own members are the opponents, so the factor is K / (K - 1)."""
    assert_same(expected_gradient(SPO(win=win)), SIZE / (SIZE - 1) * win_gradient(law))


@pytest.mark.parametrize(
    ("objective", "factor"),
    [
        (DPO(beta=BETA), 2 * BETA),
        (IPO(tau=BETA, reduction="sum"), 4 / BETA),
        (BPO(beta=BETA), 2 * BETA),
        (BPO(beta=BETA, link="square"), 4 / BETA),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Objective) else "",
)
def test_pairs_of_own_samples_raise_the_chance_to_win(objective, factor):
    """Where policy and reference are equal, an online step of a contrastive loss is a policy gradient on win
    rates.
    """
    assert_same(expected_gradient(objective, ref=LOGITS), factor * win_gradient(LOGISTIC))


def test_away_from_the_reference_online_ipo_adds_its_pull():
    """The win rate over tau, less the KL divergence to the reference: 4 times the gradient of their sum."""
    exact = 4 * (win_gradient(LOGISTIC) / BETA + reward_gradient(torch.zeros_like(REWARD), 1.0))
    assert_same(expected_gradient(IPO(tau=BETA, reduction="sum")), exact)


def test_inpo_pulls_to_the_reference_by_its_share():
    objective = INPO(eta=BETA, tau=0.4)
    exact = 4 * (win_gradient(LOGISTIC) / BETA + reward_gradient(torch.zeros_like(REWARD), 0.4 / BETA))
    assert_same(expected_gradient(objective), exact)


HERE = {
    "reward-distillation",
    "rebel",
    "copg",
    "agro",
    "gvpo",
    "nash-md",
    "reward-aware-rpo",
    "rwr",
    "best-of-n",
    "spo",
    "bpo",
    "inpo",
}
WITHOUT = {
    "dft": "its normalizer is estimated over the steps of a prompt: no expectation of one step",
    "era": "a cross-entropy between two Bernoulli laws: a fit to a target, no policy gradient",
    "exo-group": "a divergence between softmaxes over a group: a fit to a target",
    "infonca": "a cross-entropy between softmaxes over a group: a fit to a target",
    "stepwise": "a classification of each step of a process reward model",
    "nca": "a classification of each completion against noise",
}
"""Objectives on rewards that have no gradient of an expected reward to be compared with."""


def test_every_objective_that_learns_from_own_samples_is_here_or_said_not_to_be():
    elsewhere = {name for name, kind in OBJECTIVES.items() if kind in vars(test_bandit_gradient).values()}
    wanted = {
        name
        for name, kind in OBJECTIVES.items()
        if kind().signal is Rewards or any(need.startswith("behaviour_") for need in kind().needs)
    }
    assert wanted == elsewhere | HERE | set(WITHOUT)
    assert not HERE & set(WITHOUT)
