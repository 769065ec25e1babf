"""f-DPO: the four divergences, their limits and their bounded exponents."""

import math

import pytest
import torch

from preftune.errors import ConfigError
from preftune.objectives.dpo import DPO
from preftune.objectives.f_dpo import FDPO
from tests.objectives.golden import PAIR, assert_same, check_pair, gradient, log_sigma, make_scores, sigma

E = math.e


@pytest.mark.parametrize(
    ("objective", "value", "margin", "push", "rewards"),
    [
        # g = -exp(-h), g' = exp(-h): margin .1 (e - 1/e)
        (
            FDPO(divergence="forward_kl"),
            0.582517,
            0.1 * (E - 1 / E),
            (1 / E, E),
            (0.1 * (1 - 1 / E), 0.1 * (1 - E)),
        ),
        # g = log sigma(h), g' = sigma(-h): log sigma(1) - log sigma(-1) = 1, margin .1
        (FDPO(), 0.644397, 0.1, (sigma(-1), sigma(1)), (0.1 * log_sigma(1), 0.1 * log_sigma(-1))),
        # g = -2 exp(-h/2), g' = exp(-h/2): margin .2 (e^.5 - e^-.5)
        (
            FDPO(divergence="alpha", alpha=0.5),
            0.594349,
            0.2 * (E**0.5 - E**-0.5),
            (E**-0.5, E**0.5),
            (0.2 * (1 - E**-0.5), 0.2 * (1 - E**0.5)),
        ),
        (FDPO(divergence="reverse_kl"), 0.598139, 0.2, (1, 1), (0.1, -0.1)),
    ],
    ids=["forward_kl", "js", "alpha", "reverse_kl"],
)
def test_golden(objective, value, margin, push, rewards):
    """slope on a side = -+ sigma(-margin) * beta * g'(h)."""
    slopes = (-sigma(-margin) * 0.1 * push[0], sigma(-margin) * 0.1 * push[1])
    check_pair(objective, value=value, slopes=slopes, rewards=rewards)


def test_reverse_kl_is_dpo():
    assert_same(FDPO(beta=0.4, divergence="reverse_kl"), DPO(beta=0.4))


def test_limits_of_alpha():
    """alpha = 1 is the forward KL, alpha -> 0 the reverse one; alpha = 0.7 is e^{-0.7 h} and not e^{-0.3 h}."""
    scores = make_scores(FDPO(), (-10.0, -14.0), (-11.0, -13.0), (5, 8))

    def loss(**settings) -> float:
        return FDPO(**settings)(scores, PAIR).per_unit.item()

    assert loss(divergence="alpha", alpha=1 - 1e-9) == pytest.approx(loss(divergence="forward_kl"), rel=1e-8)
    assert loss(divergence="alpha", alpha=1e-9) == pytest.approx(loss(divergence="reverse_kl"), rel=1e-8)
    margin = 0.1 / 0.7 * (math.exp(0.7) - math.exp(-0.7))
    assert loss(divergence="alpha", alpha=0.7) == pytest.approx(-log_sigma(margin), rel=1e-12)


def test_exponents_are_bounded_at_80():
    """h(chosen) = -79 is pushed by e^79, h(chosen) = -81 no longer; the loss stays at e^80."""
    objective = FDPO(beta=1.0, divergence="forward_kl")
    for ratio, expected in ((-79.0, -math.exp(79)), (-81.0, 0.0)):
        scores = make_scores(objective, (ratio, 0.0), (0.0, 0.0), (1, 1))
        assert gradient(objective(scores, PAIR), scores)[0] == pytest.approx(expected, rel=1e-9)
    assert objective(scores, PAIR).per_unit.item() == pytest.approx(math.exp(80), rel=1e-9)


def test_alpha_belongs_to_its_divergence():
    with pytest.raises(ConfigError, match="no effect"):
        FDPO(divergence="js", alpha=0.5)
    with pytest.raises(ConfigError, match="alpha is out of range"):
        FDPO(divergence="alpha")
    for alpha in (0.0, 1.0, -0.5, 1.5, math.nan):
        with pytest.raises(ConfigError, match="alpha is out of range"):
            FDPO(divergence="alpha", alpha=alpha)


def test_js_push_is_bounded():
    """The push on a completion far below the reference is beta, and not e^400."""
    scores = make_scores(FDPO(), (-400.0, -1.0), (-1.0, -1.0), (1, 1))
    slopes = torch.tensor(gradient(FDPO()(scores, PAIR), scores))
    torch.testing.assert_close(slopes, torch.tensor([-0.1, 0.05]).to(slopes), rtol=1e-6, atol=1e-6)
