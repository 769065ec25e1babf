"""BNF: golden values, the full target distribution as oracle, and its shape."""

import math

import pytest
import torch

from preftune.objectives.bnf import BNF, odds_weight, potential
from preftune.types import Labels, Pairs, TokenScores
from tests.oracles.bnf import full_bnf_loss, full_target

LOGITS = torch.tensor([1.0, 0.5, -0.3, 2.0], dtype=torch.float64)
REF_LOGITS = torch.tensor([0.2, 1.5, -0.3, 1.0], dtype=torch.float64)
# (target, f, loss of the full form, gradient on the logits, w), worked out from the paper's definition
GOLDEN = [
    (0, 1.0, 1.525479, (-0.782483, 0.131931, 0.059280, 0.591272), 1.0),
    (1, 0.269714, 1.227745, (0.034525, -0.137783, 0.009409, 0.093849), 0.158724),
    (2, 0.733158, 2.329578, (0.155817, 0.094508, -0.673878, 0.423554), 0.716343),
    (3, 1.0, 0.525479, (0.217517, 0.131931, 0.059280, -0.408728), 1.0),
]


def token(target: int, label: int, logits=LOGITS) -> tuple[torch.Tensor, torch.Tensor]:
    """(loss, gradient on the logits) of one completion of one token."""
    z = logits.clone().requires_grad_()
    scores = TokenScores(
        logp=z.log_softmax(-1)[target, None],
        ref_logp=REF_LOGITS.log_softmax(-1)[target, None],
        lengths=torch.tensor([1]),
    )
    losses = BNF()(scores, Labels(label=torch.tensor([label])))
    (gradient,) = torch.autograd.grad(losses.per_unit.sum(), z)
    return losses.per_unit.detach(), gradient


@pytest.mark.parametrize(("target", "f", "value", "gradient", "w"), GOLDEN)
@pytest.mark.parametrize("label", [1, -1])
def test_golden_token(target, f, value, gradient, w, label):
    loss, got = token(target, label)
    torch.testing.assert_close(got, label * torch.tensor(gradient, dtype=torch.float64), rtol=0, atol=6e-7)
    p, q = (z.softmax(-1)[target].item() for z in (LOGITS, REF_LOGITS))
    expected = math.log(p / q) if w == 1 else (1 - q) / q * math.log((1 - q) / (1 - p))
    assert loss.item() == pytest.approx(-label * expected, abs=1e-9)
    # and the oracle is the paper's definition
    assert full_target(LOGITS, REF_LOGITS, target)[target].item() == pytest.approx(f, abs=6e-7)
    assert full_bnf_loss(LOGITS[None], REF_LOGITS[None], torch.tensor([target])).item() == pytest.approx(
        value, abs=6e-7
    )


def test_weight_is_a_ratio_of_odds():
    """p = .9, q = .99: (.9/.1) / (.99/.01) = 9/99, and not .9/.99; the other way round it is cut at 1."""
    p, q = torch.tensor([0.9, 0.99]).log(), torch.tensor([0.99, 0.9]).log()
    torch.testing.assert_close(odds_weight(p, q), torch.tensor([9 / 99, 1.0]), rtol=1e-5, atol=0)


def test_push_peaks_at_the_reference_and_fades_on_both_sides():
    """|d L / d z_y| = |p_y - f| is largest at p_y = q_y, where it is 1 - q_y, and goes to 0 for p_y -> 0 and
    p_y -> 1.
    """
    q = torch.tensor(0.3, dtype=torch.float64)
    p = torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
    weight = odds_weight(p.log(), q.log().expand(999))
    push = weight * (1 - p)
    assert p[push.argmax()].item() == pytest.approx(0.3, abs=1e-9)
    assert push.max().item() == pytest.approx(0.7, abs=1e-9)
    assert push[0].item() == pytest.approx(0.001 * 0.7 / 0.3, rel=1e-9)
    assert push[-1].item() == pytest.approx(0.001, rel=1e-6)


def test_weight_carries_no_gradient():
    logp = torch.tensor([-1.0, -2.0], dtype=torch.float64, requires_grad=True)
    scores = TokenScores(
        logp=logp, ref_logp=torch.tensor([-0.5, -0.5], dtype=torch.float64), lengths=torch.tensor([2])
    )
    (gradient,) = torch.autograd.grad(BNF()(scores, Labels(label=torch.tensor([1]))).per_unit.sum(), logp)
    # w_t = odds(e^-1)/odds(e^-.5): odds(.367879) = .581977, odds(.606531) = 1.541494, odds(.135335) = .156518
    expected = -torch.tensor([0.581977 / 1.541494, 0.156518 / 1.541494], dtype=torch.float64) / 2
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("q", [0.001, 0.3, 0.9])
def test_potential_is_what_the_weight_is_the_slope_of(q):
    """By central differences, on both sides of the reference; it is 0 there and bounded below."""
    p = torch.linspace(0.0005, 0.9995, 400, dtype=torch.float64)
    p = p[(p - q).abs() > 1e-6]
    logp, ref = p.log(), torch.full_like(p, q).log()
    slope = (potential(logp + 1e-6, ref) - potential(logp - 1e-6, ref)) / 2e-6
    torch.testing.assert_close(slope, odds_weight(logp, ref), rtol=1e-5, atol=1e-7)
    assert potential(ref[:1], ref[:1]).item() == 0
    lowest = potential(torch.tensor([-400.0], dtype=torch.float64), ref[:1]).item()
    assert lowest == pytest.approx((1 - q) / q * math.log(1 - q), rel=1e-9)


