"""Optima in closed form, reached numerically: a bandit is a completion of one token, all arms enumerated by
probability.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from preftune.objectives.bnf import BNF
from preftune.objectives.dpo import DPO
from preftune.objectives.ipo import IPO
from preftune.objectives.kto import KTO
from preftune.types import Coupling, Labels, Pairs, StepView, TokenScores

REF = torch.tensor([0.4, 0.3, 0.2, 0.1], dtype=torch.float64)
REWARD = torch.tensor([0.0, 1.0, -0.5, 0.7], dtype=torch.float64)
ARMS = len(REF)


def scores_of(logits: Tensor, arms: Tensor) -> TokenScores:
    """One completion of one token for each entry of `arms`."""
    return TokenScores(
        logp=logits.log_softmax(0)[arms],
        ref_logp=REF.log()[arms],
        lengths=torch.ones(len(arms), dtype=torch.long),
    )


def minimized(loss: Callable[[Tensor], Tensor]) -> Tensor:
    """The policy at the loss's minimum, from the reference."""
    logits = REF.log().clone().requires_grad_()
    optimizer = torch.optim.LBFGS(
        [logits], max_iter=3000, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss(logits)
        value.backward()
        return value

    optimizer.step(closure)
    return logits.detach().softmax(0)


def every_pair(preference: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(chosen, rejected, chance) of all ordered pairs of two draws from the reference, labeled by a
    preference.
    """
    chosen, rejected = torch.nonzero(1 - torch.eye(ARMS), as_tuple=True)
    return chosen, rejected, REF[chosen] * REF[rejected] * preference[chosen, rejected]


def expected_pair_loss(objective, preference: Tensor) -> Callable[[Tensor], Tensor]:
    chosen, rejected, chance = every_pair(preference)
    pairs = Pairs(chosen=chosen, rejected=rejected)
    return lambda logits: (
        (objective(scores_of(logits, torch.arange(ARMS)), pairs).per_unit * chance).sum() / chance.sum()
    )


BRADLEY_TERRY = torch.sigmoid(REWARD[:, None] - REWARD[None, :])


@pytest.mark.parametrize("beta", [0.3, 1.0])
def test_dpo_ends_at_the_tilted_reference(beta):
    """pi = ref * exp(r / beta) / Z where preferences follow Bradley and Terry."""
    tilted = (REF.log() + REWARD / beta).softmax(0)
    torch.testing.assert_close(
        minimized(expected_pair_loss(DPO(beta=beta), BRADLEY_TERRY)), tilted, rtol=1e-5, atol=1e-7
    )


@pytest.mark.parametrize("tau", [0.2, 1.0])
def test_ipo_ends_where_log_ratios_are_win_rates(tau):
    """pi = ref * exp(p(y) / tau) / Z with p(y) the chance to beat a draw from the reference, for any
    preferences.
    """
    random = torch.Generator().manual_seed(0)
    upper = torch.rand((ARMS, ARMS), generator=random, dtype=torch.float64).triu(1)
    preference = upper + (1 - upper).triu(1).T + 0.5 * torch.eye(ARMS)
    win_rate = preference @ REF
    expected = (REF.log() + win_rate / tau).softmax(0)
    found = minimized(expected_pair_loss(IPO(tau=tau, reduction="sum"), preference))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-7)


def expected_bnf(net: Tensor) -> Callable[[Tensor], Tensor]:
    """Loss of BNF where arm i is seen as preferred minus dispreferred `net[i]` of the time."""
    labels = Labels(label=torch.sign(net).long())
    return lambda logits: (BNF()(scores_of(logits, torch.arange(ARMS)), labels).per_unit * net.abs()).sum()


def test_bnf_ends_at_the_net_frequencies_of_what_is_preferred():
    """What is preferred by balance gets its share of the balance, where that is above the reference; the rest
    vanishes.
    """
    net = torch.tensor([0.5, 0.3, -0.1, -0.1], dtype=torch.float64)
    expected = torch.tensor([0.5, 0.3, 0.0, 0.0], dtype=torch.float64) / 0.8
    torch.testing.assert_close(minimized(expected_bnf(net)), expected, rtol=0, atol=1e-3)


def test_bnf_leaves_what_falls_below_the_reference_to_its_odds():
    """The shares of the balance, (.6, .02, .01) / .63, are below the reference for the second arm: it is held
    up by less than likelihood would, and falls until 1 - p = net (1 - q) / (q S), or, as that cannot be met
    here, vanishes.
    """
    net = torch.tensor([0.6, 0.02, 0.0, -0.1], dtype=torch.float64)
    found = minimized(expected_bnf(net))
    assert found[0] > 0.99
    assert found[1:].max() < 5e-3


def test_bnf_on_dispreferred_arms_alone_moves_their_mass_to_the_others():
    """The labeled arms vanish, and the loss stays above its bound: minus the mean of (1 - q) / q * |log(1 -
    q)|.
    """
    net = torch.tensor([0.0, 0.0, -0.5, -0.5], dtype=torch.float64)
    found = minimized(expected_bnf(net))
    assert found[2:].max() < 2e-3
    q = REF[2:]
    lowest = (0.5 * (1 - q) / q * torch.log1p(-q)).sum().item()
    assert expected_bnf(net)(found.log()).item() == pytest.approx(lowest, rel=1e-2)


def test_bnf_at_the_reference_is_plain_reinforcement():
    """At p = q every weight is 1: the gradient on the logits is -(net - p * sum(net))."""
    net = torch.tensor([0.4, 0.1, -0.3, -0.05], dtype=torch.float64)
    logits = REF.log().clone().requires_grad_()
    (gradient,) = torch.autograd.grad(expected_bnf(net)(logits), logits)
    torch.testing.assert_close(gradient, -(net - REF * net.sum()), rtol=1e-10, atol=1e-12)


def expected_kto(net: Tensor, z0: float) -> Callable[[Tensor], Tensor]:
    """Loss of KTO at beta 1 where arm i is seen as preferred minus dispreferred `net[i]` of the time."""
    labels, coupling = (
        Labels(label=torch.sign(net).long()),
        Coupling(whole={"z0": torch.tensor(z0, dtype=net.dtype)}),
    )

    def loss(logits: Tensor) -> Tensor:
        scores = replace(scores_of(logits, torch.arange(ARMS)), coupling=coupling)
        return (KTO(beta=1.0)(scores, labels).per_unit * net.abs()).sum()

    return loss


@pytest.mark.parametrize("z0", [0.0, 0.4])
def test_kto_ends_at_shares_of_geometric_means(z0):
    """p = (1 + e^z0) * sqrt(net q) / sum sqrt(net q) - e^z0 q, where nothing is dispreferred on balance."""
    net = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
    root, threshold = (net * REF).sqrt(), math.exp(z0)
    expected = (1 + threshold) * root / root.sum() - threshold * REF
    assert expected.min() > 0.02
    torch.testing.assert_close(minimized(expected_kto(net, z0)), expected, rtol=1e-5, atol=1e-7)


def test_kto_shares_the_whole_among_what_is_preferred():
    """Dispreferred arms vanish; the others share as above, with their part Q of the reference: (1 + Q) root -
    q.
    """
    net = torch.tensor([0.5, 0.4, -0.2, -0.2], dtype=torch.float64)
    root = (net * REF)[:2].sqrt()
    expected = (1 + REF[:2].sum()) * root / root.sum() - REF[:2]
    found = minimized(expected_kto(net, 0.0))
    assert found[2:].max() < 2e-3
    torch.testing.assert_close(found[:2], expected, rtol=0, atol=2e-3)


def test_ktos_threshold_is_zero_on_completions_of_the_reference():
    """Their mean log-ratio is -KL(reference || policy); on the policy's own it is KL(policy || reference)."""
    policy = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.float64)

    def z0(often: Tensor) -> float:
        arms = torch.repeat_interleave(torch.arange(ARMS), (10 * often).round().long())
        ones = torch.ones(10, dtype=torch.long)
        others = scores_of(policy.log(), arms)
        step = StepView(lengths=ones, prompt=torch.arange(10), signal=Labels(label=ones), mismatched=others)
        return KTO().couple(step, {})[0].whole["z0"].item()

    assert z0(REF) == 0.0
    assert z0(policy) == pytest.approx((policy * (policy / REF).log()).sum().item(), rel=1e-12)
