"""DFT, discriminative fine-tuning: demonstrations against everything else that the policy might generate."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from preftune.errors import StorageError
from preftune.objectives.base import (
    ChosenFall,
    Coupled,
    State,
    coupling_of,
    mean_tokens,
    reference,
    sum_tokens,
)
from preftune.objectives.checks import between, positive
from preftune.objectives.coupling import check_state, step_scores
from preftune.objectives.groupwise import group_metrics, group_sum, reward_softmax
from preftune.objectives.kinds import RewardObjective
from preftune.objectives.learning_rates import rates_of
from preftune.types import Coupling, Entries, Float, Int, Losses, Rewards, StepView, TokenScores


@dataclass(frozen=True, kw_only=True)
class DFT(Coupled, RewardObjective):
    """The likelihood of a prompt's demonstration among all completions, whose total is estimated from sampled
    ones.

        target     -lp(y) + tau * log E[ exp(lp(y') / tau) / pi_ref(y') ],   y' sampled from the reference
        surrogate  L = -mean_i lp(y_i) + mean_j sg( exp(d_j - u) ) * lp(y'_j),   d_j = lp(y'_j) / tau -
        lr(y'_j) u = log( (1 - gamma) * exp(u of before) + gamma * mean_j exp(d_j) ),   kept for each prompt,
        0 before the first

    sg is a stop-gradient; y_i are the completions of the highest reward of a group, y'_j its others. The
    variant dft2 has no reference, and lp / |y| in place of lp. Guo et al., "Discriminative Finetuning of
    Generative Large Language Models without Reward Models and Human Preference Data", ICML 2025, arXiv
    2502.18679. exp(d_j - u) is at most the number of a prompt's samples over gamma.

    Args:
        tau: temperature, > 0: 1.0 for dft, 0.3 for dft2 in the authors' configuration.
        gamma: share of the step at hand in the estimate u, in (0, 1]: 0.85 for dft, 0.9 for dft2 in the
            authors' configuration; at 1 nothing is remembered.
        variant: "dft" or "dft2".
    """

    name = "dft"
    learning_rates = rates_of(2e-6, "the authors")
    least_completions = 2
    correctable = False
    value_is_surrogate = True

    tau: float = positive(1.0)
    gamma: float = between(0.85, "(0, 1]")
    variant: Literal["dft", "dft2"] = "dft"

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"ref_logp", "coupling"} if self.variant == "dft" else {"coupling"})

    def initial_state(self) -> dict[str, Tensor]:
        """Digests of the prompts seen, in order, and u of each."""
        return {"prompt": torch.zeros(0, dtype=torch.int64), "u": torch.zeros(0, dtype=torch.float64)}

    @property
    def chosen_fall(self) -> ChosenFall:
        return "possible" if self.gamma == 1 else "prevented"

    @property
    def length_normalized(self) -> bool:
        return self.variant == "dft2"

    def couple(self, step: StepView, state: State) -> tuple[Coupling, dict[str, Tensor]]:
        """Of each sampled completion exp(d - u) and u; 0 for the demonstrations."""
        check_state(self.name, state, self.initial_state())
        assert isinstance(step.signal, Rewards)
        scores = step_scores(step)
        exponent = self._score(scores).double() / self.tau
        if self.variant == "dft":
            exponent = exponent - sum_tokens(reference(scores), scores.lengths).double()
        # The table of prompts is on the host; one fetch has all that is looked up, exponents by their bits.
        demonstrations = is_demonstration(step.signal).long()
        fetched = torch.stack([exponent.view(torch.int64), demonstrations, step.prompt]).cpu()
        exponent, sampled = fetched[0].view(torch.float64), fetched[1] == 0
        prompts, place = fetched[2][sampled].unique(return_inverse=True)
        estimate = _log_mean_exp(exponent[sampled], place, len(prompts))
        u_of_prompt, new = self._updated(state, prompts, estimate)
        found = {name: torch.zeros_like(exponent) for name in ("weight", "u")}
        found["u"][sampled] = u_of_prompt[place]
        found["weight"][sampled] = (exponent - found["u"])[sampled].exp()
        return Coupling(completion={name: one.to(scores.logp) for name, one in found.items()}), new

    def _updated(
        self, state: State, prompts: Int[Tensor, " _"], estimate: Float[Tensor, " _"]
    ) -> tuple[Float[Tensor, " _"], dict[str, Tensor]]:
        """(u of the prompts at hand, the state with them in it)."""
        known, before = (state[name].cpu() for name in ("prompt", "u"))
        if len(known) != len(before) or not bool((known[1:] > known[:-1]).all()):
            raise StorageError(
                "The state of dft is damaged",
                got=f"{len(known)} prompts and {len(before)} values of u",
                expected="one value for each prompt, prompts in order",
                do="Start a new run",
            )
        merged = torch.cat([known, prompts]).unique()
        u, here = before.new_zeros(len(merged)), torch.searchsorted(merged, prompts)
        u[torch.searchsorted(merged, known)] = before
        kept, taken = torch.tensor([1 - self.gamma, self.gamma], dtype=u.dtype).log()
        u[here] = torch.logaddexp(kept + u[here], taken + estimate)
        return u[here], {"prompt": merged, "u": u}

    def weights(self, lengths: Int[Tensor, " C"], signal: Rewards) -> Float[Tensor, " U"]:
        """One per group that holds a demonstration and another completion; else zero."""
        others = group_sum((~is_demonstration(signal)).to(torch.get_default_dtype()), signal)
        return (others > 0).to(others.dtype)

    def __call__(self, scores: TokenScores, signal: Rewards) -> Losses:
        score, found = self._score(scores), coupling_of(scores).completion
        demonstration = is_demonstration(signal)
        sampled = ~demonstration
        wanted = _group_mean(score, demonstration, signal)
        others = _group_mean(found["weight"] * score, sampled, signal)
        return Losses(
            per_unit=others - wanted,
            weight=self.weights(scores.lengths, signal).to(score.dtype),
            metrics=group_metrics(scores, signal, score / self.tau)
            | {f"dft/{name}": Entries(values=found[name], counted=sampled) for name in ("u", "weight")},
        )

    def _score(self, scores: TokenScores) -> Float[Tensor, " C"]:
        """lp, or lp / |y|."""
        return (sum_tokens if self.variant == "dft" else mean_tokens)(scores.logp, scores.lengths)


def is_demonstration(signal: Rewards) -> Tensor:
    """Whether a completion has the highest reward of its group; ties are demonstrations all."""
    return reward_softmax(signal, 0.0, torch.float64) > 0


def _group_mean(values: Float[Tensor, " C"], counted: Tensor, signal: Rewards) -> Float[Tensor, " G"]:
    """Mean over the counted completions of each group; 0 where none is."""
    counted = counted.to(values.dtype)
    return group_sum(counted * values, signal) / group_sum(counted, signal).clamp(min=1)


def _log_mean_exp(values: Float[Tensor, " C"], index: Int[Tensor, " C"], count: int) -> Float[Tensor, " _"]:
    """log mean exp over the values of each index, without overflow."""
    top = values.new_full((count,), -torch.inf).scatter_reduce(0, index, values, "amax")
    total = values.new_zeros(count).index_add(0, index, (values - top[index]).exp())
    return top + (total / torch.bincount(index, minlength=count)).log()
