"""Parity with TRL 1.16's online DPO, completions and rewards given, and of EXO over groups with its pairwise
loss.
"""

import math

import pytest
import torch

from preftune.objectives.bpo import BPO
from preftune.objectives.dpo import DPO
from preftune.objectives.exo import EXOGroup
from preftune.objectives.ipo import IPO
from preftune.objectives.reward_aware_rpo import RewardAwareRPO
from tests.parity.trl_losses import (
    COMMON,
    dpo_batch,
    models,
    ours,
    padded,
    random_examples,
    theirs,
    tiny_dataset,
    tokenizer,
)

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning"),
    pytest.mark.filterwarnings("ignore:You are importing from 'trl.experimental'"),
]
RAGGED = random_examples(5, chosen_lengths=(5, 2, 7), rejected_lengths=(3, 6, 1))
FIRST_WINS = (
    True,
    False,
    True,
)  # TRL draws two completions of a prompt and finds out which has the higher reward


def assert_parity(mine, other):
    torch.testing.assert_close(mine[0], other[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine[1], other[1], rtol=1e-5, atol=1e-5 * other[1].abs().max().item())


def sampled():
    """What TRL's sampler returns: prompts padded on the left, completions of the first draw and then of the
    second.
    """
    first = [e.chosen if wins else e.rejected for e, wins in zip(RAGGED, FIRST_WINS, strict=True)]
    second = [e.rejected if wins else e.chosen for e, wins in zip(RAGGED, FIRST_WINS, strict=True)]
    prompts = [e.prompt for e in RAGGED] * 2
    completions = first + second
    prompt_ids = padded([p[::-1] for p in prompts], 0).flip(1)
    prompt_mask = padded([[1] * len(p) for p in prompts], 0).flip(1)
    completion_mask = padded([[1] * len(c) for c in completions], 0)
    return prompt_ids, prompt_mask, padded(completions, 0), completion_mask, None


@pytest.fixture(scope="module")
def online(tmp_path_factory):
    from trl.experimental.online_dpo import OnlineDPOConfig, OnlineDPOTrainer

    policy, reference = models()
    args = OnlineDPOConfig(output_dir=str(tmp_path_factory.mktemp("online")), max_new_tokens=8, **COMMON)
    wins = [1.0 if first else 0.0 for first in FIRST_WINS]
    trainer = OnlineDPOTrainer(
        policy,
        reference,
        reward_funcs=lambda **_: wins + [1 - w for w in wins],
        args=args,
        train_dataset=tiny_dataset(),
        processing_class=tokenizer(),
    )
    trainer._generate = lambda *_: sampled()
    return trainer, policy, reference


def trl_online(online, loss_type: str, beta: float):
    trainer, policy, _ = online
    trainer.args.loss_type, trainer._beta = loss_type, beta
    policy.zero_grad()
    loss = trainer.training_step(policy, {"prompt": ["p"] * len(RAGGED)})
    gradient = torch.cat([p.grad.flatten().clone() for p in policy.parameters() if p.grad is not None])
    return loss, gradient


@pytest.mark.parametrize(
    ("objective", "loss_type"),
    [
        (DPO(beta=0.4), "sigmoid"),
        (BPO(beta=0.4), "sigmoid"),
        (IPO(tau=0.4, reduction="sum"), "ipo"),
        (BPO(beta=0.4, link="square"), "ipo"),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, str) else value,
)
def test_online_dpo(online, objective, loss_type):
    """Sums over tokens in both links. BPO has TRL's loss with the sampling policy where TRL has the
    reference.
    """
    assert_parity(ours(objective, RAGGED, *online[1:]), trl_online(online, loss_type, 0.4))


def test_online_ipo_is_not_the_mean_that_trls_offline_ipo_takes(online):
    mine = ours(IPO(tau=0.4), RAGGED, *online[1:])[0]
    assert abs((mine - trl_online(online, "ipo", 0.4)[0]).item()) > 1e-2


def test_exo_over_groups_of_two(tmp_path):
    """Rewards of 1 and 0 with a temperature that makes a target of 1 - e."""
    from trl import DPOConfig, DPOTrainer

    policy, reference = models()
    data = tiny_dataset(chosen=["w5", "w6"], rejected=["w7", "w8"])
    args = DPOConfig(output_dir=str(tmp_path), **COMMON)
    trainer = DPOTrainer(policy, reference, args=args, train_dataset=data, processing_class=tokenizer())
    trainer.loss_types, trainer.loss_weights = ["exo_pair"], [1.0]
    trainer.beta, trainer.label_smoothing = 0.4, 0.01
    trl = theirs(lambda: trainer._compute_loss(policy, dpo_batch(RAGGED), False), policy)
    log_odds = math.log(0.99 / 0.01)
    for mine in (
        EXOGroup(beta=0.4, reward_temperature=1 / log_odds),
        RewardAwareRPO(beta=0.4, eta=log_odds, distance="forward_kl"),
    ):
        assert_parity(ours(mine, RAGGED, policy, reference), trl)
