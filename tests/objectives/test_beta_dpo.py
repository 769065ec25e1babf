"""beta-DPO: four pairs of one token each with margins 1, 2, 3 and 10: mean 4, variance 50 / 3."""

import math

import pytest
import torch

from preftune.errors import StorageError
from preftune.objectives.beta_dpo import BetaDPO
from preftune.objectives.dpo import DPO
from tests.objectives.coupled import couple, coupled, make_step_scores, numbers, pairs_of
from tests.objectives.golden import gradient, log_sigma, sigma

MARGINS = [1.0, 2.0, 3.0, 10.0]


def step(margins=MARGINS, lengths=None):
    logp = [number for margin in margins for number in (margin - 20.0, -20.0)]
    return make_step_scores(logp, [-20.0] * len(logp), lengths)


def fixed(mean, std, steps):
    """A state so old that a step with these very moments leaves it as it is."""
    number = {"mean": mean, "std": std}
    return {n: torch.tensor(v, dtype=torch.float64) for n, v in number.items()} | {
        "steps": torch.tensor(steps)
    }


def usual(margins, mean, std):
    return [math.exp(-((margin - mean) ** 2) / (2 * std**2)) for margin in margins]


def test_golden():
    """Three of four are kept: those with the largest weight over an exponential draw, which the step's number
    seeds.
    """
    objective = BetaDPO(beta=0.2, alpha=0.3, keep=0.75)
    draw = (
        torch.empty(4, dtype=torch.float64).exponential_(generator=torch.Generator().manual_seed(0)).tolist()
    )
    weights = usual(MARGINS, 4.0, math.sqrt(50 / 3))
    dropped = min(range(4), key=lambda pair: weights[pair] / draw[pair])
    kept = [margin for pair, margin in enumerate(MARGINS) if pair != dropped]
    beta = 0.2 * (1 + 0.3 * (sum(kept) / 3 - 4.0))
    scores = coupled(objective, step(), pairs_of(4))
    losses = objective(scores, pairs_of(4))
    expected = [
        0.0 if pair == dropped else -4 / 3 * log_sigma(beta * margin) for pair, margin in enumerate(MARGINS)
    ]
    assert losses.per_unit.tolist() == pytest.approx(expected, rel=1e-9)
    slopes = [
        0.0 if pair == dropped else -4 / 3 * beta * sigma(-beta * margin)
        for pair, margin in enumerate(MARGINS)
    ]
    assert gradient(losses, scores) == pytest.approx(
        [s for slope in slopes for s in (slope, -slope)], rel=1e-9, abs=1e-15
    )
    assert losses.weight.tolist() == [1, 1, 1, 1]
    assert losses.metrics["beta_dpo/beta"].tolist() == pytest.approx([beta])
    assert losses.metrics["beta_dpo/kept"].tolist() == [float(pair != dropped) for pair in range(4)]
    assert losses.metrics["rewards/margins"].tolist() == pytest.approx([0.2 * margin for margin in MARGINS])


def test_beta_follows_the_running_mean():
    """Means 4, then 2: the running one is (9 * 4 + 10 * 2) / 19; with all pairs kept beta grows with the
    difference.
    """
    objective = BetaDPO(beta=0.2, alpha=0.3, keep=1.0)
    found, state = couple(objective, step(), pairs_of(4))
    assert found.whole["beta"].item() == pytest.approx(0.2)
    assert numbers(state) == {
        "mean": pytest.approx(0.4),
        "std": pytest.approx(0.1 * math.sqrt(50 / 3)),
        "steps": 1,
    }
    found, state = couple(objective, step([1.0, 3.0]), pairs_of(2), state)
    assert found.whole["beta"].item() == pytest.approx(0.2 * (1 + 0.3 * (2 - 56 / 19)), rel=1e-9)
    assert numbers(state)["steps"] == 2


def test_beta_has_a_floor():
    found, _ = couple(BetaDPO(alpha=0.6, keep=1.0), step([1.0, 3.0]), pairs_of(2), fixed(50.0, 1.0, 1000))
    assert found.whole["beta"].item() == 1e-3


def test_without_alpha_and_with_all_pairs_it_is_dpo():
    objective = BetaDPO(beta=0.3, alpha=0.0, keep=1.0)
    scores = coupled(objective, step(), pairs_of(4))
    one, other = objective(scores, pairs_of(4)), DPO(beta=0.3)(scores, pairs_of(4))
    assert one.per_unit.tolist() == pytest.approx(other.per_unit.tolist(), rel=1e-12)
    assert gradient(one, scores) == pytest.approx(gradient(other, scores), rel=1e-12)


