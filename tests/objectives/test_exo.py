"""EXO: the binary KL of cDPO with its arguments swapped."""

import math

import pytest
import torch

from preftune.objectives.dpo import DPO
from preftune.objectives.exo import EXO, EXOGroup
from preftune.objectives.nca import InfoNCA
from preftune.types import Rewards
from tests.objectives.golden import PAIR, assert_same, check_pair, gradient, log_sigma, make_scores, sigma


def test_golden():
    """q = sigma(.2), p = .999: q log(q/p) + (1-q) log((1-q)/(1-p)); slope beta q (1-q) (.2 - log(p/(1-p)))."""
    slope = 0.1 * sigma(0.2) * sigma(-0.2) * (0.2 - math.log(999))
    check_pair(EXO(), value=2.422015, slopes=(slope, -slope), rewards=(0.1, -0.1))


def kl(q: float, p: float) -> float:
    return q * math.log(q / p) + (1 - q) * math.log((1 - q) / (1 - p))


def test_it_is_cdpo_with_the_arguments_swapped():
    """EXO = KL(q || p); cDPO = KL(p || q) + the entropy of p, with q = sigma(1) and p = .8."""
    scores = make_scores(EXO(), (-10.0, -14.0), (-11.0, -13.0), (5, 8))
    q, p = sigma(1.0), 0.8
    entropy = -p * math.log(p) - (1 - p) * math.log(1 - p)
    exo, cdpo = (kind(beta=0.5, label_smoothing=0.2)(scores, PAIR).per_unit.item() for kind in (EXO, DPO))
    assert exo == pytest.approx(kl(q, p), rel=1e-9)
    assert cdpo == pytest.approx(kl(p, q) + entropy, rel=1e-9)


def test_rests_where_cdpo_rests():
    """sigma(beta D) = 1 - e: with e = .2, beta D = ln 4."""
    objective = EXO(beta=1.0, label_smoothing=0.2)
    scores = make_scores(objective, (-11.0 + math.log(4), -13.0), (-11.0, -13.0), (5, 8))
    losses = objective(scores, PAIR)
    assert losses.per_unit.item() == pytest.approx(0.0, abs=1e-12)
    assert max(map(abs, gradient(losses, scores))) < 1e-12


def test_the_authors_target_is_a_smoothing_of_4_5e_5():
    """Log target (0, -10), unnormalized: q log q + (1 - q)(log(1 - q) + 10), larger by the log-sum of the
    target.
    """
    scores = make_scores(EXO(), (-10.0, -14.0), (-11.0, -13.0), (5, 8))
    theirs = sigma(0.2) * log_sigma(0.2) + sigma(-0.2) * (log_sigma(-0.2) + 10)
    ours = EXO(label_smoothing=sigma(-10))(scores, PAIR).per_unit.item()
    assert theirs == pytest.approx(ours - math.log1p(math.exp(-10)), rel=1e-9)
    assert sigma(-10) == pytest.approx(4.5e-5, rel=0.01)


def test_wrongly_ordered_pairs_get_little_push():
    """Reverse KL seeks a mode: at beta D = -100 the slope is gone, where DPO's is full."""
    objective = EXO(beta=1.0)
    scores = make_scores(objective, (-110.0, -10.0), (-10.0, -10.0), (1, 1))
    assert abs(gradient(objective(scores, PAIR), scores)[0]) < 1e-30
    torch.testing.assert_close(
        torch.tensor(gradient(DPO(beta=1.0)(scores, PAIR), scores)), torch.tensor([-1.0, 1.0])
    )


# --- over groups ---

GROUPS = Rewards(
    reward=torch.tensor([3.0, 0.0, 1.0, 1.0, 1.0], dtype=torch.float64), group=torch.tensor([7, 4, 7, 7, 4])
)


def group_losses(objective):
    """Groups of 3 and 2 whose completions are interleaved; log-ratios 1, -1, 0, 2, -2 over single tokens."""
    scores = make_scores(objective, (-2.0, -4.0, -3.0, -1.0, -5.0), (-3.0,) * 5, (1,) * 5)
    return objective(scores, GROUPS), scores


def softmax(*x: float) -> list[float]:
    total = sum(map(math.exp, x))
    return [math.exp(v) / total for v in x]


def test_group_golden_on_a_pair():
    """q = sigma(.2), p = sigma(1 / .5)."""
    slope = 0.1 * sigma(0.2) * sigma(-0.2) * (0.2 - 2.0)
    objective = EXOGroup(beta=0.1, reward_temperature=0.5)
    check_pair(objective, value=kl(sigma(0.2), sigma(2.0)), slopes=(slope, -slope), rewards=(0.1, -0.1))


def test_exo_is_the_group_of_two():
    """Rewards 1 and 0 at temperature 1 / ln 4 are a target of .8."""
    assert_same(EXOGroup(beta=0.4, reward_temperature=1 / math.log(4)), EXO(beta=0.4, label_smoothing=0.2))


def test_groups_are_in_the_order_of_their_ids():
    """Group 4 holds completions 1 and 4, group 7 holds 0, 2 and 3; beta .5, temperature 2."""
    losses, scores = group_losses(EXOGroup(beta=0.5, reward_temperature=2.0))
    q, p = softmax(0.5, 0.0, 1.0), softmax(1.5, 0.5, 0.5)
    seven = sum(a * math.log(a / b) for a, b in zip(q, p, strict=True))
    four = sum(a * math.log(a / b) for a, b in zip(softmax(-0.5, -1.0), softmax(0.0, 0.5), strict=True))
    assert losses.per_unit.tolist() == pytest.approx([four, seven], rel=1e-9)
    assert losses.weight.tolist() == [1.0, 1.0]
    slopes = gradient(losses, scores)
    expected = [0.5 * a * (math.log(a / b) - seven) for a, b in zip(q, p, strict=True)]
    assert [slopes[0], slopes[2], slopes[3]] == pytest.approx(expected, rel=1e-9)


def test_group_form_is_infonca_with_the_arguments_swapped():
    """Both rest where beta h = r / T up to a constant: there EXO is 0, and InfoNCA the entropy of the target."""
    exo, nca = EXOGroup(beta=0.5, reward_temperature=2.0), InfoNCA(beta=0.5, reward_temperature=2.0)
    for objective in (exo, nca):
        scores = make_scores(objective, (0.0, -3.0, -2.0, -2.0, -2.0), (-3.0,) * 5, (1,) * 5)  # h = r
        losses = objective(scores, GROUPS)
        assert gradient(losses, scores) == pytest.approx([0.0] * 5, abs=1e-12)
    assert exo(scores, GROUPS).per_unit.tolist() == pytest.approx([0.0, 0.0], abs=1e-12)
