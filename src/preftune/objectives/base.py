"""What an objective is, and the few sums that all of them share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.utils.weak import WeakTensorKeyDictionary

from preftune.objectives.checks import check_fields
from preftune.objectives.learning_rates import LearningRates, our_rate
from preftune.types import (
    Coupling,
    Entries,
    Float,
    Int,
    Labels,
    Losses,
    Metric,
    Pairs,
    Signal,
    StepView,
    TokenScores,
)

ChosenFall = Literal["prevented", "possible", "intended"]
Opponent = Literal["none", "reference", "mixture", "two-sided"]


class Objective(ABC):
    """The loss of a method: a frozen dataclass whose fields are its hyperparameters, and which is callable.

    It is pure: it sees numbers per completion token and a signal, never a model, a batch layout or a
    reduction. The attributes below are facts about the loss that other parts of the package rely on; the
    contract suite measures each of them. A subclass sets an attribute, or defines a property of the same name
    where the fact depends on a hyperparameter.

    Attributes:
        name: what the objective is called in messages and in the table.
        needs: the fields of TokenScores that the loss reads in addition to `logp` and `lengths`.
        signal: what the loss learns from: Pairs, Labels, Rewards or Hybrid.
        trains: "policy" if the loss has a gradient with respect to log-probabilities, or "reward model".
        imitates: whether the loss is the likelihood of preferred completions under the model as it is, at
            temperature 1. Every other loss sees an on-policy run's policy, reference and behavior policy at
            the temperature of sampling, since its ratios and expectations are of the distribution that
            samples.
        length_normalized: whether the loss stays the same when a completion gets twice as many tokens of the
            same mean log-probability.
        chosen_fall: what happens if the chosen (preferred, best rewarded) completion and the others lose
            log-probability together. "prevented": the loss opposes it; "possible": the loss does not;
            "intended": the loss itself pushes the chosen completion down.
        opponents: settings of `collect.opponent` that fit the loss: whose completions may be paired with the
            policy's own in a group. Empty if sampling alone cannot make the signal.
        unjudged_samples: whether the loss reads completions of the policy that are in no pair and that nobody
            judged.
        least_completions: of objectives on rewards, how many completions of a prompt the loss needs to learn
            anything from their rewards: 2 where they are compared with each other.
        learning_rates: the default learning rate for all weights, the range that the sources use, and the
            sources.
        correctable: whether the loss is on rewards and each unit has a gradient at one completion alone, so that
            importance weights on gradients turn another sampler's completions into the policy's own.
        values_are_returns: of objectives with a critic: whether it predicts returns as they are, so that it may
            start as a reward model.
        uses_steps: of objectives on rewards, whether the loss credits tokens with the rewards of their steps.
        wants_steps: whether it has no meaning without them.
        value_heads: of objectives that read `value` or `value_after`: how many scalar heads these come from.
        value_is_surrogate: whether parts of the loss that depend on the policy are held fixed in the
            gradient, so that the value is not what the gradient lowers.
    """

    name: ClassVar[str]
    needs: frozenset[str] = frozenset()
    signal: type[Signal]
    trains: Literal["policy", "reward model"] = "policy"
    imitates: ClassVar[bool] = False
    length_normalized: bool = False
    chosen_fall: ChosenFall = "prevented"
    opponents: tuple[Opponent, ...] = ("none",)
    unjudged_samples: bool = False
    least_completions: int = 1
    learning_rates: ClassVar[LearningRates] = our_rate(1e-6, "the default of dpo")
    correctable: bool = False
    values_are_returns: bool = False
    value_is_surrogate: bool = False
    uses_steps: bool = False
    wants_steps: bool = False
    value_heads: int = 1

    def __init_subclass__(cls) -> None:
        """A class that sets no name uses its Python name."""
        super().__init_subclass__()
        if "name" not in vars(cls):
            cls.name = cls.__name__

    def __post_init__(self) -> None:
        """Refuse hyperparameters that are out of range."""
        check_fields(self, self.name)

    @abstractmethod
    def weights(self, lengths: Int[Tensor, " C"], signal: Any) -> Float[Tensor, " U"]:
        """The weight of each unit, known before any score: a step's total weight is known before its first
        backward pass.
        """

    @abstractmethod
    def __call__(self, scores: TokenScores, signal: Any) -> Losses:
        """The loss of each unit, its weight, and metrics."""

    def losses(
        self,
        per_unit: Float[Tensor, " U"],
        scores: TokenScores,
        signal: Signal,
        metrics: Mapping[str, Tensor],
    ) -> Losses:
        """The losses with the weights of the units."""
        weight = self.weights(scores.lengths, signal).to(per_unit.dtype)
        return Losses(per_unit=per_unit, weight=weight, metrics=metrics)


State = Mapping[str, Tensor]
"""What an estimator remembers from step to step: named tensors, saved in checkpoints."""


class Coupled(Objective):
    """An objective whose units depend on the rest of their step, or on earlier steps; `coupling` is among its
    needs.

    Before the first gradient of a step, `couple` sees the whole step and returns what each unit needs to know
    of the others, and the new state. It is pure: the state comes in and goes out. A held-out evaluation is
    treated as if it were the next step, and its state is thrown away.

    Attributes:
        couples: what must be scored for `couple`: "scores", all completions of the step; "mismatched", each
            completion under the prompt of the next group; or nothing.
    """

    couples: frozenset[str] = frozenset({"scores"})

    def initial_state(self) -> dict[str, Tensor]:
        """Nothing, if the coupling is of the step alone."""
        return {}

    @abstractmethod
    def couple(self, step: StepView, state: State) -> tuple[Coupling, dict[str, Tensor]]: ...


def couples_mismatched(objective: Objective) -> bool:
    """Whether the objective compares completions with those of other prompts of the step."""
    return isinstance(objective, Coupled) and "mismatched" in objective.couples


def smallest_step(objective: Objective) -> int:
    """Groups that a step needs at least: two where completions are compared with those of other prompts."""
    return 2 if couples_mismatched(objective) else 1


PICKED_ON = {"cpu"}
"""Kinds of devices on which entries that count are picked out of the others. On the others, where their number
would have to be waited for, those that do not count are set to 0.
"""


def reduce_losses(losses: Losses, global_weight: float) -> Float[Tensor, ""]:
    """sum_u per_unit_u * weight_u / global_weight, the weight being that of the whole step and not of this
    piece.

    A unit of weight zero plays no part, even if its loss is not finite.
    """
    counted = losses.weight != 0
    if counted.device.type in PICKED_ON:
        return (losses.per_unit[counted] * losses.weight[counted]).sum() / global_weight
    return (losses.per_unit * losses.weight).where(counted, 0.0).sum() / global_weight


def sum_tokens(values: Float[Tensor, " N"], lengths: Int[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Sum of a token quantity over each completion."""
    return torch.segment_reduce(values, "sum", lengths=lengths, unsafe=True)


