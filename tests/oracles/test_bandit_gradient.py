"""Policy gradients on a bandit, in expectation: every group of samples that there could be, weighted by its
probability.

A completion is one token, drawn from K arms by a softmax policy; a group is G such draws. The expectation of
an objective's gradient over all K^G groups is compared with that of the expected reward, found by autograd.
"""

import itertools

import pytest
import torch
from torch import Tensor

from preftune.objectives import Objective
from preftune.objectives.clipping import kl_estimate
from preftune.objectives.grpo import DAPO, GRPO, GSPO, DrGRPO
from preftune.objectives.ppo import PPO
from preftune.objectives.reinforce import REINFORCE
from preftune.objectives.reinforce_plus_plus import ReinforcePlusPlus
from preftune.objectives.rloo import RLOO, PreferenceMatching
from preftune.objectives.topr import TOPR
from preftune.types import Coupling, Rewards, TokenScores

ARMS, SIZE = 4, 3


def tensor(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


LOGITS, REF, SAMPLER = tensor(0.5, -0.3, 0.1, 1.0), tensor(0.0, 0.4, -0.6, 0.3), tensor(1.0, 0.6, -0.4, 0.3)
REWARD, VALUE = tensor(1.0, -2.0, 0.5, 3.0), tensor(0.7, 0.7, 0.7, 0.7)


def expected_gradient(
    objective: Objective, sampler: Tensor = LOGITS, reward: Tensor = REWARD, size: int = SIZE, **whole: float
) -> Tensor:
    """d E[loss] / d logits, the expectation being over groups of draws from `sampler`; `whole` is the
    coupling.
    """
    logits = LOGITS.clone().requires_grad_()
    arms = torch.tensor(list(itertools.product(range(ARMS), repeat=size))).flatten()
    group = torch.arange(ARMS**size).repeat_interleave(size)
    behaviour = sampler.log_softmax(0)[arms]
    weight = behaviour.view(-1, size).sum(1).exp()[group] / size
    known = {"ref_logp": REF.log_softmax(0)[arms], "behaviour_logp": behaviour, "value": VALUE[arms]}
    scores = TokenScores(
        logp=logits.log_softmax(0)[arms],
        lengths=torch.ones(len(arms), dtype=torch.long),
        coupling=Coupling(whole={name: tensor(number)[0] for name, number in whole.items()}),
        **{name: values for name, values in known.items() if name in objective.needs},
    )
    losses = objective(scores, Rewards(reward=reward[arms], group=group))
    return torch.autograd.grad((losses.per_unit * weight).sum(), logits)[0]


def exact_gradient(beta: float = 0.0, reference: Tensor = REF) -> Tensor:
    """d -( E[r] - beta * KL(pi || ref) ) / d logits."""
    logits = LOGITS.clone().requires_grad_()
    logp = logits.log_softmax(0)
    value = (logp.exp() * (REWARD - beta * (logp - reference.log_softmax(0)))).sum()
    return torch.autograd.grad(-value, logits)[0]


def assert_same(one: Tensor, other: Tensor) -> None:
    assert other.abs().max() > 1e-2
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 0.7])
@pytest.mark.parametrize("baseline", ["none", "leave_one_out"])
def test_reinforce_is_exact(baseline, beta):
    assert_same(expected_gradient(REINFORCE(baseline=baseline, beta=beta)), exact_gradient(beta))


@pytest.mark.parametrize("known", [0.0, 1.7, -40.0])
def test_a_baseline_from_past_steps_changes_nothing(known):
    objective = REINFORCE(baseline="moving_average", momentum=0.9, beta=0.7)
    assert_same(expected_gradient(objective, baseline=known), exact_gradient(0.7))


@pytest.mark.parametrize("beta", [0.0, 0.7])
def test_a_mean_that_holds_the_sample_itself_shrinks_the_gradient(beta):
    """By (G - 1) / G, no more and in no other direction."""
    found = expected_gradient(REINFORCE(baseline="mean", beta=beta))
    assert_same(found, (SIZE - 1) / SIZE * exact_gradient(beta))


@pytest.mark.parametrize(("baseline", "factor"), [("mean", 1.0), ("leave_one_out", ARMS / (ARMS - 1))])
def test_over_all_arms_once_it_is_the_other_way_round(baseline, factor):
    """With each arm once in a single group, weighted by its probability, the mean is a constant of the
    bandit, so it is exact; leaving one out is larger by K / (K - 1).
    """
    logits = LOGITS.clone().requires_grad_()
    logp = logits.log_softmax(0)
    scores = TokenScores(logp=logp, lengths=torch.ones(ARMS, dtype=torch.long))
    losses = REINFORCE(baseline=baseline)(
        scores, Rewards(reward=REWARD, group=torch.zeros(ARMS, dtype=torch.long))
    )
    found = torch.autograd.grad((losses.per_unit * logp.detach().exp()).sum(), logits)[0]
    assert_same(found, factor * exact_gradient())


@pytest.mark.parametrize("clip", [None, 0.2])
def test_rloo_is_exact(clip):
    assert_same(expected_gradient(RLOO(beta=0.7, clip=clip)), exact_gradient(0.7))


