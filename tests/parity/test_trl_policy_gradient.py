"""Parity with TRL 1.16's GRPO and RLOO trainers, advantages included, on ragged samples of another policy; in
fp32.

TRL samples nothing here: its generation is handed the completions, and everything after that is its own. It
has no PPO and no REINFORCE++ any more; its clipped loss takes advantages per token, so their policy part is
compared with that.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from preftune.objectives import Coupled, Objective, reduce_losses
from preftune.objectives.base import coupling_of
from preftune.objectives.grpo import DAPO, GRPO, GSPO, DrGRPO
from preftune.objectives.ppo import PPO
from preftune.objectives.reinforce_plus_plus import ReinforcePlusPlus
from preftune.objectives.rloo import RLOO
from preftune.types import Rewards, StepView, TokenScores
from tests.models import VOCAB, tiny_model
from tests.parity.trl_losses import (
    COMMON,
    completion_logp,
    gradient_of,
    models,
    theirs,
    tiny_dataset,
    tokenizer,
)

pytestmark = [pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")]
PROMPTS, SIZE, MAX_TOKENS = ([3], [4]), 3, 12


@dataclass(frozen=True)
class Sampled:
    """Completions of each prompt in turn, with their rewards."""

    completions: tuple[list[int], ...]
    rewards: tuple[float, ...]

    @property
    def prompts(self) -> list[list[int]]:
        return [PROMPTS[i // SIZE] for i in range(len(self.completions))]


def sampled(seed: int, lengths: Sequence[int], rewards: Sequence[float]) -> Sampled:
    random = torch.Generator().manual_seed(seed)
    ids = tuple(torch.randint(3, VOCAB, (n,), generator=random).tolist() for n in lengths)
    return Sampled(completions=ids, rewards=tuple(rewards))


RAGGED = sampled(5, (5, 2, 7, 1, 4, 6), (1.0, -0.5, 0.25, 2.0, 0.0, -1.0))
LEVEL = sampled(6, (4, 4, 4, 4, 4, 4), RAGGED.rewards)
HALF_EQUAL = replace(RAGGED, rewards=(1.0, -0.5, 0.25, 0.7, 0.7, 0.7))


@pytest.fixture(scope="module")
def three():
    """(policy, reference, behaviour): the behaviour policy is near, so that some ratios are clipped and some
    are not.
    """
    policy, reference = models()
    behaviour = tiny_model(seed=1, std=0.12)
    noise = tiny_model(seed=3, std=0.03)
    with torch.no_grad():
        for mine, other in zip(behaviour.parameters(), noise.parameters(), strict=True):
            if mine.ndim > 1:
                mine += other
    from trl.trainer.utils import add_fused_lm_head

    for model in (reference, behaviour):  # as the trainers do with the policy; a plain call stays as it was
        add_fused_lm_head(model, outputs=("log_probs", "entropy"))
    return policy, reference, behaviour


def make_trainer(kind, config, folder, policy, reference):
    args = config(
        output_dir=str(folder),
        num_generations=SIZE,
        max_completion_length=MAX_TOKENS,
        beta=0.0,
        **{**{k: v for k, v in COMMON.items() if k != "max_length"}, "per_device_train_batch_size": 2 * SIZE},
    )
    trainer = kind(
        policy,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=args,
        train_dataset=tiny_dataset(),
        processing_class=tokenizer(),
    )
    trainer.ref_model, trainer.num_generations_eval = reference, SIZE
    trainer.num_iterations = 2  # samples are used twice, so TRL scores the policy that sampled
    return trainer


@pytest.fixture(scope="module")
def grpo(tmp_path_factory, three):
    from trl import GRPOConfig, GRPOTrainer

    return make_trainer(GRPOTrainer, GRPOConfig, tmp_path_factory.mktemp("grpo"), *three[:2])


@pytest.fixture(scope="module")
def rloo(tmp_path_factory, three):
    from trl import RLOOConfig, RLOOTrainer

    return make_trainer(RLOOTrainer, RLOOConfig, tmp_path_factory.mktemp("rloo"), *three[:2])


def prepared(trainer, samples: Sampled, sampler, with_logps: bool) -> dict[str, Tensor]:
    """TRL's inputs of a loss: what it makes of the completions, the rewards and the policy that sampled them."""
    found = [list(ids) for ids in samples.completions]
    trainer._generate_single_turn = lambda *_: (found, None) if with_logps else found
    trainer.reward_funcs = [lambda completions, **_: list(samples.rewards)]
    policy, trainer.model = trainer.model, sampler
    try:
        return trainer._generate_and_score_completions(
            [{"prompt": f"w{prompt[0]}"} for prompt in samples.prompts]
        )
    finally:
        trainer.model = policy


def trl_grpo(
    trainer,
    three,
    samples,
    loss_type,
    *,
    beta=0.0,
    low=0.2,
    high=None,
    scale="group",
    level="token",
    delta=None,
    advantages=None,
    weighted_kl=False,
):
    trainer.loss_type, trainer.beta, trainer.scale_rewards = loss_type, beta, scale
    trainer.epsilon_low, trainer.epsilon_high = low, low if high is None else high
    trainer.importance_sampling_level, trainer.args.delta = level, delta
    trainer.args.use_bias_correction_kl = weighted_kl
    inputs = prepared(trainer, samples, three[2], with_logps=True)
    if advantages is not None:
        inputs["advantages"] = advantages
    return theirs(lambda: trainer._compute_loss(three[0], inputs), three[0])


