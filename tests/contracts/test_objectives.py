"""What every objective of the table must keep to. A new objective gets all of this by being registered."""

import contextlib
import copy
import itertools
from dataclasses import asdict, fields, replace

import jaxtyping
import pytest
import torch

from preftune.errors import ConfigError
from preftune.objectives import OBJECTIVES, reduce_losses
from preftune.types import Rewards
from tests.contracts.steps import (
    FROZEN,
    assemble,
    call,
    couple,
    loss_and_gradient,
    policy_scores,
    random_step,
    state_after,
    with_scores,
)
from tests.contracts.variants import ALL, IDS, VARIANTS

CUTS = [(5,), (2, 3), (1, 4), (1, 1, 3)]  # uneven, so that a micro-batch's own divisor shows
every = pytest.mark.parametrize(("name", "objective"), ALL, ids=IDS)


@every
@pytest.mark.parametrize("cut", CUTS[1:])
def test_a_step_may_be_cut_anywhere(name, objective, cut):
    pieces = random_step(seed=1)
    loss, gradient = loss_and_gradient(pieces, objective)
    scores, signal = assemble(pieces, objective)
    weight = float(objective.weights(scores.lengths, signal).double().sum())
    couplings = couple(pieces, objective)
    parts, start = [], 0
    for size in cut:
        here = slice(start, start + size)
        parts.append(loss_and_gradient(pieces[here], objective, weight, couplings[here]))
        start += size
    torch.testing.assert_close(sum(part[0] for part in parts), loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(torch.cat([part[1] for part in parts], 1), gradient, rtol=1e-12, atol=1e-12)


@every
def test_order_of_groups_does_not_matter(name, objective):
    pieces = random_step(seed=2)
    order = [3, 0, 4, 2, 1]
    loss, gradient = loss_and_gradient(pieces, objective)
    shuffled_loss, shuffled_gradient = loss_and_gradient([pieces[i] for i in order], objective)
    sizes = [sum(len(t["logp"]) for t in piece.tokens) for piece in pieces]
    parts = gradient.split(sizes, 1)
    torch.testing.assert_close(shuffled_loss, loss, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        shuffled_gradient, torch.cat([parts[i] for i in order], 1), rtol=1e-12, atol=1e-12
    )


@every
def test_deleting_a_group_leaves_the_units_of_the_others(name, objective):
    """No unit may look at another group, but through the step's coupling: what is left is what was there, in
    that order.

    A mixture has the units of one term after those of another, so a group's units need not come first.
    """
    pieces = random_step(seed=3)
    couplings = couple(pieces, objective)
    whole, rest = call(pieces, objective, couplings), call(pieces[1:], objective, couplings[1:])
    assert len(whole.per_unit) > len(rest.per_unit) > 0
    before = zip(whole.per_unit.tolist(), whole.weight.tolist(), strict=True)
    for loss, weight in zip(rest.per_unit.tolist(), rest.weight.tolist(), strict=True):
        assert any(
            loss == pytest.approx(other, rel=1e-12, abs=1e-12) and weight == its for other, its in before
        )


@every
def test_units_of_weight_zero_have_no_gradient(name, objective):
    pieces = random_step(seed=4)
    leaf = policy_scores(pieces, objective)
    scores, signal = assemble(pieces, objective, leaf)
    losses = objective(scores, signal)
    (gradient,) = torch.autograd.grad(reduce_losses(losses, 1.0), leaf)
    if bool((losses.weight == 0).any()) and len(losses.weight) == leaf.shape[1]:
        assert bool((gradient[:, losses.weight == 0] == 0).all())
    assert bool((gradient != 0).any())


def _in_dtype(piece, dtype):
    def low(tokens):
        return {name: values.to(dtype) for name, values in tokens.items()}

    return replace(
        piece, tokens=tuple(low(tokens) for tokens in piece.tokens), mismatched=low(piece.mismatched)
    )


@every
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("logp", "ref_logp"),
    [
        (0.0, 0.0),
        (-1e-9, -1e-9),
        (-1e-9, -30.0),
        (-30.0, -1e-9),
        (-200.0, -200.0),
        (-200.0, -1e-3),
        (-1e-3, -200.0),
    ],
)
def test_extreme_logps_give_finite_losses_and_gradients(name, objective, dtype, logp, ref_logp):
    pieces = with_scores(random_step(seed=5), logp=logp, ref_logp=ref_logp, behaviour_logp=ref_logp)
    leaf = policy_scores(pieces, objective).detach().to(dtype).requires_grad_()
    scores, signal = assemble([_in_dtype(piece, dtype) for piece in pieces], objective, leaf)
    losses = objective(scores, signal)
    (gradient,) = torch.autograd.grad(reduce_losses(losses, 10.0), leaf)
    assert bool(torch.isfinite(losses.per_unit).all())
    assert bool(torch.isfinite(gradient).all())
    assert all(bool(torch.isfinite(value).all()) for value in losses.metrics.values())


@every
def test_metrics_are_detached_numbers(name, objective):
    pieces = random_step(seed=6)
    scores, signal = assemble(pieces, objective, policy_scores(pieces, objective))
    losses = objective(scores, signal)
    assert losses.metrics
    assert losses.per_unit.requires_grad
    assert not losses.weight.requires_grad
    for metric, value in losses.metrics.items():
        assert not value.requires_grad, metric
        assert value.ndim == 1, metric


