"""The rules of advice: tables, read from the top; the first that holds is the first recommendation.

Thresholds are named, with their reasons. What was tuned in the laboratory, on which seeds, and what the
advice costs against the best choice stands in docs/advice.md.
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
LONGER = 0.6  # of pairs with the longer side chosen; in half of them length says nothing
SILENT = 0.5  # of prompts whose own rewards are all equal: half of the sampling teaches nothing
REPEATED = 0.1  # of rows: a repeated row has more weight than its author meant
FEW_PAIRS = 200  # a share of so many has an interval of 7 points to both sides; with fewer an upper estimate says little
FLAT = 0.5  # spreads between the best of 4 and the mean: 1.03 for normal rewards
GOOD_DATA = 0.97  # P(an own sample is worse than the data's best): own samples reach it once in 33 draws

PAPER = "Tajwar et al. 2024"
RACE = "docs/advice.md, the race"


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
    """Whether own samples can be drawn, judged and paid."""
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
        reason="The data hold better answers than own samples reach: fixed data suffice, and cost no samples.",
        basis=f"Xg, E6 of docs/lab.md; {PAPER}, F0; {RACE}",
    ),
    Rule(
        choice="mixed",
        when=lambda e: own_samples(e) and _above(e.best_of_data, GOOD_DATA),
        rests_on=("best_of_data", "samples"),
        reason="First the data, then own samples, which from there on may go beyond them.",
        basis=f"{PAPER}, F0; not raced",
    ),
    Rule(
        choice="on-policy",
        when=own_samples,
        rests_on=("samples", "steps", "best_of_data", "reward_spread"),
        settings=_fresh_per_step,
        reason="Own samples show what the policy gets wrong now and reach answers that no data hold; they decide where good "
        "answers are rare, and cost little where they are frequent. Where a step wants more of them than the budget has, each "
        "collection is gone through several times.",
        basis=f"E1, E2, E3, E7 of docs/lab.md; {PAPER}, F0, F1, F4, F9",
    ),
    Rule(
        choice="offline",
        when=_always,
        rests_on=("can_sample", "can_reward", "samples"),
        reason="The data as they are: what remains where own samples cannot be drawn, judged or paid; it suffices where the data "
        "lean to the good answers or the policy already gives them.",
        basis=f"E2, E6 of docs/lab.md; {PAPER}, F0",
    ),
)

ON_POLICY = (
    Rule(
        choice="nca",
        when=lambda e: not _above(e.completion_tokens, LONG) and _few_together(e),
        rests_on=("num_prompts", "completions_per_prompt"),
        basis=RACE,
        reason="So few samples in a collection are often all bad, and a baseline among them then says nothing; judged one by one "
        "they still move the policy away from what it has tried.",
    ),
    Rule(
        choice="rloo",
        when=lambda e: _above(e.completion_tokens, LONG) and _single_round(e),
        rests_on=("samples", "num_prompts"),
        reason="One collection has to serve all steps; the KL penalty holds the policy near what the collection can tell.",
        basis=f"{PAPER}, F4; {RACE}",
    ),
    Rule(
        choice="dpo",
        when=lambda e: _above(e.completion_tokens, LONG),
        rests_on=("completion_tokens", "samples"),
        reason="A contrastive loss on own samples gains as much as a policy gradient with many of them and more with few, and the "
        "scale of the reward does not enter.",
        basis=f"E10 of docs/lab.md; {PAPER}, F9; {RACE}",
    ),
    Rule(
        choice="rloo",
        when=_always,
        rests_on=("reward_spread",),
        reason="An exact baseline from the other samples of the prompt, and a KL penalty that keeps the policy exploring.",
        basis=f"docs/objectives/rloo.md; {RACE}",
    ),
    Rule(
        choice="reinforce",
        when=_always,
        reason="The same without a reference: the learning rate alone keeps the policy near its start.",
        basis="docs/objectives/reinforce.md",
    ),
)

OFFLINE = (
    Rule(
        choice="bnf",
        when=lambda e: e.num_pairs == 0 and e.can_reward is not True,
        rests_on=("num_pairs",),
        reason="Single labeled completions are what it is made for: nothing to pair and nothing to tune.",
        basis="B1 of docs/lab.md; docs/objectives/bnf.md",
    ),
    Rule(
        choice="kto",
        when=lambda e: e.num_pairs == 0 and e.can_reward is not True,
        rests_on=("num_pairs",),
        reason="Learns from single labels too, with a threshold that follows the policy; it needs two prompts in a step.",
        basis="docs/objectives/kto.md",
    ),
    Rule(
        choice="ln-dpo",
        when=lambda e: e.keep_length is True and _above(e.length_bias, LONGER),
        rests_on=("length_bias",),
        reason="The data prefer the longer side; log-ratios per token leave length out of the margin.",
        basis="docs/objectives/ln-dpo.md",
    ),
    Rule(
        choice="simpo",
        when=lambda e: e.can_hold_reference is False,
        rests_on=("can_hold_reference",),
        reason="Log-probabilities per token with a margin: no reference, and no gain from length.",
        basis="docs/objectives/simpo.md",
    ),
    Rule(
        choice="cpo",
        when=lambda e: e.can_hold_reference is False,
        rests_on=("can_hold_reference",),
        reason="DPO with a uniform reference, and likelihood of the chosen side to hold it up.",
        basis="docs/objectives/cpo.md",
    ),
    Rule(
        choice="bnf",
        when=lambda e: _above(e.overlap, ALIKE),
        rests_on=("overlap",),
        reason="The two sides share most of their tokens, and a margin takes from both; feedback that fades keeps the chosen side.",
        basis="B2 of docs/lab.md",
    ),
    Rule(
        choice="dpop",
        when=lambda e: _above(e.overlap, ALIKE),
        rests_on=("overlap",),
        reason="DPO with a wall against the fall of the chosen side, which near-identical pairs cause.",
        basis="docs/objectives/dpop.md; E8 of docs/lab.md",
    ),
    Rule(
        choice="nca",
        when=lambda e: e.can_reward is True and not _above(e.completion_tokens, LONG),
        rests_on=("can_reward",),
        reason="The data can be judged by the reward itself, whose sizes say more than the order of pairs, and which nobody "
        "exchanges.",
        basis=RACE,
    ),
    Rule(
        choice="robust-dpo",
        when=_noisy,
        rests_on=("noise", "num_pairs"),
        settings=lambda e: {"label_smoothing": round(min(e.noise or 0.0, 0.4), 2)},
        reason="Many pairs are exchanged; a loss that is unbiased under that share does not learn them by heart.",
        basis="docs/objectives/robust-dpo.md",
    ),
    Rule(
        choice="wpo",
        when=lambda e: _above(e.off_policy, FAR),
        rests_on=("off_policy",),
        reason="The data are unlike what the policy writes: pairs that it would not write itself count less.",
        basis=f"docs/objectives/wpo.md; {PAPER}, F0",
    ),
    Rule(
        choice="dpo",
        when=_always,
        rests_on=("num_pairs", "noise"),
        reason="A contrastive loss is ahead of likelihood on fixed data, the more so the rarer the good answers are.",
        basis=f"E4, E6 of docs/lab.md; {PAPER}, F5",
    ),
    Rule(
        choice="bnf",
        when=_always,
        reason="Nothing to tune, and it stays near what the data hold: the safe choice where good answers are frequent.",
        basis="B4, B5 of docs/lab.md",
    ),
)

COLLECT = (
    Rule(
        choice="take the held-out prompts out of the training data",
        when=lambda e: (e.leakage or 0) > 0,
        rests_on=("leakage",),
        reason="A prompt that is trained on makes the held-out figure too good.",
        basis="docs/data.md",
    ),
    Rule(
        choice="remove repeated rows",
        when=lambda e: _above(e.duplicates, REPEATED),
        rests_on=("duplicates",),
        reason="A repeated row has more weight than its author meant.",
        basis="docs/data.md",
    ),
    Rule(
        choice="a second judgment of each pair",
        when=_noisy,
        rests_on=("noise", "num_pairs"),
        reason="Many pairs may be exchanged; pairs on which two judges agree teach more than twice as many that nobody checked.",
        basis="docs/reward_models.md",
    ),
    Rule(
        choice="a reward: a rule, a judge, or a reward model of these pairs",
        when=lambda e: e.can_reward is not True,
        rests_on=("can_reward",),
        basis=f"E1, E7 of docs/lab.md; {PAPER}, T1; docs/rewards.md",
        reason="With one, own samples can be learned from, which gains most where good answers are rare, though it is fitted to "
        "the same data.",
    ),
    Rule(
        choice="a budget of own samples",
        when=lambda e: e.can_reward is True and not own_samples(e),
        rests_on=("samples", "can_sample"),
        reason="There is a reward and nothing to judge by it; a few collections, each gone through several times, gain nearly all.",
        basis=f"E3, X1 of docs/lab.md; {PAPER}, F4",
    ),
    Rule(
        choice="prompts on which the policy both fails and succeeds",
        when=lambda e: _above(e.zero_spread, SILENT),
        rests_on=("zero_spread",),
        basis="docs/on_policy.md, dynamic sampling",
        reason="On most prompts all own samples have the same reward, and teach nothing.",
    ),
    Rule(
        choice="answers of a better author, to begin with",
        basis=f"Xg of docs/lab.md; {PAPER}, F0",
        when=lambda e: (gain := gain_of_four(e)) is not None and gain < FLAT,
        rests_on=("best_of_n", "reward_spread"),
        reason="Even the best of four own samples is hardly above their mean: good answers are too rare to be found by sampling.",
    ),
    Rule(
        choice="more prompts rather than more completions of each",
        when=lambda e: e.num_pairs is not None and 0 < e.num_pairs < FEW_PAIRS,
        rests_on=("num_pairs", "num_prompts"),
        basis=f"E8 of docs/lab.md; {PAPER}, F8",
        reason="There are few pairs; what is learned on them is learned by heart, and nothing measured on them is sharp.",
    ),
    Rule(
        choice="pairs in which the shorter side is the better one",
        when=lambda e: _above(e.length_bias, LONGER),
        rests_on=("length_bias",),
        reason="The longer side is mostly chosen. If that is not what is wanted, say --keep_length true, and balance the data.",
        basis="docs/objectives/index.md, answers that grow too long",
    ),
)
