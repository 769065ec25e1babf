"""The rules of advice: tables, evaluated in order; the first that holds is the first recommendation.

Thresholds are named, with their reasons. docs/advice.md states what was tuned in the laboratory, on which
seeds, and the regret of the advice.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from preftune.advice.evidence import Evidence

LONG = 2.0  # tokens: from here on a KL penalty is a sum over tokens, and grows where the reward does not
FEW_ROUNDS = 2  # collections of all prompts: only the second comes from a policy that has learned
FEW_TOGETHER = 8  # completions of a collection: with two of each prompt, four prompts
NOISY = 0.2  # of pairs exchanged: a label then carries a quarter of its information, 1 - H(0.2) = 0.28 bits
ALIKE = 0.7  # of tokens in common: most of a pair then moves up and down at once
FAR = 0.3  # nats per token: a factor of 1.35 in perplexity
LONGER = 0.6  # of pairs with the longer side chosen; at one half, length carries no information
SILENT = 0.5  # of prompts whose own rewards are all equal: half of the samples give no gradient
REPEATED = 0.1  # of rows: a repeated row has more weight than intended
FEW_PAIRS = (
    200  # a share of 200 has an interval of 7 points to both sides; with fewer an upper estimate is too wide
)
FLAT = 0.5  # spreads between the best of 4 and the mean: 1.03 for normal rewards
GOOD_DATA = 0.97  # P(an own sample is worse than the data's best): own samples reach it once in 33 draws

PAPER = "Tajwar et al. 2024"
RACE = "docs/advice.md, measured regret"


@dataclass(frozen=True, kw_only=True)
class Rule:
    """When something is recommended, and why. `rests_on` names the evidence that is shown with it."""

    choice: str
    when: Callable[[Evidence], bool]
    reason: str
    basis: str
    rests_on: tuple[str, ...] = ()
    settings: Callable[[Evidence], Mapping[str, float | str]] = lambda evidence: {}


def _above(value: int | float | None, bound: int | float) -> bool:
    return value is not None and value >= bound


def _always(e: Evidence) -> bool:
    return True


def own_samples(e: Evidence) -> bool:
    """Whether own samples can be drawn, scored and paid for."""
    return e.can_sample is True and e.can_reward is True and e.samples != 0


def _few_together(e: Evidence) -> bool:
    if e.num_prompts is None or e.completions_per_prompt is None:
        return False
    return e.num_prompts * e.completions_per_prompt <= FEW_TOGETHER


def _single_round(e: Evidence) -> bool:
    """Whether the samples go through all prompts less than twice, with the data's completions of each."""
    if e.samples is None or e.num_prompts is None or e.completions_per_prompt is None:
        return False
    return e.samples < FEW_ROUNDS * e.num_prompts * e.completions_per_prompt


def _noisy(e: Evidence) -> bool:
    return _above(e.noise, NOISY) and _above(e.num_pairs, FEW_PAIRS)


def _fresh_per_step(e: Evidence) -> Mapping[str, float | str]:
    """How many new own samples the budget has for each gradient step."""
    return {} if e.samples is None or not e.steps else {"new_samples_per_step": round(e.samples / e.steps, 2)}


def gain_of_four(e: Evidence) -> float | None:
    """The best of four own samples above their mean, in standard deviations of a prompt's rewards."""
    if e.best_of_n is None or not e.reward_spread or not {1, 4} <= set(e.best_of_n):
        return None
    return (e.best_of_n[4] - e.best_of_n[1]) / e.reward_spread


SOURCE_RULES = (
    Rule(
        choice="offline",
        when=lambda e: _above(e.best_of_data, GOOD_DATA),
        rests_on=("best_of_data",),
        reason="The data contain better answers than own samples reach. Fixed data suffice and need no sampling.",
        basis=f"Xg, E6 of docs/lab.md; {PAPER}, F0; {RACE}",
    ),
    Rule(
        choice="mixed",
        when=lambda e: own_samples(e) and _above(e.best_of_data, GOOD_DATA),
        rests_on=("best_of_data", "samples"),
        reason="Train on the data first, then on own samples, which can then improve on the data.",
        basis=f"{PAPER}, F0; not measured",
    ),
    Rule(
        choice="on-policy",
        when=own_samples,
        rests_on=("samples", "steps", "best_of_data", "reward_spread"),
        settings=_fresh_per_step,
        reason="Own samples show the current errors of the policy and reach answers that are not in the data. They matter most "
        "where good answers are rare. If the budget has fewer samples than the steps need, each collection is reused.",
        basis=f"E1, E2, E3, E7 of docs/lab.md; {PAPER}, F0, F1, F4, F9",
    ),
    Rule(
        choice="offline",
        when=_always,
        rests_on=("can_sample", "can_reward", "samples"),
        reason="The existing data, where own samples cannot be drawn, scored or paid for. They suffice where the data favor good "
        "answers or the policy already gives them.",
        basis=f"E2, E6 of docs/lab.md; {PAPER}, F0",
    ),
)

