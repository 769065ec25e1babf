"""CoPG, AGRO and GVPO: one estimator in three scales, and what it has to do with RLOO."""

import pytest
import torch

from preftune.objectives import reduce_losses
from preftune.objectives.group_regression import AGRO, GVPO, CoPG
from preftune.objectives.reward_distillation import RewardDistillation
from preftune.types import Rewards, TokenScores
from tests.objectives.golden import check_pair

GAP = Rewards(reward=torch.tensor([2.5, 0.5], dtype=torch.float64), group=torch.tensor([0, 0]))


@pytest.mark.parametrize(("objective", "value"), [(CoPG(), 3.24), (AGRO(), 0.81), (GVPO(), 0.81)])
def test_golden_pair(objective, value):
    """a = 2.5 - .1 = 2.4 and .5 + .1 = .6, .9 either side of the mean: S = 1.62, times 2, 1/2 and 1/2.

    dS = 2 * .9 * -.1 for the first, which the same factors multiply.
    """
    slope = -0.18 * value / 1.62
    check_pair(objective, value=value, slopes=(slope, -slope), rewards=(0.1, -0.1), signal=GAP)


REWARDS = Rewards(
    reward=torch.tensor([0.5, 9.0, 2.0, 1.0, -1.0, 3.0, 4.0, 0.5], dtype=torch.float64),
    group=torch.tensor([5, 1, 5, 5, 2, 2, 2, 2]),
)  # groups of one (1), four (2) and three (5), out of order


def scores() -> TokenScores:
    lengths = torch.tensor([2, 1, 3, 1, 2, 2, 4, 1])
    random = torch.Generator().manual_seed(4)
    draw = -2 * torch.rand(2, int(lengths.sum()), generator=random, dtype=torch.float64)
    return TokenScores(
        logp=draw[0].clone().requires_grad_(), ref_logp=draw[1], behaviour_logp=draw[1], lengths=lengths
    )


def residuals(given: TokenScores, beta: float) -> torch.Tensor:
    ratio = torch.stack([part.sum() for part in (given.logp - given.ref_logp).split(given.lengths.tolist())])
    return REWARDS.reward - beta * ratio


def by_group(values: torch.Tensor) -> dict[int, torch.Tensor]:
    return {g: values[REWARDS.group == g] for g in (1, 2, 5)}


@pytest.mark.parametrize("kind", [CoPG, AGRO, GVPO])
def test_a_group_of_one_has_no_weight_and_others_count_once(kind):
    given, objective = scores(), kind()
    assert objective.weights(given.lengths, REWARDS).tolist() == [0.0, 1.0, 1.0]
    losses = objective(given, REWARDS)
    assert losses.weight.tolist() == [0.0, 1.0, 1.0]
    assert losses.per_unit[0].item() == 0.0


def test_copg_is_all_pairs():
    """(1 / (G - 1)) of the sum over pairs, which the code computes as a variance."""
    given = scores()
    losses = CoPG(beta=0.3)(given, REWARDS)
    groups = by_group(residuals(given, 0.3).detach())
    for unit, g in enumerate((1, 2, 5)):
        a = groups[g].tolist()
        pairs = sum((a[i] - a[j]) ** 2 for i in range(len(a)) for j in range(i))
        assert losses.per_unit[unit].item() == pytest.approx(pairs / max(len(a) - 1, 1), rel=1e-12)


def test_agro_is_half_the_variance_and_gvpo_the_mean_square():
    given = scores()
    agro, gvpo = AGRO(beta=0.3)(given, REWARDS).per_unit, GVPO(beta=0.3)(given, REWARDS).per_unit
    groups = by_group(residuals(given, 0.3).detach())
    for unit, g in ((1, 2), (2, 5)):
        assert agro[unit].item() == pytest.approx(0.5 * groups[g].var().item(), rel=1e-12)
        assert gvpo[unit].item() == pytest.approx(groups[g].var(correction=0).item(), rel=1e-12)


@pytest.mark.parametrize(
    ("kind", "factor"),
    [
        (CoPG, lambda beta, size: 2 * beta),
        (AGRO, lambda beta, size: beta / size),
        (GVPO, lambda beta, size: 2 * beta * (size - 1) / size**2),
    ],
)
def test_gradient_is_that_of_rloo_times_a_number(kind, factor):
    """g = gradient of -sum_i sg(A_i) log pi(y_i), with A_i the leave-one-out advantage of r - beta h."""
    beta, given = 0.3, scores()
    per_unit = kind(beta=beta)(given, REWARDS).per_unit
    logp = torch.stack([part.sum() for part in given.logp.split(given.lengths.tolist())])
    a = residuals(given, beta).detach()
    for unit, g in ((1, 2), (2, 5)):
        here = REWARDS.group == g
        size = int(here.sum())
        advantage = a[here] - (a[here].sum() - a[here]) / (size - 1)
        (rloo,) = torch.autograd.grad(-(advantage * logp[here]).sum(), given.logp, retain_graph=True)
        (mine,) = torch.autograd.grad(per_unit[unit], given.logp, retain_graph=True)
        assert rloo.abs().max() > 0.1
        torch.testing.assert_close(mine, factor(beta, size) * rloo, rtol=1e-12, atol=1e-12)


def test_reward_distillation_is_copg_over_the_number_of_completions():
    """The weights of a group's pairs there are 2 / (G (G - 1)): the sum of squares is 2 / G of CoPG's, over
    all pairs.
    """
    given = scores()
    distilled = RewardDistillation(beta=0.3)(given, REWARDS)
    copg = CoPG(beta=0.3)(given, REWARDS).per_unit
    expected = copg[1] * 2 / 4 + copg[2] * 2 / 3
    torch.testing.assert_close(
        (distilled.per_unit * distilled.weight).sum(), expected, rtol=1e-6, atol=0
    )  # fp32 weights


@pytest.mark.parametrize("kind", [CoPG, AGRO, GVPO])
def test_it_rests_at_the_optimum_of_the_regularized_reward(kind):
    """log pi = log ref + r / beta up to a constant of the prompt: no loss and no gradient, whatever was
    sampled.
    """
    ref = torch.tensor([-2.0, -1.0, -3.0], dtype=torch.float64)
    signal = Rewards(
        reward=torch.tensor([0.2, 1.0, -0.5], dtype=torch.float64), group=torch.zeros(3, dtype=torch.long)
    )
    given = TokenScores(
        logp=(ref + signal.reward / 0.5 - 1.7).requires_grad_(),
        ref_logp=ref,
        behaviour_logp=ref,
        lengths=torch.ones(3, dtype=torch.long),
    )
    loss = reduce_losses(kind(beta=0.5)(given, signal), 1.0)
    assert loss.item() == pytest.approx(0.0, abs=1e-12)
    torch.testing.assert_close(
        torch.autograd.grad(loss, given.logp)[0], torch.zeros(3).double(), rtol=0, atol=1e-12
    )


def test_gvpo_is_anchored_at_the_sampling_policy():
    assert GVPO().needs == {"behaviour_logp"}
    assert CoPG().needs == AGRO().needs == {"ref_logp"}