@every
def test_pure(name, objective):
    """The same in, the same out, and nothing that came in is changed."""
    pieces = random_step(seed=7)
    scores, signal = assemble(pieces, objective)
    before = copy.deepcopy((scores, signal))
    first, second = objective(scores, signal), objective(scores, signal)
    torch.testing.assert_close(first.per_unit, second.per_unit, rtol=0, atol=0)
    for kept, now in zip(before, (scores, signal), strict=True):
        for name_ in kept.__dataclass_fields__:
            if torch.is_tensor(getattr(kept, name_)):
                assert torch.equal(getattr(kept, name_), getattr(now, name_)), name_


@every
def test_reference_and_behaviour_get_no_gradient(name, objective):
    pieces = random_step(seed=8)
    scores, signal = assemble(pieces, objective, policy_scores(pieces, objective))
    frozen = {n: getattr(scores, n).clone().requires_grad_() for n in FROZEN if n in objective.needs}
    changed = type(scores)(**{n: frozen.get(n, getattr(scores, n)) for n in scores.__dataclass_fields__})
    reduce_losses(objective(changed, signal), 1.0).backward()
    assert all(tensor.grad is None for tensor in frozen.values())


@every
def test_weights_are_known_before_any_score(name, objective):
    pieces = random_step(seed=9)
    scores, signal = assemble(pieces, objective)
    torch.testing.assert_close(
        objective(scores, signal).weight, objective.weights(scores.lengths, signal).double(), rtol=0, atol=0
    )


@every
def test_needs_are_what_is_read(name, objective):
    """Each declared need changes the loss's gradient or value; without it the objective fails instead of
    guessing.
    """
    pieces = random_step(seed=10)
    loss, gradient = loss_and_gradient(pieces, objective)
    for need in objective.needs - {"coupling"}:
        shifted = with_scores(pieces, **{need: -0.3})
        other_loss, other_gradient = loss_and_gradient(shifted, objective)
        assert not (torch.equal(loss, other_loss) and torch.equal(gradient, other_gradient)), need


def settings(name):
    """The variants of an objective, and its default with each single hyper-parameter that a variant has
    changed.
    """
    found = list(VARIANTS[name])
    for variant in VARIANTS[name][1:]:
        for field in fields(variant):
            with contextlib.suppress(
                ConfigError
            ):  # one that has no effect alone is refused; the variants must have it
                found.append(OBJECTIVES[name](**{field.name: getattr(variant, field.name)}))
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_hyper_parameter_is_felt(name):
    """Of each field there are two settings that differ in it alone, and they differ in loss or gradient.

    In a first step or in a later one (a momentum has nothing to weigh before that), with data that give the
    probability of a pair or with data that do not.
    """
    before, pieces = [random_step(seed=12), random_step(seed=13)], random_step(seed=11, num_groups=9)
    silent = [replace(piece, probabilities=()) for piece in pieces]
    results = []
    for one in settings(name):
        later = couple(pieces, one, state_after(before, one))
        tries = (
            loss_and_gradient(pieces, one),
            loss_and_gradient(pieces, one, couplings=later),
            loss_and_gradient(silent, one),
        )
        results.append((asdict(one), [tensor for pair in tries for tensor in pair]))
    for field in fields(OBJECTIVES[name]):
        felt = False
        for (one, first), (other, second) in itertools.combinations(results, 2):
            if {key for key in one if one[key] != other[key]} == {field.name}:
                felt |= not all(map(torch.equal, first, second))
        assert felt, (
            f"{name}.{field.name} changes nothing, or no two settings of the suite differ in it alone"
        )


ALONE = [
    (name, objective)
    for name, variants in VARIANTS.items()
    for objective in variants
    if objective.signal is Rewards
]


@pytest.mark.parametrize(("name", "objective"), ALONE)
def test_what_a_single_completion_teaches(name, objective):
    """Objectives that compare the completions of a prompt learn nothing from the reward of one alone."""
    steps = []
    for shift in (0.0, 1.5):
        pieces = [
            replace(
                piece,
                tokens=piece.tokens[:1],
                rewards=(piece.rewards[0] + shift * number,),
                labels=piece.labels[:1],
                sources=piece.sources[:1],
                pairs=(),
            )
            for number, piece in enumerate(random_step(3))
        ]
        steps.append(loss_and_gradient(pieces, objective, 1.0, couple(pieces, objective))[1])
    felt = not torch.equal(*steps) or name in ("best-of-n", "nca")  # which raise whatever is the best
    assert felt == (objective.least_completions == 1)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_bad_hyper_parameters_are_refused(name, monkeypatch):
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # as for a user: no type checker in the way
    for field in fields(OBJECTIVES[name]):
        if isinstance(field.default, bool):
            continue  # both values are in range
        bad = "no such choice" if isinstance(field.default, str) else float("nan")
        with pytest.raises(ConfigError, match=field.name):
            OBJECTIVES[name](**{field.name: bad})


def test_the_table_is_complete():
    assert set(VARIANTS) == set(OBJECTIVES)
    assert list(OBJECTIVES) == sorted(OBJECTIVES)