def mean_tokens(values: Float[Tensor, " N"], lengths: Int[Tensor, " C"]) -> Float[Tensor, " C"]:
    """Mean of a token quantity over each completion; completions are never empty."""
    return sum_tokens(values, lengths) / lengths


_TOKENS = WeakTensorKeyDictionary()


def num_tokens(lengths: Int[Tensor, " C"]) -> int:
    """sum of the lengths, fetched from the device once for a tensor, or never after `note_tokens`."""
    if lengths not in _TOKENS:
        _TOKENS[lengths] = int(lengths.sum())
    return _TOKENS[lengths]


def note_tokens(lengths: Int[Tensor, " C"], total: int) -> Int[Tensor, " C"]:
    """The lengths, whose sum `num_tokens` knows from now on."""
    _TOKENS[lengths] = total
    return lengths


def join_lengths(parts: Sequence[Int[Tensor, " _"]]) -> Int[Tensor, " C"]:
    """The lengths of several pieces; their sum is known if those of all pieces are."""
    return note_tokens(torch.cat([*parts]), sum(map(num_tokens, parts)))


def per_token(
    values: Float[Tensor, " C"] | Int[Tensor, " C"], lengths: Int[Tensor, " C"]
) -> Float[Tensor, " N"] | Int[Tensor, " N"]:
    """A completion's value, at each of its tokens."""
    return torch.repeat_interleave(values, lengths, output_size=num_tokens(lengths))


