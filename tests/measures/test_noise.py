"""Consistency of labels: a known share of exchanged pairs is found, and contradictions count as they should."""

import numpy as np
import pytest
import torch

from preftune.measures.noise import FOLDS, MIN_PROMPTS, contradictions, cross_validated, fit_logistic


def pairs(count, exchanged, seed=0, width=6):
    """Differences whose first feature decides, with a share of labels exchanged."""
    random = np.random.default_rng(seed)
    x = random.normal(size=(count, width))
    x *= np.sign(x[:, :1])
    x[random.random(count) < exchanged] *= -1
    return x


@pytest.mark.parametrize("exchanged", [0.0, 0.2, 0.5])
def test_agreement_is_one_minus_the_noise(exchanged):
    told = cross_validated([pairs(2000, exchanged)], range(2000))
    assert told is not None and told.num_pairs == 2000
    assert told.noise == pytest.approx(exchanged, abs=0.04)
    assert told.agreement.low < 1 - told.noise < told.agreement.high or exchanged == 0


def test_exchanged_labels_cost_more_agreement_where_there_are_few_pairs():
    """Labels that a rule decides: exchanged ones cost little where there are many pairs for each feature."""
    many, few = (cross_validated([pairs(count, 0.0, width=60)], range(count)) for count in (2000, 60))
    assert many is not None and few is not None
    assert many.agreement.mean - many.exchanged.mean < 0.15
    assert few.agreement.mean - few.exchanged.mean > 0.15


def test_exchanged_labels_are_those_of_the_fit_only():
    """One feature: with 30% exchanged the sign of its weight stays, so every pair that was held out is right."""
    told = cross_validated([pairs(500, 0.0, width=1)], range(500))
    assert told is not None and told.exchanged.mean == told.agreement.mean == 1.0


@pytest.mark.parametrize("scale", [1.0, 1e-3])
def test_strong_preferences_are_those_of_the_fitted_probabilities(scale):
    """Pairs that one feature of constant size decides: w is where sigma(-w) = ridge * w, and the smallest ridge is the
    best, 0.001: w = 5.245, sigma(w) = 0.9948. The unit of the feature does not matter.
    """
    told = cross_validated([np.full((200, 1), scale)], range(200))
    assert told is not None and told.strong.mean == 1.0
    assert told.nll.mean == pytest.approx(0.005259, rel=1e-3)
    noisy = cross_validated([pairs(500, 0.2, width=1)], range(500))
    assert noisy is not None and noisy.strong.mean < 0.05


def test_no_prompt_leaks():
    """Pairs of a prompt are copies with a direction of their own: seen in another fold they would be known
    for certain.
    """
    random = np.random.default_rng(3)
    directions = random.normal(size=(40, 60))
    clusters = np.repeat(np.arange(40), 5)
    told = cross_validated([directions[clusters]], clusters)
    assert told is not None and abs(told.agreement.mean - 0.5) < 0.2
    leaking = cross_validated([directions[clusters]], np.arange(200))
    assert leaking is not None and leaking.agreement.mean > 0.95


def test_few_prompts_and_equal_features_say_nothing():
    x = pairs(MIN_PROMPTS, 0.0)
    assert cross_validated([x], range(MIN_PROMPTS)) is not None
    assert cross_validated([x[1:]], range(MIN_PROMPTS - 1)) is None
    x[0] = 0
    assert cross_validated([x], range(MIN_PROMPTS)) is None
    assert MIN_PROMPTS / FOLDS >= 4


def test_a_wide_block_does_not_drown_a_narrow_one():
    """600 features of noise beside the one that decides, which is in another unit."""
    decides = np.abs(np.random.default_rng(1).normal(size=200)) * 1000
    told = cross_validated([np.random.default_rng(0).normal(size=(200, 600)), decides], range(200))
    assert told is not None and told.agreement.mean > 0.9


@pytest.mark.parametrize("ridge", [1e-3, 0.1, 10.0])
def test_fit_is_the_minimum(ridge):
    """The gradient of the loss, by autograd, vanishes there; the loss is convex."""
    x = pairs(50, 0.2)
    w = torch.from_numpy(fit_logistic(x, ridge)).requires_grad_()
    loss = -torch.nn.functional.logsigmoid(torch.from_numpy(x) @ w).sum() + ridge * 50 / 2 * (w @ w)
    (gradient,) = torch.autograd.grad(loss, w)
    assert gradient.abs().max() < 1e-6 and w.abs().max() > 0.001


def test_contradictions_by_hand():
    """a > b judged three times, once the other way round: 2 of 3 comparisons disagree. A cycle of three, and
    one clean pair.
    """
    judged = [
        ("p", "a", "b"),
        ("p", "a", "b"),
        ("p", "b", "a"),
        ("q", "a", "b"),
        ("q", "b", "c"),
        ("q", "c", "a"),
        ("r", "a", "b"),
    ]
    told = contradictions(judged)
    assert told.num_repeated == 3 and told.disagreeing == pytest.approx(2 / 3)
    assert told.exchanged == 0.5 and told.in_cycles == pytest.approx(6 / 7)
    clean = contradictions([("p", "a", "b"), ("q", "b", "a"), ("p", "b", "c"), ("p", "a", "c")])
    assert (
        clean.num_repeated == 0
        and clean.exchanged is None
        and clean.disagreeing is None
        and clean.in_cycles == 0
    )


def test_exchanged_pairs_are_estimated_from_repetitions():
    random = np.random.default_rng(0)
    judged = []
    for prompt in range(4000):
        judged += [(prompt, *(("b", "a") if random.random() < 0.1 else ("a", "b"))) for _ in range(2)]
    assert contradictions(judged).exchanged == pytest.approx(0.1, abs=0.015)
