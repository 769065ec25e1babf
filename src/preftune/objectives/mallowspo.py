"""MallowsPO: DPO in which a prompt counts more, the surer the reference is of its answers."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from preftune.objectives.base import Coupled, State, coupling_of, log_ratio, mean_tokens
from preftune.objectives.checks import positive
from preftune.objectives.kinds import PairObjective
from preftune.objectives.learning_rates import rates_of
from preftune.objectives.links import logistic
from preftune.objectives.pairwise import pair_losses, pair_margin, pair_sides
from preftune.types import Coupling, Float, Losses, Pairs, StepView, TokenScores

# Entropies below a millionth of log V are rounding in fp32; the dispersion stops growing there, at 13.8.
_LEAST_SHARE = 1e-6
_LEAST_MEAN = 1e-6


@dataclass(frozen=True, kw_only=True)
class MallowsPO(Coupled, PairObjective):
    """DPO with a beta of each pair: large where the reference is sure of the answer, small where many would
    do.

        L = -log sigma( phi * beta * (h(chosen) - h(rejected)) )
        phi = -scale * log( (H(chosen) + H(rejected)) / (2 log V) )

    with h the log-ratio to the reference, summed over tokens, H(y) the mean over y's positions of the entropy
    of the reference's next token, and V the size of the vocabulary. Chen et al., "MallowsPO: Fine-Tune Your
    LLM with Preference Dispersions", ICLR 2025, arXiv 2405.14953, the theta form; checked against the
    authors' code. `scale` is their phi*, which brings the mean of phi to 1; with equal entropies everywhere
    and a mean of 1 it is DPO.

    Args:
        beta: strength of the pull to the reference, > 0; DPO's default.
        scale: phi*, > 0; by default it is one over the mean of -log(...) over the pairs of each step. The
            authors' is 0.29, for a Llama 3 with instruction tuning and their data.
    """

    name = "mallowspo"
    learning_rates = rates_of(1e-6, "the authors' later code (RainbowPO, runs of mallows_dpo)")
    chosen_fall = "possible"

    beta: float = positive(0.1)
    scale: float | None = positive(None)

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"ref_logp", "ref_entropy_share"} | ({"coupling"} if self.scale is None else set()))

    @property
    def couples(self) -> frozenset[str]:
        return frozenset({"scores"} if self.scale is None else ())

    def couple(self, step: StepView, state: State) -> tuple[Coupling, dict[str, Tensor]]:
        """The scale that makes the mean of phi over the step's pairs 1."""
        assert step.scores is not None
        assert isinstance(step.signal, Pairs)
        mean = _certainty(step.scores, step.signal).mean()
        return Coupling(whole={"scale": 1 / mean.clamp(min=_LEAST_MEAN)}), {}

    def __call__(self, scores: TokenScores, signal: Pairs) -> Losses:
        scale = coupling_of(scores).whole["scale"] if self.scale is None else self.scale
        dispersion = scale * _certainty(scores, signal)
        rewards = self.beta * log_ratio(scores)
        losses = pair_losses(logistic(dispersion * pair_margin(rewards, signal)), scores, signal, rewards)
        return replace(losses, metrics={**losses.metrics, "dispersion": dispersion})


@torch.no_grad()
def _certainty(scores: TokenScores, signal: Pairs) -> Float[Tensor, " P"]:
    """-log of the entropy as a share of log V, the mean of the two completions: each weighs half, whatever
    its length.
    """
    assert scores.ref_entropy_share is not None
    chosen, rejected = pair_sides(mean_tokens(scores.ref_entropy_share, scores.lengths), signal)
    return -((chosen + rejected) / 2).clamp(_LEAST_SHARE, 1.0).log()
