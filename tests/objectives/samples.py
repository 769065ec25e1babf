"""The prompt on which policy-gradient objectives are worked out by hand: two sampled completions, of 2 tokens
and of 1.

Rewards 3 and 1: mean 2, standard deviation sqrt 2. Ratios to the behaviour policy 1.5, 0.5 and 0.7;
log-ratios to the reference 0.5, -0.25 and -0.5, that is 0.25 and -0.5 of the completions. Values of the
critic 1, 2 and 0.5, at sampling
0.5, 2.5 and 0.25.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from preftune.objectives import Coupled, Objective, State
from preftune.types import Coupling, Losses, Rewards, StepView, TokenScores

LOGP = (-1.0, -2.0, -1.5)
LENGTHS = (2, 1)
RATIOS = (1.5, 0.5, 0.7)
SAMPLES = Rewards(reward=torch.tensor([3.0, 1.0], dtype=torch.float64), group=torch.tensor([4, 4]))


def numbers(values: Sequence[float]) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def sample_scores(objective: Objective, lengths: Sequence[int] = LENGTHS) -> TokenScores:
    """What the objective asks for, and nothing else; no coupling yet."""
    known = {
        "behaviour_logp": numbers([p - math.log(r) for p, r in zip(LOGP, RATIOS, strict=True)]),
        "ref_logp": numbers([-1.5, -1.75, -1.0]),
        "value": numbers([1.0, 2.0, 0.5]).requires_grad_(),
        "behaviour_value": numbers([0.5, 2.5, 0.25]),
    }
    needed = {name: values for name, values in known.items() if name in objective.needs}
    return TokenScores(logp=numbers(LOGP).requires_grad_(), lengths=torch.tensor(list(lengths)), **needed)


def couple(
    objective: Coupled, scores: TokenScores, signal: Rewards = SAMPLES, state: State | None = None
) -> tuple[Coupling, dict[str, torch.Tensor]]:
    """`couple` on these completions as a whole step; it sees the scores only if it asks for them."""
    view = StepView(
        lengths=scores.lengths,
        prompt=torch.zeros(len(scores.lengths), dtype=torch.long),
        signal=signal,
        scores=scores if "scores" in objective.couples else None,
    )
    return objective.couple(view, objective.initial_state() if state is None else state)


def losses_of(objective: Objective, signal: Rewards = SAMPLES) -> tuple[Losses, TokenScores]:
    scores = sample_scores(objective)
    if "coupling" in objective.needs:
        assert isinstance(objective, Coupled)
        scores = replace(scores, coupling=couple(objective, scores, signal)[0])
    return objective(scores, signal), scores


def check_samples(
    objective: Objective,
    *,
    units: Sequence[float],
    slopes: Sequence[float],
    metrics: Mapping[str, Sequence[float]],
    signal: Rewards = SAMPLES,
    weight: Sequence[float] | None = None,
) -> None:
    """Losses of all units, their slope on each token's logp, and every metric beside the pair's that all
    have.
    """
    losses, scores = losses_of(objective, signal)
    assert losses.per_unit.tolist() == pytest.approx(list(units), rel=1e-9, abs=1e-12)
    assert losses.weight.tolist() == ([1.0] * len(units) if weight is None else list(weight))
    found = torch.autograd.grad(losses.per_unit.sum(), scores.logp)[0].tolist()
    assert found == pytest.approx(list(slopes), rel=1e-9, abs=1e-12)
    of_pairs = ("logps/", "log_ratios/", "rewards/")
    own = {name: value.tolist() for name, value in losses.metrics.items() if not name.startswith(of_pairs)}
    first, second = signal.reward.tolist()
    always = {"reward": [first, second], "reward/std": [abs(first - second) / math.sqrt(2)]}
    assert own == {
        name: pytest.approx(list(value), rel=1e-9, abs=1e-12) for name, value in (always | metrics).items()
    }


K3 = [math.expm1(-x) + x for x in (0.5, -0.25, -0.5)]