def test_potential_of_tiny_probabilities():
    """p = q / e, both far below rounding: (1/q) * log((1 - q)/(1 - p)) -> -(1 - 1/e)."""
    for dtype in (torch.float32, torch.float64):
        value = potential(
            torch.tensor([-61.0, -15.0], dtype=dtype), torch.tensor([-60.0, -14.0], dtype=dtype)
        )
        assert value.tolist() == pytest.approx([math.exp(-1) - 1] * 2, abs=2e-6)


def pair_scores(lengths: tuple[int, int]) -> TokenScores:
    """logp = -1 everywhere, ref_logp = -2 for the first completion (F = 1) and 0.5 lower for the other (F =
    0.5).
    """
    n, m = lengths
    ref = torch.cat([torch.full((n,), -2.0), torch.full((m,), -1.5)]).double()
    return TokenScores(logp=torch.full((n + m,), -1.0).double(), ref_logp=ref, lengths=torch.tensor(lengths))


def test_reductions():
    """Sums of F are 2 and 2 over 2 and 4 tokens.

    sequence_mean: chosen -(2/2) = -1, rejected +(2/4) = 0.5.
    pair_min: both divided by 2: (2 - 2) / 2 = 0.
    """
    scores = pair_scores((2, 4))
    singles = BNF()(scores, Labels(label=torch.tensor([1, -1])))
    torch.testing.assert_close(singles.per_unit, torch.tensor([-1.0, 0.5]).double())
    pairs = Pairs(chosen=torch.tensor([0]), rejected=torch.tensor([1]))
    torch.testing.assert_close(
        BNF(reduction="pair_min")(scores, pairs).per_unit, torch.tensor([0.0]).double()
    )


def test_pair_min_where_the_rejected_one_is_shorter():
    """Sums of F 4 and 1 over 4 and 2 tokens, both divided by 2: (1 - 4) / 2, halved."""
    pairs = Pairs(chosen=torch.tensor([0]), rejected=torch.tensor([1]))
    losses = BNF(reduction="pair_min")(pair_scores((4, 2)), pairs)
    torch.testing.assert_close(losses.per_unit, torch.tensor([-0.75]).double())


def test_pair_min_where_the_chosen_one_is_shorter():
    """Sums of F 2 and 3 over 2 and 6 tokens, both divided by 2: (3 - 2) / 2, halved."""
    pairs = Pairs(chosen=torch.tensor([0]), rejected=torch.tensor([1]))
    losses = BNF(reduction="pair_min")(pair_scores((2, 6)), pairs)
    torch.testing.assert_close(losses.per_unit, torch.tensor([0.25]).double())


def test_reductions_agree_for_equal_lengths():
    scores = pair_scores((3, 3))
    pair = BNF(reduction="pair_min")(
        scores, Pairs(chosen=torch.tensor([0]), rejected=torch.tensor([1]))
    ).per_unit
    torch.testing.assert_close(
        pair.mean(), BNF()(scores, Labels(label=torch.tensor([1, -1]))).per_unit.mean()
    )


def test_metrics():
    """ref_logp -0.5 and -1 for a chosen token of logp -1 and a rejected one of logp -0.1 (w = 1 there)."""
    scores = TokenScores(
        logp=torch.tensor([-1.0, -0.1]), ref_logp=torch.tensor([-0.5, -1.0]), lengths=torch.tensor([1, 1])
    )
    metrics = BNF()(scores, Labels(label=torch.tensor([1, -1]))).metrics
    expected = {
        "logps/chosen": -1.0,
        "logps/rejected": -0.1,
        "log_ratios/chosen": -0.5,
        "log_ratios/rejected": 0.9,
        "bnf/weight_chosen": 0.581977 / 1.541494,
        "bnf/weight_rejected": 1.0,
    }
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(expected, rel=1e-5)


def test_completions_in_no_pair_play_no_part():
    """The third completion is in neither role: no loss of its own, and in no metric."""
    scores = TokenScores(
        logp=torch.tensor([-1.0, -0.1, -3.0]),
        ref_logp=torch.tensor([-0.5, -1.0, -3.0]),
        lengths=torch.tensor([1, 1, 1]),
    )
    metrics = BNF(reduction="pair_min")(
        scores, Pairs(chosen=torch.tensor([0]), rejected=torch.tensor([1]))
    ).metrics
    expected = {
        "logps/chosen": [-1.0],
        "logps/rejected": [-0.1],
        "log_ratios/chosen": [-0.5],
        "log_ratios/rejected": [0.9],
        "bnf/weight_chosen": [0.581977 / 1.541494],
        "bnf/weight_rejected": [1.0],
    }
    assert {name: value.tolist() for name, value in metrics.items()} == {
        name: pytest.approx(value, rel=1e-5) for name, value in expected.items()
    }


def test_signal_follows_the_reduction():
    assert BNF().signal is Labels
    assert BNF(reduction="pair_min").signal is Pairs
