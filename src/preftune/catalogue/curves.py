"""How hard an objective pushes a token up or down, as a function of the token's probability: from autograd,
for any objective of the table.

Each probability has its own step: one group, in which one token of one completion has
probability p and every other token has the reference's probability under the policy, too. At each position
the vocabulary has five
tokens: the target, and the others equally likely. All scores follow from the target's logits, so that the
derivative with respect to the logit of the token that moves is exact, whatever scores the objective reads.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from preftune.errors import ConfigError, PreftuneError
from preftune.objectives import OBJECTIVES, Coupled, Objective, reduce_losses
from preftune.types import Coupling, Hybrid, Labels, Pairs, Rewards, Signal, StepView, TokenScores

Quantity = Literal["logit", "logp"]

VOCABULARY = 5  # tokens at each position, so that entropy and divergences are not those of a coin
NUM_TOKENS = 8  # of every completion: all of one length, and long enough that a mean over tokens is not a sum
PLACE = 3  # of the token that moves: neither the first nor the last
VALUE = 0.5  # of a critic, everywhere: half-way between the two rewards, 0 and 1
NUM_POINTS = 101
# What an objective may read of the policy, in addition to logp, that moves with the logit.
OTHER_POLICY_SCORES = frozenset({"entropy", "target_logit", "log_normalizer", "kl_from_ref", "kl_to_ref"})


@dataclass(frozen=True, slots=True, kw_only=True)
class DerivativeCurves:
    """-d loss / d quantity of the token, at each probability: above 0, training pushes the token up."""

    preferred: tuple[float, ...]
    dispreferred: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class CurveSet:
    """`not_drawn` gives the reason for the objectives without curves."""

    quantity: Quantity
    ref_prob: float
    probabilities: tuple[float, ...]
    curves: Mapping[str, DerivativeCurves]
    not_drawn: Mapping[str, str]


def derivative_curves(
    names: Sequence[str], quantity: Quantity = "logit", ref_prob: float = 0.3, num_points: int = NUM_POINTS
) -> CurveSet:
    """The curves of some objectives with their default hyperparameters, for probabilities 0.001 to 0.999."""
    probabilities = sorted({*np.linspace(0.001, 0.999, num_points).tolist(), ref_prob})
    found = {name: _curves_of(OBJECTIVES[name](), quantity, ref_prob, probabilities) for name in names}
    return CurveSet(
        quantity=quantity,
        ref_prob=ref_prob,
        probabilities=tuple(probabilities),
        curves={name: one for name, one in found.items() if isinstance(one, DerivativeCurves)},
        not_drawn={name: one for name, one in found.items() if isinstance(one, str)},
    )


def _curves_of(
    objective: Objective, quantity: Quantity, ref_prob: float, probabilities: Sequence[float]
) -> DerivativeCurves | str:
    """The curves, or why there are none."""
    unknown = objective.needs - set(_every_score(torch.zeros(1), torch.zeros(1))) - {"coupling"}
    if unknown:
        return f"it reads {', '.join(sorted(unknown))}, which a token's probability does not determine"
    others = objective.needs & OTHER_POLICY_SCORES
    if quantity == "logp" and others:
        return (
            f"it reads {', '.join(sorted(others))} beside the log-probability; --quantity logit has a curve"
        )
    try:
        preferred, dispreferred = (
            tuple(push(objective, side, p, ref_prob, quantity) for p in probabilities) for side in (0, 1)
        )
    except PreftuneError as error:
        return str(error).rstrip(".")
    for p, *values in zip(probabilities, preferred, dispreferred, strict=True):
        if not all(map(math.isfinite, values)):
            return f"its derivative is not finite at probability {p:.3g}"
    return DerivativeCurves(preferred=preferred, dispreferred=dispreferred)


def push(
    objective: Objective, side: int, probability: float, ref_prob: float, quantity: Quantity = "logit"
) -> float:
    """-d loss / d quantity of the token that moves; `side` is 0 in the preferred and 1 in the dispreferred
    completion.
    """
    signal = _signal(objective.signal)
    num_completions = len(signal.source) if isinstance(signal, Hybrid) else 2
    rest = torch.full((num_completions * NUM_TOKENS,), _logit(ref_prob), dtype=torch.float64)
    leaf = torch.tensor(_logit(probability), dtype=torch.float64, requires_grad=True)
    place = torch.arange(len(rest)) == side * NUM_TOKENS + PLACE
    target = torch.where(place, leaf, rest)
    coupling = None
    if "coupling" in objective.needs:
        assert isinstance(objective, Coupled)
        coupling = _couple(objective, signal, target.detach(), rest)
    scores = _scores(objective, target, rest, coupling)
    weight = float(objective.weights(scores.lengths, signal).double().sum())
    loss = reduce_losses(objective(scores, signal), weight)
    if not loss.requires_grad:
        raise ConfigError("its loss does not depend on the probability of a token")
    (slope,) = torch.autograd.grad(loss, leaf)
    # With the other logits fixed, d logp / d logit = 1 - p.
    return (0.0 - slope.item()) / (1 - probability if quantity == "logp" else 1.0)


def _logit(probability: float) -> float:
    """The target's logit where the others' are 0."""
    return math.log(probability * (VOCABULARY - 1) / (1 - probability))


def _signal(kind: type[Signal]) -> Signal:
    """Completion 0 is preferred, 1 dispreferred. A hybrid signal has a sample of the policy and one of the
    reference beside.
    """
    first, second = torch.tensor([0]), torch.tensor([1])
    if kind is Pairs:
        return Pairs(chosen=first, rejected=second)
    if kind is Labels:
        return Labels(label=torch.tensor([1, -1]))
    if kind is Rewards:
        return Rewards(reward=torch.tensor([1.0, 0.0], dtype=torch.float64), group=torch.tensor([0, 0]))
    return Hybrid(
        chosen=first,
        rejected=second,
        source=torch.tensor([0, 0, 1, 2]),
        group=torch.zeros(4, dtype=torch.long),
    )


def _every_score(target: Float[Tensor, " N"], ref_target: Float[Tensor, " N"]) -> dict[str, Tensor]:
    """All that an objective can request in addition to logp and a coupling, and logp, from the targets' logits under
    the policy and under the reference.
    """
    others = torch.zeros(len(target), VOCABULARY - 1, dtype=target.dtype)
    logits = torch.cat([target[:, None], others], 1)
    logp = logits.log_softmax(1)
    ref_logp = torch.cat([ref_target[:, None], others], 1).log_softmax(1)
    ref_entropy = -(ref_logp.exp() * ref_logp).sum(1)
    return {
        "logp": logp[:, 0],
        "ref_logp": ref_logp[:, 0],
        "behaviour_logp": ref_logp[:, 0],
        "entropy": -(logp.exp() * logp).sum(1),
        "target_logit": target,
        "log_normalizer": logits.logsumexp(1),
        "log_collision": (2 * logp.detach()).logsumexp(1),
        "ref_entropy": ref_entropy,
        "ref_entropy_share": ref_entropy / math.log(VOCABULARY),
        "kl_from_ref": (ref_logp.exp() * (ref_logp - logp)).sum(1),
        "kl_to_ref": (logp.exp() * (logp - ref_logp)).sum(1),
        "contrast": torch.zeros_like(ref_target),  # the two models that set token weights agree
        "value": torch.full_like(ref_target, VALUE),
        "value_after": torch.full_like(ref_target, VALUE),
        "behaviour_value": torch.full_like(ref_target, VALUE),
    }


def _scores(
    objective: Objective,
    target: Float[Tensor, " N"],
    ref_target: Float[Tensor, " N"],
    coupling: Coupling | None = None,
) -> TokenScores:
    """What the objective needs, and no more."""
    wanted = {"logp", *objective.needs}
    scores: Mapping[str, Any] = {
        name: v for name, v in _every_score(target, ref_target).items() if name in wanted
    }
    return TokenScores(lengths=_lengths(target), coupling=coupling, **scores)


def _lengths(target: Float[Tensor, " N"]) -> Int[Tensor, " C"]:
    return torch.full((len(target) // NUM_TOKENS,), NUM_TOKENS)


def _couple(
    objective: Coupled, signal: Signal, target: Float[Tensor, " N"], ref_target: Float[Tensor, " N"]
) -> Coupling:
    """The step's coupling: the group is the whole step, and its first. A mismatched completion is as under
    the reference.
    """
    lengths, apart = _lengths(target), ref_target[:NUM_TOKENS]
    step = StepView(
        lengths=lengths,
        prompt=torch.zeros_like(lengths),
        signal=signal,
        scores=_scores(objective, target, ref_target) if "scores" in objective.couples else None,
        mismatched=_scores(objective, apart, apart) if "mismatched" in objective.couples else None,
    )
    coupling, _ = objective.couple(step, objective.initial_state())
    return coupling
