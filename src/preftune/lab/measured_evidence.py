"""Evidence on a problem, measured as its user would: from samples and their rewards, never from the laws
behind them.
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from preftune.advice.evidence import Evidence
from preftune.lab.environment import World
from preftune.lab.methods import Method
from preftune.lab.problem import Problem
from preftune.lab.steps import pair_places, token_scores
from preftune.measures.coverage import reward_peak
from preftune.objectives.dpo import DPO

OWN_SAMPLES = 16  # of each prompt, before training; they count for nothing, as evaluation does
ONE_SIDED_95 = 1.645  # standard deviations


def measure_evidence(problem: Problem, *, groups: int, can_reward: bool, seed: int) -> Evidence:
    """What a user sees of the data that training on this seed uses, `groups` prompts of them, and of
    `OWN_SAMPLES` completions of the reference for each. What the user can afford is not measured.
    """
    world = World(problem, (seed,))
    size = problem.data.completions
    data = world.sample_data(groups, size)
    policy = world.policy()
    with torch.no_grad():
        logits = policy(world.train_prompts)
    own = world.sample(logits, groups, OWN_SAMPLES)
    true = world.rewards(data, true=True)[0]
    wins = labeled(true, _exchanged(world, true[None]))
    tokens = world.tokens(data)
    lengths = tokens.lengths.view(groups, size)
    found = Evidence(
        num_prompts=groups,
        num_pairs=int(wins.sum()),
        completions_per_prompt=float(size),
        completion_tokens=float(lengths.double().mean()),
        off_policy=_logp(world, logits, own) - _logp(world, logits, data),
        noise=cyclic_noise(wins),
        length_bias=_length_bias(wins, lengths) if int(lengths.max()) > 1 else None,
        can_reward=can_reward,
    )
    return (
        _judged(found, world.rewards(own)[0].double(), world.rewards(data)[0].double(), wins)
        if can_reward
        else found
    )


def _judged(
    evidence: Evidence, own: Float[Tensor, "G K"], data: Float[Tensor, "G C"], wins: Bool[Tensor, "G C C"]
) -> Evidence:
    """With the measures that need a reward."""
    peak = reward_peak(own.tolist(), data.tolist())
    assert peak is not None, "every prompt has own samples and completions"
    against = wins & (data[:, :, None] < data[:, None, :])
    return replace(
        evidence,
        best_of_data=peak.best_of_data.mean,
        best_of_n={n: one.mean for n, one in peak.best_of_n.items()},
        reward_spread=peak.spread.mean,
        zero_spread=peak.zero_spread.mean,
        noise=upper_share(int(against.sum()), int(wins.sum())),
    )


def labeled(rewards: Float[Tensor, "G C"], exchanged: Bool[Tensor, "G P"] | None) -> Bool[Tensor, "G C C"]:
    """Who wins against whom (row against column) after noise; pairs of equal rewards have no winner."""
    wins = rewards[:, :, None] > rewards[:, None, :]
    if exchanged is not None:
        first, second = torch.triu_indices(rewards.shape[1], rewards.shape[1], offset=1)
        turned = torch.zeros_like(wins)
        turned[:, first, second] = exchanged
        turned[:, second, first] = exchanged
        wins = torch.where(turned, wins.transpose(1, 2), wins)
    return wins


def cyclic_noise(wins: Bool[Tensor, "G C C"]) -> float | None:
    """An upper estimate of the share of exchanged pairs from triples that contradict themselves; None without
    triples.

    Where each of a triple's three labels is exchanged with probability e, it is a cycle with probability
    (1 - e)^2 e + e^2 (1 - e) = e (1 - e). So e = (1 - sqrt(1 - 4 c)) / 2 for the share c of cycles.
    """
    won = wins.double()
    decided = won + won.transpose(1, 2)
    cycles = float(torch.einsum("gij,gjk,gki->", won, won, won)) / 3
    triples = float(torch.einsum("gij,gjk,gki->", decided, decided, decided)) / 6
    if not triples:
        return None
    share = min(0.25, upper_share(round(cycles), round(triples)))
    return (1 - math.sqrt(1 - 4 * share)) / 2


def upper_share(count: int, total: int) -> float:
    """The upper end of Wilson's one-sided 95% interval of a share; 1 where nothing was counted."""
    if not total:
        return 1.0
    z2 = ONE_SIDED_95**2
    share = count / total
    half = ONE_SIDED_95 * math.sqrt(share * (1 - share) / total + z2 / (4 * total**2))
    return min(1.0, (share + z2 / (2 * total) + half) / (1 + z2 / total))


def _exchanged(world: World, rewards: Float[Tensor, "1 G C"]) -> Bool[Tensor, "G P"] | None:
    """Drawn as training draws them, so that both see the same labels."""
    if not world.problem.data.noise:
        return None
    shape: Sequence[int] = pair_places(rewards, Method(objective=DPO()))[0].shape[1:]
    return (world.uniform("noise", tuple(shape)) < world.problem.data.noise)[0]


def _logp(world: World, logits: Tensor, completions: Int[Tensor, "1 G C *L"]) -> float:
    """Mean logp per token under the reference."""
    scores = token_scores(
        logits, world.ref_of(logits), None, world.tokens(completions), frozenset({"ref_logp"})
    )
    assert scores.ref_logp is not None
    return float(scores.ref_logp.double().mean())


def _length_bias(wins: Bool[Tensor, "G C C"], lengths: Int[Tensor, "G C"]) -> float | None:
    if not bool(wins.any()):
        return None
    ahead = (lengths[:, :, None] - lengths[:, None, :]).double().sign()
    return float(((ahead + 1) / 2)[wins].mean())
