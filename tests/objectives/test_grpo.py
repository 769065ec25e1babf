"""GRPO, Dr.GRPO, DAPO and GSPO: what each does to the same two completions."""

import math

import jaxtyping
import pytest
import torch

from preftune.errors import ConfigError
from preftune.objectives import reduce_losses
from preftune.objectives.grpo import DAPO, GRPO, GSPO, DrGRPO
from preftune.types import Rewards, TokenScores
from tests.objectives.samples import K3, check_samples, losses_of, numbers

A = 1 / (math.sqrt(2) + 1e-4)
CLIPPED = {"ratio/mean": [1.5, 0.5, 0.7], "ratio/clipped": [1.0, 0.0, 1.0]}
FLAT = (-1.2 * A, -0.5 * A, 0.8 * A)  # above and good: flat at 1.2; below and good; below and bad: flat at .8


def test_grpo_without_a_reference():
    """The mean over the tokens of each completion; of three ratios two are clipped."""
    check_samples(
        GRPO(beta=0.0),
        units=[(FLAT[0] + FLAT[1]) / 2, FLAT[2]],
        slopes=[0.0, -0.5 * A / 2, 0.0],
        metrics={"advantage/abs": [A, A], **CLIPPED},
    )


def test_grpo():
    """k3 has the slope 1 - e^-x, which is there even where the ratio is clipped."""
    slopes = [0.04 * (1 - math.exp(-x)) for x in (0.5, -0.25, -0.5)]
    check_samples(
        GRPO(),
        units=[(FLAT[0] + FLAT[1] + 0.04 * (K3[0] + K3[1])) / 2, FLAT[2] + 0.04 * K3[2]],
        slopes=[slopes[0] / 2, (slopes[1] - 0.5 * A) / 2, slopes[2]],
        metrics={"advantage/abs": [A, A], "kl": K3, **CLIPPED},
    )


def test_grpo_with_the_other_estimator():
    """x^2 / 2 with the slope x; the metric stays k3."""
    check_samples(
        GRPO(beta=0.4, kl="k2", clip=0.6, eps=0.5),
        units=[
            (-1.5 - 0.5) / (math.sqrt(2) + 0.5) / 2 + 0.4 * (0.125 + 0.03125) / 2,
            0.7 / (math.sqrt(2) + 0.5) + 0.4 * 0.125,
        ],
        slopes=[
            (-1.5 / (math.sqrt(2) + 0.5) + 0.4 * 0.5) / 2,
            (-0.5 / (math.sqrt(2) + 0.5) - 0.4 * 0.25) / 2,
            0.7 / (math.sqrt(2) + 0.5) - 0.4 * 0.5,
        ],
        metrics={
            "advantage/abs": [1 / (math.sqrt(2) + 0.5)] * 2,
            "kl": K3,
            "ratio/mean": [1.5, 0.5, 0.7],
            "ratio/clipped": [0.0] * 3,
        },
    )


def test_dr_grpo():
    """A = 1 and -1, not divided; sums over tokens by 8."""
    check_samples(
        DrGRPO(max_tokens=8),
        units=[-1.7 / 8, 0.8 / 8],
        slopes=[0.0, -0.5 / 8, 0.0],
        metrics={"advantage/abs": [1.0, 1.0], **CLIPPED},
    )


def test_dapo():
    """Every token a unit; 1.28 above."""
    check_samples(
        DAPO(),
        units=[-1.28 * A, -0.5 * A, 0.8 * A],
        slopes=[0.0, -0.5 * A, 0.0],
        metrics={"advantage/abs": [A, A], **CLIPPED},
    )