def reference(scores: TokenScores) -> Float[Tensor, " N"]:
    """The reference's logp, detached. Asking for it without declaring it in `needs` is a bug of the
    objective.
    """
    assert scores.ref_logp is not None, "the objective does not declare ref_logp in its needs"
    return scores.ref_logp.detach()


def behaviour(scores: TokenScores) -> Float[Tensor, " N"]:
    """The logp under the policy that sampled the completion, detached."""
    assert scores.behaviour_logp is not None, "the objective does not declare behaviour_logp in its needs"
    return scores.behaviour_logp.detach()


def coupling_of(scores: TokenScores) -> Coupling:
    """What couples the units of the micro-batch to their step."""
    assert scores.coupling is not None, "the objective does not declare coupling in its needs"
    return scores.coupling


def log_ratio(scores: TokenScores) -> Float[Tensor, " C"]:
    """h(y) = sum_t logp_t - ref_logp_t, in nats."""
    return sum_tokens(scores.logp - reference(scores), scores.lengths)


def behaviour_ratio(scores: TokenScores) -> Float[Tensor, " C"]:
    """sum_t logp_t - behaviour_logp_t, in nats: how far the policy has moved from the one that sampled the
    completion.
    """
    return sum_tokens(scores.logp - behaviour(scores), scores.lengths)


def mean_log_ratio(scores: TokenScores) -> Float[Tensor, " C"]:
    """The log-ratio per token: h(y) / |y|."""
    return log_ratio(scores) / scores.lengths


def label_metrics(scores: TokenScores, signal: Labels) -> dict[str, Entries]:
    """`logps/*`, and with a reference `log_ratios/*`, over the preferred (chosen) and the dispreferred
    (rejected).
    """
    with torch.no_grad():
        quantities = {"logps": sum_tokens(scores.logp, scores.lengths)}
        if scores.ref_logp is not None:
            quantities["log_ratios"] = log_ratio(scores)
        return {
            f"{name}/{side}": Entries(values=value.detach(), counted=signal.label == label)
            for name, value in quantities.items()
            for side, label in (("chosen", 1), ("rejected", -1))
        }


def plain_metric(values: Metric) -> Float[Tensor, " _"]:
    """The entries that are averaged."""
    return values.taken() if isinstance(values, Entries) else values


def pair_metrics(scores: TokenScores, signal: Pairs, beta: float) -> dict[str, Tensor]:
    """`logps/*`, `log_ratios/*` and the implicit rewards beta * log-ratio: `rewards/*`, one entry per pair."""
    return score_metrics(scores, signal, beta * log_ratio(scores))


def score_metrics(scores: TokenScores, signal: Pairs, rewards: Float[Tensor, " C"]) -> dict[str, Tensor]:
    """`logps/*`, with a reference `log_ratios/*`, and as `rewards/*` the number that a method scores
    completions with.

    One entry per pair.
    """
    with torch.no_grad():
        quantities = {"logps": sum_tokens(scores.logp, scores.lengths)}
        if scores.ref_logp is not None:
            quantities["log_ratios"] = log_ratio(scores)
        sides = {
            f"{name}/{side}": value[index]
            for name, value in quantities.items()
            for side, index in (("chosen", signal.chosen), ("rejected", signal.rejected))
        }
        return {**sides, **reward_metrics(signal, rewards)}


def reward_metrics(signal: Pairs, rewards: Float[Tensor, " C"]) -> dict[str, Tensor]:
    """The `rewards/*` of `score_metrics` alone."""
    rewards = rewards.detach()
    chosen, rejected = rewards[signal.chosen], rewards[signal.rejected]
    margin = chosen - rejected
    return {
        "rewards/chosen": chosen,
        "rewards/rejected": rejected,
        "rewards/margins": margin,
        "rewards/accuracies": (margin.sign() + 1) / 2,  # a tie counts one half
    }