def trl_rloo(trainer, three, samples, *, beta, clip, sampler):
    trainer.beta, trainer.epsilon_low, trainer.epsilon_high = beta, clip, clip
    inputs = prepared(trainer, samples, sampler, with_logps=False)
    return theirs(lambda: trainer._compute_loss(three[0], inputs), three[0])


def our_scores(objective: Objective, three, samples: Sampled, sampler=None) -> tuple[TokenScores, Rewards]:
    policy, reference, behaviour = three
    pairs = list(zip(samples.prompts, samples.completions, strict=True))

    def logp(model) -> Tensor:
        return torch.cat([completion_logp(model, p, c) for p, c in pairs])

    lengths = torch.tensor([len(c) for c in samples.completions])
    random = torch.Generator().manual_seed(7)
    with torch.no_grad():
        known = {
            "ref_logp": logp(reference),
            "behaviour_logp": logp(sampler or behaviour),
            "value": torch.randn(int(lengths.sum()), generator=random),
        }
    needed = {name: values for name, values in known.items() if name in objective.needs}
    scores = TokenScores(logp=logp(policy), lengths=lengths, **needed)
    signal = Rewards(reward=torch.tensor(samples.rewards), group=torch.arange(len(lengths)) // SIZE)
    if "coupling" in objective.needs:
        assert isinstance(objective, Coupled)
        view = StepView(
            lengths=lengths, prompt=torch.zeros(len(lengths), dtype=torch.long), signal=signal, scores=scores
        )
        with torch.no_grad():
            scores = replace(scores, coupling=objective.couple(view, objective.initial_state())[0])
    return scores, signal


def ours(objective: Objective, three, samples: Sampled, sampler=None) -> tuple[Tensor, Tensor]:
    scores, signal = our_scores(objective, three, samples, sampler)
    loss = reduce_losses(objective(scores, signal), float(objective.weights(scores.lengths, signal).sum()))
    return loss, gradient_of(loss, three[0])


def assert_parity(mine, other):
    assert other[1].abs().max() > 1e-3
    torch.testing.assert_close(mine[0], other[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine[1], other[1], rtol=1e-5, atol=1e-5 * other[1].abs().max().item())


# --- GRPOTrainer ---


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (GRPO(beta=0.0), dict(loss_type="grpo")),
        (GRPO(beta=0.4), dict(loss_type="grpo", beta=0.4)),
        (GRPO(beta=0.04, clip=0.05), dict(loss_type="grpo", beta=0.04, low=0.05)),
        (DrGRPO(max_tokens=MAX_TOKENS), dict(loss_type="dr_grpo", scale="none")),
        (DAPO(), dict(loss_type="dapo", high=0.28)),
        (DAPO(clip_low=0.02, clip_high=0.1), dict(loss_type="dapo", low=0.02, high=0.1)),
        (GSPO(), dict(loss_type="grpo", low=3e-4, high=4e-4, level="sequence")),
        (GSPO(clip_low=0.02, clip_high=0.3), dict(loss_type="grpo", low=0.02, high=0.3, level="sequence")),
    ],
    ids=lambda value: type(value).__name__ if not isinstance(value, dict) else value["loss_type"],
)
def test_grpo_trainer(grpo, three, objective, settings):
    assert_parity(ours(objective, three, RAGGED), trl_grpo(grpo, three, RAGGED, **settings))


def test_some_ratios_are_clipped_and_some_are_not(three):
    """Otherwise the clip would not have been compared."""
    for objective in (GRPO(clip=0.05), GSPO(clip_low=0.02, clip_high=0.3), RLOO(clip=0.2)):
        scores, signal = our_scores(objective, three, RAGGED)
        assert 0 < objective(scores, signal).metrics["ratio/clipped"].mean() < 1


def test_trl_weighs_its_kl_term_by_the_ratio_unless_told_not_to(grpo, three):
    """The paper's is not weighed. On the policy's own samples the value is the same and the gradient is not."""
    from trl import GRPOConfig

    assert GRPOConfig.__dataclass_fields__["use_bias_correction_kl"].default is True
    mine = ours(GRPO(beta=0.4), three, RAGGED)[0]
    other = trl_grpo(grpo, three, RAGGED, "grpo", beta=0.4, weighted_kl=True)[0]
    assert abs((mine - other).item()) > 1e-3


def test_trl_s_own_defaults_are_dapo_s_loss_without_its_upper_clip(grpo, three):
    """The tokens' mean, no KL term, the same clip on both sides."""
    from trl import GRPOConfig

    fields = GRPOConfig.__dataclass_fields__
    assert (fields["loss_type"].default, fields["beta"].default) == ("dapo", 0.0)
    assert (fields["epsilon"].default, fields["epsilon_high"].default) == (0.2, None)
    mine = ours(DAPO(clip_high=0.2), three, RAGGED)
    assert_parity(mine, trl_grpo(grpo, three, RAGGED, "dapo"))
    assert abs((ours(GRPO(beta=0.0), three, RAGGED)[0] - mine[0]).item()) > 1e-3


