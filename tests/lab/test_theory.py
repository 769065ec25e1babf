"""Closed forms against automatic differentiation, and against numbers worked out by hand beforehand."""

import numpy as np
import pytest
import torch

from preftune.lab.theory import (
    PAGE_TOY,
    after_pair_step,
    checks,
    descended,
    forward_direction,
    gradient_product,
    held_down,
    kl,
    logarithmic_mean,
    mass_change,
    reverse_direction,
)
from preftune.objectives.bnf import BNF
from preftune.types import Labels, TokenScores

P, Q = np.array([0.6, 0.1, 0.15, 0.15]), np.array([0.05, 0.5, 0.225, 0.225])


def test_numbers_on_record():
    found = checks()
    assert len(found) == 39
    for check in found:
        assert check.found == pytest.approx(check.expected, abs=check.tolerance), check.text


@pytest.mark.parametrize("direction", [forward_direction, reverse_direction])
def test_directions_are_gradients(direction):
    z, q = torch.tensor(np.log(P), requires_grad=True), torch.tensor(Q)
    logp = z.log_softmax(0)
    loss = (
        (q * (q.log() - logp)).sum()
        if direction is forward_direction
        else (logp.exp() * (logp - q.log())).sum()
    )
    (gradient,) = torch.autograd.grad(loss, z)
    assert -gradient.numpy() == pytest.approx(direction(P, Q), abs=1e-12)


def test_mass_moves_as_the_first_order_says():
    direction, eta = reverse_direction(P, Q), 1e-6
    moved = (descended(P, Q, reverse_direction, eta, 1) - P) / eta
    assert moved == pytest.approx(mass_change(P, direction), abs=1e-5)


def test_logarithmic_mean_lies_between_the_others():
    assert logarithmic_mean(4.0, 1.0) == pytest.approx(3 / np.log(4))
    assert 2.0 < logarithmic_mean(4.0, 1.0) < 2.5


def test_policy_gradient_with_a_penalty_descends_on_the_divergence_to_the_optimum():
    """sum_a pi(a) grad log pi(a) (r - beta log(pi / ref)) = -beta grad KL(pi || ref exp(r / beta) / Z)."""
    reward, beta = np.array([0.3, -1.0, 0.7, 0.1]), 0.4
    optimum = Q * np.exp(reward / beta) / (Q * np.exp(reward / beta)).sum()
    advantage = reward - beta * np.log(P / Q)
    gradient = P * (advantage - (P * advantage).sum())
    assert gradient == pytest.approx(beta * reverse_direction(P, optimum), abs=1e-12)


def test_the_sign_of_the_product_says_whether_a_negative_gradient_helps():
    random = np.random.default_rng(0)
    for p in random.dirichlet(np.ones(5), 300):
        helped = after_pair_step(p, 0, 1, 1e-4, 1.0)[0] - after_pair_step(p, 0, 1, 1e-4, 0.0)[0]
        assert (helped > 0) == (gradient_product(p, 0, 1) < 0)
        assert kl(p, p) == 0


def test_the_page_s_toy_comes_out_with_its_labels_exchanged():
    forward, reverse = (
        descended(*PAGE_TOY, direction, 0.3, 10) for direction in (forward_direction, reverse_direction)
    )
    assert forward == pytest.approx([0.250, 0.201, 0.348, 0.201], abs=5e-4)
    assert reverse == pytest.approx([0.318, 0.219, 0.244, 0.219], abs=5e-4)


def test_bnf_s_flow_falls_as_a_logarithm_and_likelihood_s_as_a_line():
    times = np.array([1.0, 9.0, 99.0])
    start = np.log(0.001)
    assert held_down(start, times, feedback=True) - start == pytest.approx(-np.log1p(times), rel=0.02)
    late = held_down(start, times, feedback=False)
    assert np.diff(late) == pytest.approx([-8.0, -90.0], rel=1e-3)


@pytest.mark.parametrize("fallen", [0.0, 0.5, 3.0])
def test_the_flow_is_that_of_the_objective(fallen):
    """d logit / dt is minus the gradient of BNF on one dispreferred token."""
    start = np.log(0.1)
    log_odds = torch.tensor(np.log(0.1 / 0.9) - fallen, dtype=torch.float64, requires_grad=True)
    scores = TokenScores(
        logp=torch.nn.functional.logsigmoid(log_odds)[None],
        lengths=torch.tensor([1]),
        ref_logp=torch.tensor([start], dtype=torch.float64),
    )
    loss = BNF()(scores, Labels(label=torch.tensor([-1]))).per_unit.sum()
    (gradient,) = torch.autograd.grad(loss, log_odds)
    slope = -np.exp(-fallen) / (1 + np.exp(log_odds.item()))
    assert -gradient.item() == pytest.approx(slope, rel=1e-9)