@pytest.mark.parametrize(
    ("keep", "pairs", "count"), [(0.8, 1, 1), (0.8, 2, 2), (0.8, 3, 2), (0.8, 4, 3), (0.1, 4, 1), (1.0, 4, 4)]
)
def test_how_many_are_kept(keep, pairs, count):
    found, _ = couple(BetaDPO(keep=keep), step(MARGINS[:pairs]), pairs_of(pairs))
    assert sorted(found.pair["factor"].tolist()) == pytest.approx(
        [0.0] * (pairs - count) + [pairs / count] * count
    )


def chances(weights, count):
    """Of each pair, that it is among `count` drawn one after another in proportion to the weights."""
    if count == 0:
        return [0.0] * len(weights)
    found = [0.0] * len(weights)
    for first, weight in enumerate(weights):
        if weight:
            rest = chances([0.0 if k == first else w for k, w in enumerate(weights)], count - 1)
            now = [weight / sum(weights) * (other + (k == first)) for k, other in enumerate(rest)]
            found = [total + more for total, more in zip(found, now, strict=True)]
    return found


@pytest.mark.parametrize("count", [1, 2])
def test_pairs_are_drawn_by_their_weights(count):
    """Over 1500 steps; margins 0, 1, 3 with mean 4/3 and deviation sqrt(7/3)."""
    margins, mean, std = [0.0, 1.0, 3.0], 4 / 3, math.sqrt(7 / 3)
    total = torch.zeros(3, dtype=torch.float64)
    for number in range(1500):
        found, _ = couple(
            BetaDPO(keep=count / 3), step(margins), pairs_of(3), fixed(mean, std, 1000 + number)
        )
        total += found.pair["factor"] > 0
    expected = chances(usual(margins, mean, std), count)
    assert (total / 1500).tolist() == pytest.approx(expected, abs=3.5 * 0.5 / math.sqrt(1500))


def kept_in(order, margins, prompts, lengths, number):
    """Which pairs are kept when they stand in this order, by their own numbers."""
    scores = step([margins[i] for i in order], [lengths[i] for i in order for _ in range(2)])
    prompt = [prompts[i] for i in order for _ in range(2)]
    found, _ = couple(BetaDPO(keep=0.5), scores, pairs_of(len(order)), fixed(1.0, 5.0, number), prompt=prompt)
    return {pair for pair, factor in zip(order, found.pair["factor"].tolist(), strict=True) if factor > 0}


@pytest.mark.parametrize(
    ("prompts", "lengths"),
    [([9, 4, 7, 5], [1] * 4), ([4] * 4, [3, 1, 2, 4]), ([4] * 4, [1] * 4)],
    ids=["by prompt", "by length", "by margin"],
)
def test_the_draw_does_not_depend_on_the_order_of_the_groups(prompts, lengths):
    drawn = set()
    for number in range(20):
        kept = [
            kept_in(order, MARGINS, prompts, lengths, number)
            for order in ([0, 1, 2, 3], [3, 1, 0, 2], [2, 3, 1, 0])
        ]
        assert kept[0] == kept[1] == kept[2]
        drawn.add(frozenset(kept[0]))
    assert len(drawn) > 3


def test_rounding_does_not_change_the_draw():
    """Two pairs of one prompt whose margins differ by rounding only, this way or that."""
    for number in range(20):
        one, other = (
            kept_in([0, 1], margins, [4, 4], [1, 2], number)
            for margins in ([1.0, 1.0 + 1e-9], [1.0 + 1e-9, 1.0])
        )
        assert one == other


@pytest.mark.parametrize(("margin", "std"), [(0.0, 0.0), (3000.0, 0.0), (300.0, 0.1)])
def test_margins_that_are_all_the_same_are_drawn_alike(margin, std):
    """At a start where policy and reference are equal, and far from the running mean."""
    kept = set()
    for number in range(30):
        found, _ = couple(BetaDPO(keep=0.5), step([margin] * 2), pairs_of(2), fixed(0.0, std, number))
        kept.add(tuple(found.pair["factor"].tolist()))
    assert kept == {(2.0, 0.0), (0.0, 2.0)}


def test_a_state_of_another_shape_is_refused():
    assert BetaDPO().couples == {"scores"}
    with pytest.raises(StorageError, match="The state of beta-dpo does not fit"):
        couple(BetaDPO(), step(), pairs_of(4), {"mean": torch.zeros(())})