ON_POLICY = (
    Rule(
        choice="nca",
        when=lambda e: not _above(e.completion_tokens, LONG) and _few_together(e),
        rests_on=("num_prompts", "completions_per_prompt"),
        basis=RACE,
        reason="In a collection this small all samples are often bad, and a baseline among them carries no information. Scored one "
        "by one, they still move the policy away from what it has tried.",
    ),
    Rule(
        choice="rloo",
        when=lambda e: _above(e.completion_tokens, LONG) and _single_round(e),
        rests_on=("samples", "num_prompts"),
        reason="All steps reuse one collection. The KL penalty keeps the policy near the samples of this collection.",
        basis=f"{PAPER}, F4; {RACE}",
    ),
    Rule(
        choice="dpo",
        when=lambda e: _above(e.completion_tokens, LONG),
        rests_on=("completion_tokens", "samples"),
        reason="A contrastive loss on own samples gains as much as a policy gradient with many samples and more with few. It does "
        "not depend on the scale of the reward.",
        basis=f"E10 of docs/lab.md; {PAPER}, F9; {RACE}",
    ),
    Rule(
        choice="rloo",
        when=_always,
        rests_on=("reward_spread",),
        reason="It has an unbiased baseline from the other samples of the prompt and a KL penalty that keeps the policy exploring.",
        basis=f"docs/objectives/rloo.md; {RACE}",
    ),
    Rule(
        choice="reinforce",
        when=_always,
        reason="A policy gradient without a reference: only the learning rate keeps the policy near its initial state.",
        basis="docs/objectives/reinforce.md",
    ),
)

OFFLINE = (
    Rule(
        choice="bnf",
        when=lambda e: e.num_pairs == 0 and e.can_reward is not True,
        rests_on=("num_pairs",),
        reason="It is made for single labeled completions and has nothing to tune.",
        basis="B1 of docs/lab.md; docs/objectives/bnf.md",
    ),
    Rule(
        choice="kto",
        when=lambda e: e.num_pairs == 0 and e.can_reward is not True,
        rests_on=("num_pairs",),
        reason="It also learns from single labels, with a threshold that follows the policy. It needs two prompts in a step.",
        basis="docs/objectives/kto.md",
    ),
    Rule(
        choice="ln-dpo",
        when=lambda e: e.keep_length is True and _above(e.length_bias, LONGER),
        rests_on=("length_bias",),
        reason="The data prefer the longer side. Log-ratios per token remove length from the margin.",
        basis="docs/objectives/ln-dpo.md",
    ),
    Rule(
        choice="simpo",
        when=lambda e: e.can_hold_reference is False,
        rests_on=("can_hold_reference",),
        reason="It uses log-probabilities per token with a margin: no reference, and no gain from length.",
        basis="docs/objectives/simpo.md",
    ),
    Rule(
        choice="cpo",
        when=lambda e: e.can_hold_reference is False,
        rests_on=("can_hold_reference",),
        reason="DPO with a uniform reference; a likelihood term keeps the chosen side from falling.",
        basis="docs/objectives/cpo.md",
    ),
    Rule(
        choice="bnf",
        when=lambda e: _above(e.overlap, ALIKE),
        rests_on=("overlap",),
        reason="The two sides share most of their tokens, and a margin lowers both. Fading gradients preserve the chosen side.",
        basis="B2 of docs/lab.md",
    ),
    Rule(
        choice="dpop",
        when=lambda e: _above(e.overlap, ALIKE),
        rests_on=("overlap",),
        reason="DPO with a penalty against the fall of the chosen side, which near-identical pairs cause.",
        basis="docs/objectives/dpop.md; E8 of docs/lab.md",
    ),
    Rule(
        choice="nca",
        when=lambda e: e.can_reward is True and not _above(e.completion_tokens, LONG),
        rests_on=("can_reward",),
        reason="The reward can score the data. Rewards carry more information than the order of pairs, and have no exchanged "
        "labels.",
        basis=RACE,
    ),
    Rule(
        choice="robust-dpo",
        when=_noisy,
        rests_on=("noise", "num_pairs"),
        settings=lambda e: {"label_smoothing": round(min(e.noise or 0.0, 0.4), 2)},
        reason="Many pairs may be exchanged. A loss that is unbiased under this share does not memorize them.",
        basis="docs/objectives/robust-dpo.md",
    ),
    Rule(
        choice="wpo",
        when=lambda e: _above(e.off_policy, FAR),
        rests_on=("off_policy",),
        reason="The data differ from what the policy writes. Pairs that the policy is unlikely to write get less weight.",
        basis=f"docs/objectives/wpo.md; {PAPER}, F0",
    ),
    Rule(
        choice="dpo",
        when=_always,
        rests_on=("num_pairs", "noise"),
        reason="On fixed data a contrastive loss is better than likelihood, most of all where good answers are rare.",
        basis=f"E4, E6 of docs/lab.md; {PAPER}, F5",
    ),
    Rule(
        choice="bnf",
        when=_always,
        reason="It has nothing to tune and stays near the data: the safe choice where good answers are frequent.",
        basis="B4, B5 of docs/lab.md",
    ),
)

