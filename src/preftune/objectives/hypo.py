"""HyPO: offline preferences, with the KL divergence to the reference held down on the policy's own samples."""

from dataclasses import dataclass

import torch
from torch import Tensor

from preftune.objectives.base import Coupled, Objective, State, coupling_of, log_ratio, score_metrics
from preftune.objectives.checks import not_negative, positive
from preftune.objectives.learning_rates import our_rate
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_margin, pairs_of
from preftune.types import Bool, Coupling, Entries, Float, Hybrid, Int, Losses, StepView, TokenScores

POLICY = 1  # of Hybrid.source


def chosen_count(signal: Hybrid) -> Float[Tensor, " C"]:
    """In how many pairs each completion is the chosen one."""
    count = torch.zeros(len(signal.source), dtype=torch.get_default_dtype(), device=signal.source.device)
    return count.index_add(0, signal.chosen, torch.ones_like(count[signal.chosen]))


def policy_samples(signal: Hybrid) -> Bool[Tensor, " C"]:
    """Which completions the policy wrote and no pair holds."""
    in_pair = torch.zeros_like(signal.source, dtype=torch.bool)
    in_pair[signal.chosen] = True
    in_pair[signal.rejected] = True
    return (signal.source == POLICY) & ~in_pair


@dataclass(frozen=True, kw_only=True)
class HyPO(Coupled, Objective):
    """DPO on offline pairs, plus the reverse KL divergence where the policy now is, which offline pairs do
    not cover.

        L = mean over pairs of -log sigma(beta * D)  +  kl_weight * mean over samples of h(y) (h(y) - b(y)) / 2

    Song et al., "The Importance of Online Data: Understanding Preference Fine-tuning via Coverage", NeurIPS
    2024, arXiv
    2406.01462: formula not verified against the paper, whose abstract was read. Samples are
    completions that the policy wrote and that are in no pair; b(y) is the mean of h over the other samples of the
    prompt, 0 without any. The second term has the gradient (h(y) - b(y)) grad log pi(y), whose mean over the policy's
    samples is the gradient of KL(pi || ref), with the leave-one-out baseline that the authors take.

    Args:
        beta: strength of DPO's pull to the reference, > 0.
        kl_weight: weight of the KL divergence, >= 0 (the default is ours); at 0 it is DPO.
    """

    name = "hypo"
    learning_rates = our_rate(1e-6, "the default of dpo, because no source with a rate for it could be read")
    needs = frozenset({"ref_logp", "coupling"})
    signal = Hybrid
    couples = frozenset()
    chosen_fall = "possible"
    opponents = ()
    unjudged_samples = True

    beta: float = positive(0.1)
    kl_weight: float = not_negative(1e-4)

    def couple(self, step: StepView, state: State) -> tuple[Coupling, dict[str, Tensor]]:
        """What turns one mean over pairs and samples of the step into the sum of two means."""
        assert isinstance(step.signal, Hybrid)
        pairs, samples = len(step.signal.chosen), policy_samples(step.signal).sum()
        units = (pairs + samples).double()
        return Coupling(whole={"pair": units / max(pairs, 1), "sample": units / samples.clamp(min=1)}), {}

    def weights(self, lengths: Int[Tensor, " C"], signal: Hybrid) -> Float[Tensor, " U"]:
        """Per completion: of how many pairs it is the chosen one, or one for a sample."""
        return chosen_count(signal) + policy_samples(signal)

    def __call__(self, scores: TokenScores, signal: Hybrid) -> Losses:
        pairs, scale, ratio = pairs_of(signal), coupling_of(scores).whole, log_ratio(scores)
        rewards = self.beta * ratio
        is_sample = policy_samples(signal)
        # A pair's loss is stored with its chosen completion, so that the units of a group lie together.
        preference = torch.zeros_like(ratio).index_add(0, pairs.chosen, logistic(pair_margin(rewards, pairs)))
        preference = preference / chosen_count(signal).clamp(min=1).to(ratio.dtype)
        penalty = torch.where(is_sample, 0.5 * ratio * (ratio - _others_mean(ratio, is_sample, signal)), 0.0)
        return Losses(
            per_unit=scale["pair"] * preference + self.kl_weight * scale["sample"] * penalty,
            weight=self.weights(scores.lengths, signal).to(ratio.dtype),
            metrics=score_metrics(scores, pairs, rewards)
            | {"hypo/kl": Entries(values=ratio.detach(), counted=is_sample)},
        )


def _others_mean(
    ratio: Float[Tensor, " C"], is_sample: Bool[Tensor, " C"], signal: Hybrid
) -> Float[Tensor, " C"]:
    """Mean of the other samples of the same prompt; 0 where there is none. It has a gradient: summed over the
    samples of a prompt, that of h (h - b) / 2 is h - b for each.
    """
    together = (signal.group[:, None] == signal.group).to(ratio.dtype) * is_sample
    total, count = together @ ratio, together.sum(1)
    return (total - ratio) / (count - 1).clamp(min=1) * (count > 1)
