"""DPO on the pair logp -10 / -14, reference -11 / -13: log-ratios 1 and -1, D = 2."""

import math

import pytest
import torch

from preftune.objectives.dpo import DPO
from preftune.types import Pairs, TokenScores

PAIR = Pairs(chosen=torch.tensor([0]), rejected=torch.tensor([1]))


def pair_scores(logp=(-10.0, -14.0), ref=(-11.0, -13.0), lengths=(5, 8)) -> tuple[TokenScores, torch.Tensor]:
    """Sums spread evenly over the tokens."""
    spread = [
        torch.full((n,), total / n, dtype=torch.float64) for total, n in zip(logp, lengths, strict=True)
    ]
    spread_ref = [
        torch.full((n,), total / n, dtype=torch.float64) for total, n in zip(ref, lengths, strict=True)
    ]
    leaf = torch.cat(spread).requires_grad_()
    return TokenScores(logp=leaf, ref_logp=torch.cat(spread_ref), lengths=torch.tensor(lengths)), leaf


@pytest.mark.parametrize(
    ("objective", "value", "slope"),
    [
        # -log sigma(.2) = .598139; slope on every chosen token -beta sigma(-.2) = -.1 * .450166
        (DPO(beta=0.1), 0.598139, -0.0450166),
        # .9 * .598139 + .1 * .798139 = .618139; slope -.1 (.9 * .450166 - .1 * .549834) = -.0350166
        (DPO(beta=0.1, label_smoothing=0.1), 0.618139, -0.0350166),
        # beta D = 1: log(1 + e^-1) = .313262; slope -.5 * .268941
        (DPO(beta=0.5), 0.313262, -0.1344707),
    ],
)
def test_golden(objective, value, slope):
    scores, leaf = pair_scores()
    losses = objective(scores, PAIR)
    (gradient,) = torch.autograd.grad(losses.per_unit.sum(), leaf)
    assert losses.per_unit.item() == pytest.approx(value, abs=6e-7)
    assert gradient.tolist() == pytest.approx([slope] * 5 + [-slope] * 8, abs=6e-7)


def test_at_the_reference_the_loss_is_ln_2():
    scores, _ = pair_scores(logp=(-11.0, -13.0))
    assert DPO()(scores, PAIR).per_unit.item() == pytest.approx(math.log(2), abs=1e-12)


def test_smoothed_gradient_vanishes_where_the_margin_says_so():
    """sigma(beta D) = 1 - e: with e = .2, beta D = ln 4."""
    scores, leaf = pair_scores(logp=(-11.0 + math.log(4), -13.0))
    (gradient,) = torch.autograd.grad(DPO(beta=1.0, label_smoothing=0.2)(scores, PAIR).per_unit.sum(), leaf)
    assert gradient.abs().max().item() < 1e-12


def test_metrics():
    scores, _ = pair_scores()
    metrics = {name: value.item() for name, value in DPO(beta=0.1)(scores, PAIR).metrics.items()}
    expected = {
        "logps/chosen": -10,
        "logps/rejected": -14,
        "log_ratios/chosen": 1,
        "log_ratios/rejected": -1,
        "rewards/chosen": 0.1,
        "rewards/rejected": -0.1,
        "rewards/margins": 0.2,
        "rewards/accuracies": 1,
    }
    assert metrics == pytest.approx(expected, rel=1e-9)


def test_one_completion_in_several_pairs():
    """Pairs (0,1) and (0,2): the chosen completion gets the slope of both."""
    logp = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64, requires_grad=True)
    scores = TokenScores(logp=logp, ref_logp=torch.full((3,), -1.0).double(), lengths=torch.tensor([1, 1, 1]))
    losses = DPO(beta=0.1)(scores, Pairs(chosen=torch.tensor([0, 0]), rejected=torch.tensor([1, 2])))
    (gradient,) = torch.autograd.grad(losses.per_unit.sum(), logp)
    assert gradient.tolist() == pytest.approx([-0.1, 0.05, 0.05], abs=1e-12)


def pair_of(probability: float) -> Pairs:
    return Pairs(
        chosen=PAIR.chosen,
        rejected=PAIR.rejected,
        probability=torch.tensor([probability], dtype=torch.float64),
    )


@pytest.mark.parametrize(
    ("objective", "probability", "target"),
    [
        (DPO(beta=0.1), 0.9, 0.9),
        (DPO(beta=0.1), 0.25, 0.25),
        (DPO(beta=0.1), 1.0, 1.0),
        # right with .9 and kept with .8, or wrong with .1 and turned with .2
        (DPO(beta=0.1, label_smoothing=0.2), 0.9, 0.9 * 0.8 + 0.1 * 0.2),
        (DPO(beta=0.1, label_smoothing=0.2), 1.0, 0.8),
        (DPO(beta=0.1, label_smoothing=0.2), 0.5, 0.5),
    ],
)
def test_soft_labels(objective, probability, target):
    """-q log sigma(.2) - (1 - q) log sigma(-.2) with slope -.1 (q sigma(-.2) - (1 - q) sigma(.2))."""
    scores, leaf = pair_scores()
    losses = objective(scores, pair_of(probability))
    (gradient,) = torch.autograd.grad(losses.per_unit.sum(), leaf)
    assert losses.per_unit.item() == pytest.approx(
        target * math.log1p(math.exp(-0.2)) + (1 - target) * math.log1p(math.exp(0.2))
    )
    slope = -0.1 * (target / (1 + math.exp(0.2)) - (1 - target) / (1 + math.exp(-0.2)))
    assert gradient.tolist() == pytest.approx([slope] * 5 + [-slope] * 8, rel=1e-9)


def test_a_soft_label_of_fp32_leaves_fp64_as_it_is():
    scores, _ = pair_scores()
    losses = DPO()(scores, Pairs(chosen=PAIR.chosen, rejected=PAIR.rejected, probability=torch.tensor([0.5])))
    assert losses.per_unit.dtype == torch.float64
