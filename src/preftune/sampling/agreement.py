"""Agreement of the trainer's and the sampler's log-probabilities of the same completions."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preftune.errors import DivergenceError, TrainingError
from preftune.model.layout import LayoutOptions, split_micro_batches
from preftune.model.policy import Policy, score_groups
from preftune.sampling.sampled import Sampled, sampled_group

_ROUNDING = 0.2  # nats per token that low precision explains; sampling with other weights differs by more


@dataclass(frozen=True, kw_only=True)
class Agreement:
    """|logp of the trainer - logp of the sampler| over tokens, in nats."""

    mean: float
    max: float
    num_tokens: int


def compare_logps(one: Sequence[np.ndarray], two: Sequence[np.ndarray]) -> Agreement:
    """Compare two scorings of the same completions, token by token."""
    off = np.abs(np.concatenate([np.asarray(a, np.float64) - b for a, b in zip(one, two, strict=True)]))
    return Agreement(mean=float(off.mean()), max=float(off.max()), num_tokens=len(off))


def agreement(
    policy: Policy,
    prompts: Sequence[np.ndarray],
    drawn: Sequence[Sequence[Sampled]],
    layout: LayoutOptions | None = None,
) -> Agreement:
    """How far the policy's own logp of drawn completions is from what the sampler said (`Sampled.logp`).

    Right after a synchronisation both are the same model, and what is left is rounding: about 1e-6 in fp32,
    1e-2 in bf16. An error if a completion came without log-probabilities, as from a server that does not tell
    them.
    """
    layout = layout or LayoutOptions()
    groups, told = [], []
    for number, (prompt, ones) in enumerate(zip(prompts, drawn, strict=True)):
        for one in ones:
            if one.logp is None:
                raise TrainingError(
                    f"A completion of prompt {number} has no log-probabilities to compare",
                    got="none from the sampler",
                    expected="a sampler that reports those of the unmodified model",
                    do="Draw in this process, or from such a server",
                )
        groups.append(sampled_group(prompt, ones))
        told.append([one.logp for one in ones])
    scored: list[np.ndarray] = []
    order: list[np.ndarray] = []
    for indices in split_micro_batches(groups, layout, policy.sharing):
        for index, logps in zip(
            indices, score_groups(policy, [groups[i] for i in indices], layout), strict=True
        ):
            scored += logps
            order += told[index]
    return compare_logps(scored, order)


def check_agreement(found: Agreement, limit: float) -> None:
    """An error if the mean deviation is above `limit` (nats) or no number, which shows that the model has
    diverged.
    """
    if not found.mean <= limit:
        raise (TrainingError if math.isfinite(found.mean) else DivergenceError)(
            "The trainer and the sampler disagree on what the model is",
            got=f"log-probabilities that differ by {found.mean:.2g} nats per token on average, {found.max:.2g} at most",
            expected=f"at most {limit:g} on average",
            do=_cause(found.mean, limit),
        )


def _cause(gap: float, limit: float) -> str:
    """What most likely makes a gap of this size, and what to do."""
    if not math.isfinite(gap):
        return "Lower --learning_rate, or look at the steps before"
    if limit < gap <= _ROUNDING:
        return (
            "A sampler that computes in bf16 or fp8 differs by that much: start the server with --dtype float32, "
            f"or set --precision bf16, or accept the gap with --collect.sampler_gap {_rounded_up(gap):g}"
        )
    return "The sampler has other weights: give it the trainer's model, in the same precision"


def _rounded_up(gap: float) -> float:
    """Twice the gap, to one digit: draws differ."""
    unit = 10.0 ** math.floor(math.log10(2 * gap))
    return math.ceil(2 * gap / unit) * unit
