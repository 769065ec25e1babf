"""TIS-DPO: token weights by hand on either side of a pair, their bounds, and DPO where all tokens weigh the
same.
"""

import math
from dataclasses import replace

import pytest
import torch

from preftune.errors import ConfigError
from preftune.objectives.dpo import DPO
from preftune.objectives.tis_dpo import TISDPO
from preftune.types import Pairs, TokenScores
from tests.objectives.golden import PAIR, assert_same, gradient, log_sigma, sigma

LOGP, REF = [-1.0, -2.0, -3.0, -1.0], [-1.5, -1.5, -2.0, -2.0]  # log-ratios .5, -.5 | -1, 1
CONTRAST, KL = [1.0, -2.0, 0.2, 3.0], [0.1, 0.2, 0.3, 0.4]
E = math.e


def scores_of(objective: TISDPO) -> TokenScores:
    """Two completions of two tokens."""
    values = {"ref_logp": REF, "contrast": CONTRAST, "kl_to_ref": KL}
    tensors = {name: torch.tensor(values[name], dtype=torch.float64) for name in objective.needs}
    if "kl_to_ref" in tensors:
        tensors["kl_to_ref"].requires_grad_()
    return TokenScores(
        logp=torch.tensor(LOGP, dtype=torch.float64).requires_grad_(), lengths=torch.tensor([2, 2]), **tensors
    )


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0])
def test_by_hand(alpha):
    """Contrasts are clamped to 1, -.5 | .2, 1.5: weights e, e^-.5 on the chosen, e^-.2, e^-1.5 on the
    rejected one.
    """
    objective = TISDPO(beta=0.4, alpha=alpha)
    scores = scores_of(objective)
    weight = [E, E**-0.5, E**-0.2, E**-1.5]
    u = (0.5 * weight[0] - 0.5 * weight[1], -weight[2] + weight[3])
    k = (0.1 * weight[0] + 0.2 * weight[1], 0.3 * weight[2] + 0.4 * weight[3])
    margin = 0.4 * (u[0] - u[1] - alpha * (k[0] - k[1]))
    losses = objective(scores, PAIR)
    assert losses.per_unit.tolist() == pytest.approx([-log_sigma(margin)], rel=1e-12)
    push = 0.4 * sigma(-margin)
    slopes = [-push * weight[0], -push * weight[1], push * weight[2], push * weight[3]]
    assert gradient(losses, scores) == pytest.approx(slopes, rel=1e-9)
    if alpha > 0:
        (of_kl,) = torch.autograd.grad(objective(scores, PAIR).per_unit.sum(), scores.kl_to_ref)
        assert of_kl.tolist() == pytest.approx([-alpha * slope for slope in slopes], rel=1e-9)
    logged = {name: value.item() for name, value in losses.metrics.items()}
    assert logged == pytest.approx(
        {
            "logps/chosen": -3.0,
            "logps/rejected": -4.0,
            "log_ratios/chosen": 0.0,
            "log_ratios/rejected": 0.0,
            "rewards/chosen": 0.0,
            "rewards/rejected": 0.0,
            "rewards/margins": 0.0,
            "rewards/accuracies": 0.5,
            "token_weights/chosen": (weight[0] + weight[1]) / 2,
            "token_weights/rejected": (weight[2] + weight[3]) / 2,
        }
    )


def test_rewards_are_those_of_dpo():
    objective = TISDPO(beta=0.4, alpha=0.0)
    scores = scores_of(objective)
    scores = replace(scores, logp=scores.logp + torch.tensor([0.0, 1.0, 0.0, 2.0]))
    metrics = objective(scores, PAIR).metrics
    assert (metrics["rewards/chosen"].item(), metrics["rewards/rejected"].item()) == pytest.approx((0.4, 0.8))


def test_a_completion_may_be_on_both_sides():
    """Its tokens weigh e^contrast in one pair and e^-contrast in the other."""
    objective = TISDPO(beta=1.0, alpha=0.0)
    scores = TokenScores(
        logp=torch.full((3,), -1.0, dtype=torch.float64, requires_grad=True),
        ref_logp=torch.full((3,), -1.0).double(),
        contrast=torch.tensor([0.0, 0.3, 0.0], dtype=torch.float64),
        lengths=torch.tensor([1, 1, 1]),
    )
    pairs = Pairs(chosen=torch.tensor([0, 1]), rejected=torch.tensor([1, 2]))
    slopes = gradient(objective(scores, pairs), scores)
    assert slopes == pytest.approx([-0.5, 0.5 * (E**-0.3 - E**0.3), 0.5])


def test_bounds_of_the_contrast():
    """At, and beyond, the bounds the weight stays what it is at the bound."""
    for contrast, bound in ((-7.0, -0.25), (-0.25, -0.25), (0.75, 0.75), (9.0, 0.75)):
        objective = TISDPO(beta=1.0, alpha=0.0, mu=2.0, lower=-0.25, upper=0.75)
        scores = replace(scores_of(objective), contrast=torch.full((4,), contrast, dtype=torch.float64))
        metrics = objective(scores, PAIR).metrics
        assert metrics["token_weights/chosen"].item() == pytest.approx(math.exp(2 * bound), rel=1e-12)
        assert metrics["token_weights/rejected"].item() == pytest.approx(math.exp(-2 * bound), rel=1e-12)


def test_exponents_are_bounded_at_80():
    """mu of 100 on contrasts of 1 and -1: e^80 and not e^100 on either side."""
    objective = TISDPO(mu=100.0, alpha=0.0, lower=-1.0, upper=1.0)
    for sign, side in ((1.0, "chosen"), (-1.0, "rejected")):
        scores = replace(scores_of(objective), contrast=torch.full((4,), sign, dtype=torch.float64))
        weights = objective(scores, PAIR).metrics[f"token_weights/{side}"]
        assert weights.item() == pytest.approx(math.exp(80), rel=1e-9)


@pytest.mark.parametrize("settings", [dict(mu=0.0), dict(mu=0.3, lower=1e-16, upper=1e-15)])
def test_dpo_where_all_tokens_weigh_the_same(settings):
    contrast = torch.randn(14, dtype=torch.float64)
    assert_same(TISDPO(beta=0.3, alpha=0.0, **settings), DPO(beta=0.3), contrast=contrast)


def test_divergences_are_needed_only_with_alpha():
    assert TISDPO(alpha=0.0).needs == {"ref_logp", "contrast"}
    assert TISDPO(alpha=1e-6).needs == {"ref_logp", "contrast", "kl_to_ref"}


def test_bounds_in_order():
    for lower, upper in ((1.0, 0.5), (0.5, 0.5)):
        with pytest.raises(ConfigError, match="lower must be below upper"):
            TISDPO(lower=lower, upper=upper)