def test_groups_with_equal_rewards_count_in_trl_s_denominator(grpo, three):
    """DAPO draws others in their place. Of TRL's tokens ours are those of the first group; the gradient is
    the same but for that factor.
    """
    other = trl_grpo(grpo, three, HALF_EQUAL, "dapo", high=0.28)
    lengths = [len(c) for c in RAGGED.completions]
    share = sum(lengths[:SIZE]) / sum(lengths)
    value, gradient = ours(DAPO(), three, HALF_EQUAL)
    assert_parity((share * value, share * gradient), other)


def test_dr_grpo_and_trl_s_budget_of_tokens(grpo, three):
    """TRL divides by its max_completion_length, whatever the lengths; so does ours by max_tokens."""
    value, gradient = ours(DrGRPO(max_tokens=1), three, RAGGED)
    other = trl_grpo(grpo, three, RAGGED, "dr_grpo", scale="none")
    assert_parity((value / MAX_TOKENS, gradient / MAX_TOKENS), other)


@pytest.mark.parametrize(
    ("objective", "delta"),
    [
        (PPO(kl_coef=0.4, vf_coef=0.0, normalize_returns=False), None),
        (PPO(kl_coef=0.0, vf_coef=0.0, clip=0.05, dual_clip=1.2, normalize_returns=False), 1.2),
        (ReinforcePlusPlus(beta=0.4, gamma=0.9), None),
        (ReinforcePlusPlus(beta=0.0, clip=0.05), None),
    ],
)
def test_policy_part_with_advantages_per_token(grpo, three, objective, delta):
    """The advantages are from the definitions, completion by completion; TRL's loss is the mean over tokens."""
    scores, signal = our_scores(objective, three, RAGGED)
    raw = raw_advantages(objective, scores, signal)
    assert coupling_of(scores).whole["mean"].item() == pytest.approx(raw.mean().item(), rel=1e-4, abs=1e-6)
    white = (raw - raw.mean()) * (raw.var() + 1e-8).rsqrt()
    padded = torch.nn.utils.rnn.pad_sequence(white.split(scores.lengths.tolist()), batch_first=True)
    other = trl_grpo(grpo, three, RAGGED, "dapo", low=objective.clip, delta=delta, advantages=padded)
    assert_parity(ours(objective, three, RAGGED), other)


def raw_advantages(objective, scores: TokenScores, signal: Rewards) -> Tensor:
    """By the definitions, one completion and one token at a time."""
    found, is_ppo = [], isinstance(objective, PPO)
    beta = objective.kl_coef if is_ppo else objective.beta
    lam, gamma = (objective.lam if is_ppo else 1.0), objective.gamma
    value = scores.value if is_ppo else torch.zeros_like(scores.logp)
    drift = 0 if beta == 0 else scores.behaviour_logp - scores.ref_logp
    penalty = -beta * drift * torch.ones_like(scores.logp)
    rows = (x.detach().tolist() for x in (penalty, value))
    penalties, values = (iter(row) for row in rows)
    for length, reward in zip(scores.lengths.tolist(), signal.reward.tolist(), strict=True):
        r, v = [next(penalties) for _ in range(length)], [next(values) for _ in range(length)]
        r[-1] += reward
        d = [r[t] + gamma * (v[t + 1] if t + 1 < length else 0.0) - v[t] for t in range(length)]
        found += [sum((gamma * lam) ** k * x for k, x in enumerate(d[t:])) for t in range(length)]
    return torch.tensor(found)


# --- RLOOTrainer ---


@pytest.mark.parametrize("clip", [0.2, 0.05])
def test_rloo_trainer(rloo, three, clip):
    """Samples of another policy, no penalty."""
    assert_parity(
        ours(RLOO(beta=0.0, clip=clip), three, RAGGED),
        trl_rloo(rloo, three, RAGGED, beta=0.0, clip=clip, sampler=three[2]),
    )


def test_rloo_with_a_penalty_on_the_policy_s_own_samples(rloo, three):
    other = trl_rloo(rloo, three, RAGGED, beta=0.05, clip=0.2, sampler=three[0])
    mine = ours(RLOO(beta=0.05, clip=0.2), three, RAGGED, sampler=three[0])
    assert_parity(mine, other)
    plain = ours(RLOO(beta=0.05), three, RAGGED)
    torch.testing.assert_close(plain[1], other[1], rtol=1e-5, atol=1e-5 * other[1].abs().max().item())


def test_trl_s_penalty_is_that_of_the_policy_that_sampled(rloo, three):
    """Ours is that of the policy that trains, which is what the gradient of the penalized reward has; the two
    agree on its own samples only.
    """
    mine = ours(RLOO(beta=0.4, clip=0.2), three, RAGGED)
    other = trl_rloo(rloo, three, RAGGED, beta=0.4, clip=0.2, sampler=three[2])
    assert abs((mine[0] - other[0]).item()) > 1e-3
