"""Nash-MD: a policy gradient on win rates less one half, with a KL penalty of the whole sequence."""

import pytest
import torch

from preftune.objectives import reduce_losses
from preftune.objectives.nash_md import NashMD
from preftune.types import Rewards, TokenScores
from tests.objectives.golden import gradient, make_scores

WINS = Rewards(reward=torch.tensor([0.9, 0.2], dtype=torch.float64), group=torch.tensor([0, 0]))
LOGP, REF, LENGTHS = (-10.0, -14.0), (-11.0, -13.0), (5, 8)


def test_golden():
    """h = 1, -1: advantages .9 - .5 - .1 = .3 and .2 - .5 + .1 = -.2; losses 3 and -2.8, slopes -.3 and .2."""
    objective = NashMD()
    scores = make_scores(objective, LOGP, REF, LENGTHS)
    losses = objective(scores, WINS)
    assert losses.per_unit.tolist() == pytest.approx([3.0, -2.8])
    assert losses.weight.tolist() == [1.0, 1.0]
    assert gradient(losses, scores) == pytest.approx([-0.3] * 5 + [0.2] * 8)
    metrics = {name: value.tolist() for name, value in losses.metrics.items()}
    assert metrics["advantage"] == pytest.approx([0.3, -0.2])
    assert metrics["win_rate"] == [0.9, 0.2]
    assert metrics["rewards/chosen"] == pytest.approx([0.1])
    assert metrics["rewards/rejected"] == pytest.approx([-0.1])


def test_without_kl_it_is_reinforce_with_a_baseline_of_one_half():
    """-sg(r - 1/2) log pi, which needs no reference; what it scores with is the log-probability."""
    objective = NashMD(beta=0.0)
    assert objective.needs == frozenset()
    scores = make_scores(objective, LOGP, REF, LENGTHS)
    losses = objective(scores, WINS)
    assert losses.per_unit.tolist() == pytest.approx([4.0, -4.2])
    assert gradient(losses, scores) == pytest.approx([-0.4] * 5 + [0.3] * 8)
    assert losses.metrics["rewards/margins"].tolist() == pytest.approx([4.0])


# --- two tokens of two words each: every sequence, weighted by its probability ---


def tree(seed: int) -> torch.Tensor:
    """Logits [3, 2]: of the first token, and of the second after each first."""
    return torch.randn(3, 2, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def sequences(logits: torch.Tensor) -> torch.Tensor:
    """[4, 2]: log-probability of both tokens of 00, 01, 10, 11."""
    logp = logits.log_softmax(-1)
    return torch.stack([torch.stack([logp[0, a], logp[1 + a, b]]) for a in (0, 1) for b in (0, 1)])


def expected_gradient(policy: torch.Tensor, per_unit: torch.Tensor) -> torch.Tensor:
    chance = sequences(policy).sum(1).exp().detach()
    return torch.autograd.grad((chance * per_unit).sum(), policy)[0]


def test_expected_gradient_is_that_of_win_rate_less_kl():
    policy, ref = tree(1).requires_grad_(), tree(2)
    wins = torch.tensor([0.9, 0.3, 0.6, 0.1], dtype=torch.float64)
    tokens, ref_tokens = sequences(policy), sequences(ref)
    scores = TokenScores(logp=tokens.flatten(), ref_logp=ref_tokens.flatten(), lengths=torch.full((4,), 2))
    losses = NashMD(beta=0.4)(scores, Rewards(reward=wins, group=torch.zeros(4, dtype=torch.long)))
    mine = expected_gradient(policy, losses.per_unit)
    logp, ref_logp = sequences(policy).sum(1), ref_tokens.sum(1)
    exact = (logp.exp() * (wins - 0.4 * (logp - ref_logp))).sum()
    torch.testing.assert_close(mine, -torch.autograd.grad(exact, policy)[0], rtol=1e-10, atol=1e-12)


def test_a_penalty_of_each_token_on_itself_is_not_the_kl():
    """Popular code weights each token with its own log-ratio: what an early token does to later ones is lost."""
    policy, ref = tree(1).requires_grad_(), tree(2)
    tokens = sequences(policy)
    own = ((tokens - sequences(ref)).detach() * tokens).sum(1)
    divergence = (tokens.sum(1).exp() * (tokens - sequences(ref)).sum(1)).sum()
    (exact,) = torch.autograd.grad(divergence, policy, retain_graph=True)
    biased = expected_gradient(policy, own)
    torch.testing.assert_close(
        biased[1:], exact[1:], rtol=1e-10, atol=1e-12
    )  # the last token has nothing after it
    assert (biased[0] - exact[0]).abs().max() > 0.04


def test_every_completion_weighs_the_same():
    objective = NashMD()
    scores = make_scores(objective, (-1.0, -2.0, -3.0), (-1.0, -1.0, -1.0), (1, 2, 1))
    signal = Rewards(reward=torch.tensor([1.0, 0.0, 0.5], dtype=torch.float64), group=torch.tensor([0, 1, 1]))
    loss = reduce_losses(objective(scores, signal), float(objective.weights(scores.lengths, signal).sum()))
    assert loss.item() == pytest.approx((0.5 * 1 + (-0.5 + 0.1) * 2 + 0.2 * 3) / 3)