def test_preference_matching_is_exact_for_reward_and_entropy():
    """A flat reference: E[r] + H(pi), up to a constant."""
    assert_same(expected_gradient(PreferenceMatching()), exact_gradient(1.0, reference=torch.zeros_like(REF)))


def test_preference_matching_rests_at_the_softmax_of_the_rewards():
    """Where pi = softmax(r), no group has an advantage: the closed-form optimum."""
    found = expected_gradient(PreferenceMatching(), reward=LOGITS + 3.0)
    assert found.abs().max() < 1e-12


def test_dr_grpo_on_the_policy_s_own_samples():
    """Its mean holds the sample itself: (G - 1) / G."""
    assert_same(expected_gradient(DrGRPO(max_tokens=1)), (SIZE - 1) / SIZE * exact_gradient())


@pytest.mark.parametrize("objective", [GRPO(beta=0.0, eps=1e-12), DAPO(eps=1e-12), GSPO(eps=1e-12)])
def test_with_two_samples_a_deviation_leaves_only_who_won(objective):
    """The advantage of two rewards is +-1 / sqrt 2 whatever their gap: any increasing function of the reward
    has the same gradient, which is that of winning against a fresh sample and not that of the reward.
    """
    found = expected_gradient(objective, size=2)
    assert_same(found, expected_gradient(objective, size=2, reward=REWARD**3))
    logits = LOGITS.clone().requires_grad_()
    pi, won = logits.softmax(0), torch.sign(REWARD[:, None] - REWARD[None, :])
    wins = (pi[:, None] * pi.detach()[None, :] * won).sum()
    torch.testing.assert_close(found, -torch.autograd.grad(wins, logits)[0] / 2**0.5, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize(
    ("kind", "other_way"), [("k2", False), ("k3", True)], ids=["k2 is KL(pi||ref)", "k3 is KL(ref||pi)"]
)
def test_the_gradient_of_an_estimator_in_the_loss(kind, other_way):
    """With rewards that are all equal, GRPO on the policy's own samples is its KL term."""
    found = expected_gradient(GRPO(beta=1.0, kl=kind), reward=torch.zeros(ARMS, dtype=torch.float64))
    logits = LOGITS.clone().requires_grad_()
    logp, ref = logits.log_softmax(0), REF.log_softmax(0)
    kl = (ref.exp() * (ref - logp)).sum() if other_way else (logp.exp() * (logp - ref)).sum()
    assert_same(found, torch.autograd.grad(kl, logits)[0])


def test_k1_in_the_loss_would_do_nothing():
    logits = LOGITS.clone().requires_grad_()
    logp = logits.log_softmax(0)
    loss = (logp.detach().exp() * kl_estimate("k1", logp - REF.log_softmax(0))).sum()
    assert torch.autograd.grad(loss, logits)[0].abs().max() < 1e-15


@pytest.mark.parametrize(
    "objective", [PPO(kl_coef=0.7, vf_coef=0.0, normalize_returns=False), ReinforcePlusPlus(beta=0.7)]
)
def test_whitening_by_numbers_of_the_step_only_scales(objective):
    """By 1 / sqrt(variance): mean and value, not those of the sample, do not change the direction."""
    found = expected_gradient(objective, mean=0.3, variance=4.0)
    assert_same(found * (4.0 + 1e-8) ** 0.5, exact_gradient(0.7))


def test_topr_is_exact_on_the_policy_s_own_samples():
    assert_same(expected_gradient(TOPR()), exact_gradient())


def test_topr_without_a_taper_is_exact_on_anybody_s_samples():
    open_wide = TOPR(positive_low=0.0, positive_high=1e6, negative_low=0.0, negative_high=1e6)
    assert_same(expected_gradient(open_wide, sampler=SAMPLER), exact_gradient())
    assert (expected_gradient(TOPR(), sampler=SAMPLER) - exact_gradient()).abs().max() > 1e-2


def test_topr_is_exact_where_only_likely_enough_samples_are_bad():
    """All rewards bad, and every ratio at most one but for arms of reward 0: nothing is cut."""
    ratio = LOGITS.softmax(0) / SAMPLER.softmax(0)
    bad = torch.where(ratio <= 1, REWARD.abs() + 1, 0.0) * -1.0
    logits = LOGITS.clone().requires_grad_()
    exact = torch.autograd.grad(-(logits.softmax(0) * bad).sum(), logits)[0]
    assert int((bad < 0).sum()) >= 2
    assert_same(expected_gradient(TOPR(), sampler=SAMPLER, reward=bad), exact)


def test_rloo_with_a_clip_never_reached_is_exact_on_a_neighbor_s_samples():
    """The ratio turns the sampler's expectation into the policy's, and the others' mean knows nothing of the
    sample.
    """
    wide = RLOO(beta=0.0, clip=0.99)
    near = LOGITS + 0.05 * (SAMPLER - LOGITS)
    ratio = LOGITS.softmax(0) / near.softmax(0)
    assert ratio.max() < 1.99 and ratio.min() > 0.01
    assert_same(expected_gradient(wide, sampler=near), exact_gradient())
