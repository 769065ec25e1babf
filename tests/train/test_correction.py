"""Importance weights for a sampler that differs from the trainer: by hand, against TRL's formula, and in runs."""

import math
from typing import Literal

import numpy as np
import pytest
import torch

from preftune.errors import ConfigError
from preftune.objectives import OBJECTIVES
from preftune.objectives.grpo import GRPO
from preftune.objectives.rloo import RLOO
from preftune.sampling.sample import SampleOptions
from preftune.train.onpolicy.collect import CollectOptions
from preftune.train.onpolicy.correction import (
    Correction,
    chosen_correction,
    correction_metrics,
    gradient_weights,
    weighted,
)
from preftune.types import Group, Rewards, TokenScores

POLICY = np.log(np.array([0.4, 0.2, 0.9]))
SAMPLER = np.log(np.array([0.1, 0.4, 0.9]))  # ratios 4, 0.5, 1; of the sequence 2


@pytest.mark.parametrize(
    ("kind", "level", "low", "high", "expected"),
    [
        ("truncate", "token", 0.0, 2.0, [2.0, 0.5, 1.0]),
        ("truncate", "token", 0.8, 3.0, [3.0, 0.8, 1.0]),
        ("mask", "token", 0.0, 2.0, [0.0, 0.5, 1.0]),
        ("mask", "token", 0.6, 5.0, [4.0, 0.0, 1.0]),
        ("truncate", "sequence", 0.0, 1.5, [1.5, 1.5, 1.5]),
        ("mask", "sequence", 0.0, 3.0, [2.0, 2.0, 2.0]),
        ("mask", "sequence", 0.0, 1.5, [0.0, 0.0, 0.0]),
    ],
)
def test_weights_by_hand(kind, level, low, high, expected):
    correction = Correction(kind=kind, level=level, low=low, high=high)
    assert correction.weights(POLICY, SAMPLER) == pytest.approx(expected, rel=1e-6)
    told = correction_metrics(correction, [POLICY], [SAMPLER])
    outside = {"token": [4.0, 0.5, 1.0], "sequence": [2.0] * 3}[level]
    assert told["correction/limited"] == pytest.approx(np.mean([not low <= r <= high for r in outside]))
    assert told["correction/weight"] == pytest.approx(np.mean(expected))


def test_the_weights_are_the_published_ones_in_torch():
    """The four modes as TRL's GRPOTrainer computes them (release 1.16)."""
    random = np.random.default_rng(0)
    policy, sampler = -random.exponential(1.0, 12), -random.exponential(1.0, 12)
    levels: tuple[Literal["token", "sequence"], ...] = ("token", "sequence")
    for level in levels:
        difference = torch.from_numpy(policy - sampler)
        log_ratio = difference.sum(-1, keepdim=True) if level == "sequence" else difference
        ratio = torch.exp(log_ratio)
        masked = ratio.masked_fill((ratio < 0.5) | (ratio > 3.0), value=0.0)
        truncated = torch.clamp(ratio, min=0.5, max=3.0)
        mine = Correction(kind="truncate", level=level, low=0.5, high=3.0).weights(policy, sampler)
        assert mine == pytest.approx(truncated.expand(12).numpy(), rel=1e-6)
        mine = Correction(kind="mask", level=level, low=0.5, high=3.0).weights(policy, sampler)
        assert mine == pytest.approx(masked.expand(12).numpy(), rel=1e-6)


def test_the_gradient_of_grpo_is_weighted_and_its_value_is_not():
    """-A w_t / n per token at ratio 1, the mean over two completions; A = +-1 / (1 + eps)."""
    logp = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    weight = torch.tensor([2.0, 0.5, 0.0], dtype=torch.float64)
    objective, signal = GRPO(beta=0.0), Rewards(reward=torch.tensor([1.0, -1.0]), group=torch.tensor([0, 0]))
    scores = TokenScores(
        logp=weighted(logp, weight), lengths=torch.tensor([2, 1]), behaviour_logp=logp.detach()
    )
    losses = objective(scores, signal)
    advantage = 1 / (math.sqrt(2) + 1e-4)  # the deviation of +1 and -1 with one degree of freedom
    assert losses.per_unit.tolist() == pytest.approx([-advantage, advantage])
    ((losses.per_unit * losses.weight).sum() / 2).backward()
    expected = [-advantage * 2.0 / 2 / 2, -advantage * 0.5 / 2 / 2, 0.0]
    assert logp.grad is not None and logp.grad.tolist() == pytest.approx(expected)


def test_the_expected_gradient_is_that_of_the_policy_s_own_samples():
    """A bandit with two arms: sum over mu of mu w A grad log pi is sum over pi of pi A grad log pi."""
    logits = torch.tensor([0.3, -0.2], dtype=torch.float64, requires_grad=True)
    logp, mu = logits.log_softmax(0), torch.tensor([0.6, 0.4], dtype=torch.float64)
    advantage = torch.tensor([1.0, -0.5], dtype=torch.float64)
    weight = (logp.exp() / mu).detach()
    (wanted,) = torch.autograd.grad((logp.exp() * advantage).sum(), logits, retain_graph=True)
    (found,) = torch.autograd.grad((mu * advantage * weighted(logp, weight)).sum(), logits)
    assert found.tolist() == pytest.approx(wanted.tolist())


def test_groups_without_weights_count_fully():
    ids = np.arange(2, dtype=np.int32)
    plain = Group(prompt=ids, completions=(ids,))
    half = Group(prompt=ids, completions=(ids,), correction=(np.array([0.5, 0.25], dtype=np.float32),))
    found = gradient_weights([plain, half])
    assert gradient_weights([plain]) is None and found is not None
    assert found.tolist() == [1.0, 1.0, 0.5, 0.25]


def test_the_default_is_exact_here_and_truncated_on_a_server():
    plain, sampling = CollectOptions(), SampleOptions(num_completions=4)
    assert chosen_correction(plain, GRPO(), sampling, has_server=False) is None
    assert chosen_correction(plain, GRPO(), sampling, has_server=True) == Correction(
        kind="truncate", level="token", low=0.0, high=2.0
    )
    assert chosen_correction(plain, RLOO(), sampling, has_server=True) is not None
    assert chosen_correction(plain, OBJECTIVES["dpo"](), sampling, has_server=True) is None
    icepop = CollectOptions(correction="mask", correction_min=0.5, correction_max=5.0)
    assert chosen_correction(icepop, GRPO(), sampling, has_server=False) == Correction(
        kind="mask", level="token", low=0.5, high=5.0
    )


@pytest.mark.parametrize(
    ("options", "objective", "sampling", "message"),
    [
        ({"correction": "mask"}, "dpo", {}, "does not have one for each completion"),
        ({"correction": "mask"}, "rebel", {}, "does not have one for each completion"),
        (
            {"correction": "truncate"},
            "rloo",
            {"temperature": 0.7},
            "log-probabilities that a server sampled with",
        ),
        ({"correction": "none", "correction_max": 3.0}, "grpo", {}, "correction_max has no effect without"),
        ({"correction_level": "sequence"}, "dpo", {}, "correction_level has no effect without"),
    ],
)
def test_what_has_no_effect_is_refused(options, objective, sampling, message):
    drawn = SampleOptions(num_completions=4, **sampling)
    with pytest.raises(ConfigError, match=message):
        chosen_correction(CollectOptions(**options), OBJECTIVES[objective](), drawn, has_server=True)
