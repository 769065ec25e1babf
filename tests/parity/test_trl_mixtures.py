"""Parity with TRL 1.16's loss code where it adds losses up (MPO, CPO-SimPO) and where it trains a reward
model.
"""

import pytest
import torch
from transformers import LlamaForSequenceClassification

from preftune.objectives import reduce_losses
from preftune.objectives.bradley_terry import BradleyTerry
from preftune.objectives.mixture import MPO, Mixture
from preftune.objectives.simpo import CPOSimPO
from preftune.types import Pairs, TokenScores
from tests.models import CONFIGS
from tests.parity.trl_losses import (
    COMMON,
    assert_parity,
    cpo_batch,
    dpo_batch,
    gradient_of,
    models,
    ours,
    padded,
    random_examples,
    theirs,
    tiny_dataset,
    tokenizer,
)

pytestmark = [pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")]
RAGGED = random_examples(5, chosen_lengths=(5, 2, 7), rejected_lengths=(3, 6, 1))
LEVEL = random_examples(6, chosen_lengths=(4, 4, 4), rejected_lengths=(3, 6, 1))  # token mean = mean of means


# --- DPOTrainer with several loss types ---


@pytest.fixture(scope="module")
def dpo(tmp_path_factory):
    from trl import DPOConfig, DPOTrainer

    policy, reference = models()
    data = tiny_dataset(chosen=["w5", "w6"], rejected=["w7", "w8"])
    args = DPOConfig(output_dir=str(tmp_path_factory.mktemp("dpo")), **COMMON)
    return (
        DPOTrainer(policy, reference, args=args, train_dataset=data, processing_class=tokenizer()),
        policy,
        reference,
    )


def trl_sum(dpo, examples, weights: dict[str, float], beta: float):
    trainer, policy, _ = dpo
    trainer.loss_types, trainer.loss_weights, trainer.beta = list(weights), list(weights.values()), beta
    return theirs(lambda: trainer._compute_loss(policy, dpo_batch(examples), False), policy)


@pytest.mark.parametrize(
    ("objective", "weights"),
    [
        (MPO(beta=0.4), {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}),
        (
            MPO(dpo_weight=0.3, bco_weight=2.0, sft_weight=0.1, beta=0.4),
            {"sigmoid": 0.3, "bco_pair": 2.0, "sft": 0.1},
        ),
        (Mixture(terms="0.5*hinge(beta=0.4) + sft + 2*ipo(tau=0.4)"), {"hinge": 0.5, "sft": 1.0, "ipo": 2.0}),
        (Mixture(terms="apo-zero(beta=0.4) + -0.5*apo-down(beta=0.4)"), {"apo_zero": 1.0, "apo_down": -0.5}),
    ],
)
def test_sums_of_losses(dpo, objective, weights):
    """On ragged completions: both means run over all chosen tokens, TRL's of the micro-batch, ours of the
    step.
    """
    assert_parity(ours(objective, RAGGED, *dpo[1:]), trl_sum(dpo, RAGGED, weights, beta=0.4))


def test_trls_likelihood_depends_on_how_a_step_is_cut(dpo):
    """The mean of the micro-batches' means is not the mean over the step's tokens; ours is that, however it
    is cut.
    """
    weights = {"sigmoid": 0.8, "bco_pair": 0.2, "sft": 1.0}
    pieces = [trl_sum(dpo, [example], weights, beta=0.4)[0] for example in RAGGED]
    whole = trl_sum(dpo, RAGGED, weights, beta=0.4)[0]
    assert abs((sum(pieces) / len(pieces) - whole).item()) > 1e-3
    torch.testing.assert_close(ours(MPO(beta=0.4), RAGGED, *dpo[1:])[0], whole, rtol=1e-5, atol=1e-6)


# --- CPOTrainer ---


@pytest.fixture(scope="module")
def cpo(tmp_path_factory):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    policy, reference = models()
    data = tiny_dataset(chosen=["w5", "w6"], rejected=["w7", "w8"])
    args = CPOConfig(
        output_dir=str(tmp_path_factory.mktemp("cpo")),
        loss_type="simpo",
        beta=1.5,
        simpo_gamma=0.4,
        cpo_alpha=0.7,
        **COMMON,
    )
    return CPOTrainer(policy, args=args, train_dataset=data, processing_class=tokenizer()), policy, reference


def test_cpo_simpo(cpo):
    """TRL's likelihood is a mean over all chosen tokens of the micro-batch; ours is per completion."""
    trainer, policy, reference = cpo
    objective = CPOSimPO(beta=1.5, gamma=0.4, nll_weight=0.7)
    same = Mixture(terms="simpo(beta=1.5, gamma=0.4) + 0.7*sft")
    for examples, differ in ((LEVEL, False), (RAGGED, True)):
        trl = theirs(lambda: trainer.get_batch_loss_metrics(policy, cpo_batch(examples))[0], policy)  # noqa: B023
        mine = ours(objective, examples, policy, reference)
        if differ:
            assert abs((mine[0] - trl[0]).item()) > 1e-3
        else:
            assert_parity(mine, trl)
        assert_parity(ours(same, examples, policy, reference), trl)


# --- RewardTrainer ---


def reward_model() -> LlamaForSequenceClassification:
    torch.manual_seed(7)
    config = CONFIGS["llama"]()
    config.num_labels = 1
    model = LlamaForSequenceClassification(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.12)
    return model.eval()


@pytest.fixture(scope="module")
def reward(tmp_path_factory):
    from trl import RewardConfig, RewardTrainer

    model = reward_model()
    data = tiny_dataset(chosen=["w5", "w6"], rejected=["w7", "w8"])
    settings = {name: value for name, value in COMMON.items() if name != "activation_checkpointing"}
    args = RewardConfig(output_dir=str(tmp_path_factory.mktemp("reward")), **settings)
    return RewardTrainer(model, args=args, train_dataset=data, processing_class=tokenizer()), model


def head_values(model, prompt: list[int], completion: list[int]) -> torch.Tensor:
    """The head along a completion, at its own tokens."""
    hidden = model.model(torch.tensor([prompt + completion])).last_hidden_state[0]
    return model.score(hidden)[len(prompt) :, 0]


def our_reward_loss(objective: BradleyTerry, model, examples):
    completions = [(e.prompt, c) for e in examples for c in (e.chosen, e.rejected)]
    value = torch.cat([head_values(model, p, c) for p, c in completions])
    lengths = torch.tensor([len(c) for _, c in completions])
    even = torch.arange(0, len(completions), 2)
    scores = TokenScores(logp=torch.zeros_like(value), lengths=lengths, value_after=value)
    loss = reduce_losses(objective(scores, Pairs(chosen=even, rejected=even + 1)), float(len(even)))
    return loss, gradient_of(loss, model)


def trl_reward_loss(reward, examples, margin: float, centring: float | None):
    trainer, model = reward
    rows = [e.prompt + e.chosen for e in examples] + [e.prompt + e.rejected for e in examples]
    batch = {"input_ids": padded(rows, 0), "attention_mask": padded([[1] * len(row) for row in rows], 0)}
    if margin:
        batch["margin"] = torch.full((len(examples),), margin)
    trainer.args.center_rewards_coefficient = centring
    return theirs(lambda: trainer.compute_loss(model, dict(batch)), model)


@pytest.mark.parametrize(("margin", "centring"), [(0.0, 0.0), (0.0, 0.01), (0.6, 0.0), (0.6, 0.3)])
def test_reward_trainer(reward, margin, centring):
    """The same formula on the same numbers: the head after each completion's last token."""
    mine = our_reward_loss(BradleyTerry(margin=margin, centring=centring), reward[1], RAGGED)
    assert_parity(mine, trl_reward_loss(reward, RAGGED, margin, centring or None))
