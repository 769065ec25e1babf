"""The pair on which objectives are worked out by hand: logp -10 / -14, reference -11 / -13, 5 and 8 tokens.

Log-ratios are 1 and -1, so D = 2; log-probabilities per token are -2 and -1.75, log-ratios per token 0.2 and
-0.125.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import pytest
import torch

from preftune.objectives import Objective
from preftune.types import Labels, Losses, Pairs, Rewards, TokenScores

PAIR = Pairs(chosen=torch.tensor([0]), rejected=torch.tensor([1]))


def sigma(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def log_sigma(x: float) -> float:
    return -math.log1p(math.exp(-x))


def spread(totals: Sequence[float], lengths: Sequence[int]) -> torch.Tensor:
    """Sums spread evenly over the tokens of completions."""
    parts = [
        torch.full((n,), total / n, dtype=torch.float64) for total, n in zip(totals, lengths, strict=True)
    ]
    return torch.cat(parts)


def make_scores(
    objective: Objective, logp, ref, lengths, behaviour=None, **more: Sequence[float]
) -> TokenScores:
    """Scores that hold the reference and the behaviour policy (the reference, if not given) only if asked
    for.

    `more` are other scores, as sums.
    """
    ref_logp = spread(ref, lengths) if "ref_logp" in objective.needs else None
    behaviour_logp = spread(behaviour or ref, lengths) if "behaviour_logp" in objective.needs else None
    return TokenScores(
        logp=spread(logp, lengths).requires_grad_(),
        ref_logp=ref_logp,
        behaviour_logp=behaviour_logp,
        lengths=torch.tensor(list(lengths)),
        **{name: spread(totals, lengths) for name, totals in more.items()},
    )


def gradient(losses: Losses, scores: TokenScores) -> list[float]:
    """d(sum of unit losses) / d logp, token by token."""
    return torch.autograd.grad(losses.per_unit.sum(), scores.logp)[0].tolist()


def check_pair(
    objective: Objective,
    *,
    value: float,
    slopes: tuple[float, float] | Sequence[float],
    rewards: tuple[float, float],
    logp=(-10.0, -14.0),
    ref=(-11.0, -13.0),
    behaviour: tuple[float, float] | None = None,
    lengths=(5, 8),
    extra: Mapping[str, float] | None = None,
    signal: Pairs | Rewards = PAIR,
    more: Mapping[str, Sequence[float]] | None = None,
) -> None:
    """Value (to the six digits it is given with), slope on every token, and every metric, of one pair.

    `slopes` are those of the chosen and of the rejected completion's tokens, or one for each token.
    """
    if objective.signal is Rewards and signal is PAIR:
        signal = Rewards(reward=torch.tensor([1.0, 0.0], dtype=torch.float64), group=torch.tensor([0, 0]))
    scores = make_scores(objective, logp, ref, lengths, behaviour, **(more or {}))
    losses = objective(scores, signal)
    assert losses.per_unit.tolist() == pytest.approx([value], abs=6e-7, rel=6e-7)
    expected = [slopes[0]] * lengths[0] + [slopes[1]] * lengths[1] if len(slopes) == 2 else list(slopes)
    assert gradient(losses, scores) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    metrics = dict(
        zip(
            ("logps/chosen", "logps/rejected", "rewards/chosen", "rewards/rejected"),
            (*logp, *rewards),
            strict=True,
        )
    )
    if "ref_logp" in objective.needs:
        metrics |= {"log_ratios/chosen": logp[0] - ref[0], "log_ratios/rejected": logp[1] - ref[1]}
    margin = rewards[0] - rewards[1]
    accuracy = 0.5 if margin == 0 else float(margin > 0)  # a tie counts one half
    metrics |= {"rewards/margins": margin, "rewards/accuracies": accuracy, **(extra or {})}
    assert {name: entry.tolist() for name, entry in losses.metrics.items()} == {
        name: pytest.approx([entry], rel=1e-9, abs=1e-12) for name, entry in metrics.items()
    }


def random_scores(seed: int = 0, lengths=(3, 5, 2, 4), reference: bool = True) -> tuple[TokenScores, Pairs]:
    """Ragged completions in fp64, and two pairs of them."""
    random = torch.Generator().manual_seed(seed)
    draw = -2 * torch.rand(2, sum(lengths), generator=random, dtype=torch.float64)
    scores = TokenScores(
        logp=draw[0].clone().requires_grad_(),
        ref_logp=draw[1] if reference else None,
        lengths=torch.tensor(lengths),
    )
    return scores, Pairs(chosen=torch.tensor([0, 3]), rejected=torch.tensor([1, 2]))


def as_rewards(pairs: Pairs) -> Rewards:
    """Disjoint pairs as groups of two with rewards 1 and 0."""
    reward = torch.zeros(2 * len(pairs.chosen), dtype=torch.float64)
    group = torch.zeros(2 * len(pairs.chosen), dtype=torch.long)
    for number, (chosen, rejected) in enumerate(
        zip(pairs.chosen.tolist(), pairs.rejected.tolist(), strict=True)
    ):
        reward[chosen], group[chosen], group[rejected] = 1.0, number, number
    return Rewards(reward=reward, group=group)


def as_labels(pairs: Pairs) -> Labels:
    """Disjoint pairs as labeled singles."""
    label = torch.zeros(2 * len(pairs.chosen), dtype=torch.long)
    label[pairs.chosen], label[pairs.rejected] = 1, -1
    return Labels(label=label)


def assert_same(one: Objective, other: Objective, **more: object) -> None:
    """Two objectives have the same loss and gradient on random pairs; `more` are other fields of the scores."""
    results = []
    for objective in (one, other):
        scores, pairs = random_scores()
        scores = replace(scores, **more)
        signal = as_rewards(pairs) if objective.signal is Rewards else pairs
        losses = objective(scores, signal)
        results.append((losses.per_unit.detach(), torch.tensor(gradient(losses, scores))))
    (first, first_slope), (second, second_slope) = results
    torch.testing.assert_close(first_slope, second_slope, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(first, second, rtol=1e-10, atol=1e-12)