COLLECT = (
    Rule(
        choice="remove the held-out prompts from the training data",
        when=lambda e: (e.leakage or 0) > 0,
        rests_on=("leakage",),
        reason="Training on a held-out prompt biases the held-out metrics upwards.",
        basis="docs/data.md",
    ),
    Rule(
        choice="remove repeated rows",
        when=lambda e: _above(e.duplicates, REPEATED),
        rests_on=("duplicates",),
        reason="A repeated row has more weight than intended.",
        basis="docs/data.md",
    ),
    Rule(
        choice="a second judgment of each pair",
        when=_noisy,
        rests_on=("noise", "num_pairs"),
        reason="Many pairs may be exchanged. Pairs on which two annotators agree are worth more than twice as many unchecked pairs.",
        basis="docs/reward_models.md",
    ),
    Rule(
        choice="a reward: a rule, a judge, or a reward model of these pairs",
        when=lambda e: e.can_reward is not True,
        rests_on=("can_reward",),
        basis=f"E1, E7 of docs/lab.md; {PAPER}, T1; docs/rewards.md",
        reason="A reward makes training on own samples possible, which gains most where good answers are rare, even if the "
        "reward model is fitted to the same data.",
    ),
    Rule(
        choice="a budget of own samples",
        when=lambda e: e.can_reward is True and not own_samples(e),
        rests_on=("samples", "can_sample"),
        reason="There is a reward but no samples to score. A few collections, each reused several times, gain nearly everything.",
        basis=f"E3, X1 of docs/lab.md; {PAPER}, F4",
    ),
    Rule(
        choice="prompts on which the policy both fails and succeeds",
        when=lambda e: _above(e.zero_spread, SILENT),
        rests_on=("zero_spread",),
        basis="docs/on_policy.md, dynamic sampling",
        reason="On many prompts all own samples have the same reward and give no gradient.",
    ),
    Rule(
        choice="answers of a better author, to begin with",
        basis=f"Xg of docs/lab.md; {PAPER}, F0",
        when=lambda e: (gain := gain_of_four(e)) is not None and gain < FLAT,
        rests_on=("best_of_n", "reward_spread"),
        reason="The best of four own samples is hardly above their mean: good answers are too rare to be found by sampling.",
    ),
    Rule(
        choice="more prompts rather than more completions of each",
        when=lambda e: e.num_pairs is not None and 0 < e.num_pairs < FEW_PAIRS,
        rests_on=("num_pairs", "num_prompts"),
        basis=f"E8 of docs/lab.md; {PAPER}, F8",
        reason="With few pairs, training memorizes them and evaluation has wide intervals.",
    ),
    Rule(
        choice="pairs in which the shorter side is chosen",
        when=lambda e: _above(e.length_bias, LONGER),
        rests_on=("length_bias",),
        reason="The longer side is mostly chosen. If this is not intended, set --keep_length true and balance the data.",
        basis="docs/objectives/index.md, answers that grow too long",
    ),
)