def test_dapo_has_no_weight_on_groups_with_equal_rewards():
    """Completions of 1, 2, 1 and 1 tokens; 0.1 three times, whose deviation would not be 0 in fp32 by the
    mean.
    """
    signal = Rewards(reward=torch.tensor([0.1, 1.0, 0.1, 0.1, 2.0]), group=torch.tensor([0, 1, 0, 0, 1]))
    lengths = torch.tensor([1, 2, 1, 1, 1])
    assert DAPO().weights(lengths, signal).tolist() == [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    logp = torch.zeros(6, requires_grad=True)
    losses = DAPO()(TokenScores(logp=logp, behaviour_logp=torch.zeros(6), lengths=lengths), signal)
    assert losses.weight.tolist() == [0.0, 1.0, 1.0, 0.0, 0.0, 1.0]
    slopes = torch.autograd.grad(reduce_losses(losses, 3.0), logp)[0].tolist()
    up = 0.5 / (math.sqrt(0.5) + 1e-4) / 3
    assert slopes == pytest.approx([0.0, up, up, 0.0, 0.0, -up], rel=1e-5)


def test_gspo():
    """s = sqrt .75 = .866, and good: no clip, its slope on each of two tokens half of it. s = .7, and bad:
    flat.
    """
    s = math.sqrt(0.75)
    check_samples(
        GSPO(),
        units=[-s * A, (1 - 3e-4) * A],
        slopes=[-s * A / 2, -s * A / 2, 0.0],
        metrics={"advantage/abs": [A, A], "ratio/mean": [s, 0.7], "ratio/clipped": [0.0, 1.0]},
    )


def test_gspo_s_upper_clip():
    """Rewards the other way round: .866 is bad and flat at .9, .7 good."""
    other = Rewards(reward=numbers([1.0, 3.0]), group=torch.tensor([0, 0]))
    check_samples(
        GSPO(clip_low=0.1, eps=0.5),
        units=[0.9 / (2**0.5 + 0.5), -0.7 / (2**0.5 + 0.5)],
        slopes=[0.0, 0.0, -0.7 / (2**0.5 + 0.5)],
        signal=other,
        metrics={
            "advantage/abs": [1 / (2**0.5 + 0.5)] * 2,
            "ratio/mean": [math.sqrt(0.75), 0.7],
            "ratio/clipped": [1.0, 0.0],
        },
    )


def random_tokens() -> tuple[TokenScores, Rewards]:
    """Six completions of one token in two groups."""
    random = torch.Generator().manual_seed(0)
    logp, behaviour = -torch.rand(2, 6, generator=random, dtype=torch.float64)
    reward = torch.randn(6, generator=random, dtype=torch.float64)
    scores = TokenScores(
        logp=logp.requires_grad_(), behaviour_logp=behaviour, lengths=torch.ones(6, dtype=torch.long)
    )
    return scores, Rewards(reward=reward, group=torch.tensor([0, 0, 1, 0, 1, 1]))


def test_on_completions_of_one_token_all_ratios_are_one():
    """GSPO and DAPO with GRPO's clip are GRPO; Dr.GRPO is, but for the deviation."""
    scores, signal = random_tokens()
    grpo = GRPO(beta=0.0, clip=0.3)(scores, signal).per_unit
    gspo = GSPO(clip_low=0.3, clip_high=0.3)(scores, signal).per_unit
    dapo = DAPO(clip_low=0.3, clip_high=0.3)(scores, signal).per_unit
    torch.testing.assert_close(gspo, grpo)
    torch.testing.assert_close(dapo, grpo)
    dr_grpo = DrGRPO(clip=0.3, max_tokens=1)(scores, signal).per_unit
    deviation = torch.stack([signal.reward[signal.group == g].std() for g in signal.group])
    torch.testing.assert_close(dr_grpo, grpo * (deviation + 1e-4))


def test_kl_needs_a_weight(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    with pytest.raises(ConfigError, match=r"^grpo: kl has no effect with beta 0"):
        GRPO(beta=0.0, kl="k2")


def test_needs():
    assert GRPO().needs == {"behaviour_logp", "ref_logp"}
    assert GRPO(beta=0.0).needs == {"behaviour_logp"}


def test_rewards_are_log_ratios_where_there_is_a_reference():
    assert losses_of(GRPO(beta=0.4))[0].metrics["rewards/chosen"].tolist() == pytest.approx([0.1])
    assert losses_of(GRPO(beta=0.0))[0].metrics["rewards/chosen"].tolist() == [-3.0]
