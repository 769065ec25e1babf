"""Length-normalized, -desensitised and -regularized DPO."""

import torch

from preftune.objectives.dpo import DPO
from preftune.objectives.length import LDDPO, LNDPO, RDPO
from preftune.types import Pairs, TokenScores
from tests.objectives.golden import PAIR, assert_same, check_pair, gradient, log_sigma, random_scores, sigma


def test_ln_dpo():
    """beta (.2 + .125) = 5 * .325 = 1.625; the slope is divided by each completion's own length."""
    push = 5 * sigma(-1.625)
    check_pair(LNDPO(), value=-log_sigma(1.625), slopes=(-push / 5, push / 8), rewards=(1.0, -0.625))


def test_ld_dpo():
    """m = 5: d(chosen) = 1, d(rejected) = -(5 + 3 / 2) / 8 = -.8125, so the margin is .18125."""
    push = 0.1 * sigma(-0.18125)
    check_pair(
        LDDPO(),
        value=-log_sigma(0.18125),
        slopes=[-push] * 5 + [push] * 5 + [push / 2] * 3,
        rewards=(0.1, -0.1),
    )


def test_ld_dpo_where_the_chosen_one_is_longer():
    """8 and 5 tokens: d(chosen) = (5 + 3 * .25) / 8 = .71875, d(rejected) = -1: margin .171875."""
    push = 0.1 * sigma(-0.171875)
    check_pair(
        LDDPO(alpha=0.25),
        lengths=(8, 5),
        value=-log_sigma(0.171875),
        slopes=[-push] * 5 + [-push / 4] * 3 + [push] * 5,
        rewards=(0.1, -0.1),
    )


def test_ld_dpo_lengths_are_those_of_each_pair():
    """One chosen completion of 3 tokens against two of 1 and 2: its last tokens are damped differently in
    each pair.
    """
    logp = torch.full((6,), -1.0, dtype=torch.float64, requires_grad=True)
    scores = TokenScores(logp=logp, ref_logp=torch.full((6,), -1.0).double(), lengths=torch.tensor([3, 1, 2]))
    pairs = Pairs(chosen=torch.tensor([0, 0]), rejected=torch.tensor([1, 2]))
    slopes = gradient(LDDPO(beta=1.0, alpha=0.0)(scores, pairs), scores)
    assert slopes == [-1.0, -0.5, 0.0, 0.5, 0.5, 0.5]


def test_ld_dpo_undamped_is_dpo():
    assert_same(LDDPO(beta=0.3, alpha=1.0), DPO(beta=0.3))


def test_ld_dpo_rewards_are_undamped():
    scores, pairs = random_scores()
    damped, plain = (one(scores, pairs).metrics for one in (LDDPO(beta=0.3, alpha=0.1), DPO(beta=0.3)))
    torch.testing.assert_close(damped["rewards/chosen"], plain["rewards/chosen"])


def test_r_dpo():
    """.2 + .01 * (5 - 8) = .17: a shorter chosen completion gets more gradient."""
    slope = -0.1 * sigma(-0.17)
    check_pair(RDPO(beta=0.1, alpha=0.01), value=0.611755, slopes=(slope, -slope), rewards=(0.1, -0.1))


def test_r_dpo_without_the_term_is_dpo():
    assert_same(RDPO(alpha=0.0), DPO())


def test_r_dpo_sign():
    """At the reference, the longer chosen completion has the smaller loss."""
    losses = []
    for lengths in ((8, 5), (5, 8)):
        scores, _ = random_scores(lengths=lengths)
        at_reference = TokenScores(logp=scores.ref_logp, ref_logp=scores.ref_logp, lengths=scores.lengths)
        losses.append(RDPO(alpha=0.1)(at_reference, PAIR).per_unit)
    torch.testing.assert_close(losses[0], torch.tensor([-log_sigma(0.3)]).double())
    torch.testing.assert_close(losses[1], torch.tensor([-log_sigma(-0.3)]).double())
