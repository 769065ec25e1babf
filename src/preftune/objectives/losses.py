"""Every objective as a function of log-probabilities, for training loops of other people: `losses.dpo(logp, ...)`.

Only torch is needed. Log-probabilities come as a padded [C, T] tensor with a mask, as a list of C tensors of different
lengths, or as one flat tensor with the lengths of the completions.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from preftune.errors import ConfigError
from preftune.objectives.base import Coupled, Objective, State, plain_metric, reduce_losses
from preftune.objectives.resolve import build_objective, objective_name
from preftune.objectives.table import OBJECTIVES
from preftune.spec import suggestion
from preftune.types import Float, Hybrid, Int, Labels, Losses, Pairs, Rewards, Signal, StepView, TokenScores

PerToken = Tensor | Sequence[Tensor]
"""One number per completion token: padded [C, T], flat [N], or one tensor for each completion."""

SCORE_NAMES = tuple(
    field.name for field in fields(TokenScores) if field.name not in ("logp", "lengths", "coupling", "router")
)
SIGNAL_ARGUMENTS = {
    Pairs: ("chosen", "rejected", "probability"),
    Labels: ("labels",),
    Rewards: ("rewards", "group"),
    Hybrid: ("chosen", "rejected", "source", "group"),
}


@dataclass(frozen=True, kw_only=True)
class LossResult:
    """What a loss function returns.

    Attributes:
        loss: the number to call backward() on: the sum of the weighted losses over `denominator`.
        losses: the loss and the weight of each unit (pair, completion, group or token), and the metrics.
        state: what an objective with running estimates remembers; pass it to the next call.
    """

    loss: Float[Tensor, ""]
    losses: Losses
    state: State | None = None

    @property
    def metrics(self) -> Mapping[str, Tensor]:
        return {name: plain_metric(values) for name, values in self.losses.metrics.items()}


def compute_loss(
    objective: Objective,
    logp: PerToken,
    *,
    mask: Tensor | None = None,
    lengths: Tensor | None = None,
    prompt: Tensor | None = None,
    mismatched: Mapping[str, Any] | None = None,
    state: State | None = None,
    denominator: float | int | None = None,
    **given: Any,
) -> LossResult:
    """The loss of completions under an objective.

    Args:
        objective: the loss with its hyperparameters.
        logp: log-probabilities of the completion tokens under the policy, with a gradient.
        mask: of padded tensors: true at the tokens that count.
        lengths: of flat tensors: tokens of each completion.
        prompt: a number per completion, equal for completions of the same prompt; for objectives that compare prompts.
        mismatched: the scores of completions under the prompt of another group ("logp", "ref_logp", "mask" or
            "lengths"), for objectives that need them.
        state: the state that the last call returned.
        denominator: of the sum of losses; the total weight if not given. With gradient accumulation: the total
            weight of the whole step.
        given: other scores per token (ref_logp, behaviour_logp, ...) in the form of `logp`, and the signal: chosen and
            rejected (indices; the first and the second half if not given), probability, labels (+1, -1, 0),
            rewards, group, step_rewards (in the form of `logp`: the reward of a step at the token that ends it, NaN
            at the others; a part of rewards), source.
    """
    name = objective_name(objective)
    allowed = _arguments(objective)
    for key, value in given.items():
        if key not in allowed and value is not None:
            raise ConfigError(
                f"{name} does not use {key}", got=f"{key}=...", expected=f"logp and {', '.join(allowed)}"
            )
    scores = _scores(objective, logp, mask, lengths, given)
    signal = _signal(objective, given, scores.lengths, _step_rewards(given, mask, lengths))
    new_state = None
    if "coupling" in objective.needs:
        assert isinstance(objective, Coupled)
        view = StepView(
            lengths=scores.lengths,
            prompt=_prompts(prompt, signal, scores.lengths),
            signal=signal,
            scores=_detached(scores) if "scores" in objective.couples else None,
            mismatched=_mismatched(objective, mismatched),
        )
        coupling, new_state = objective.couple(view, objective.initial_state() if state is None else state)
        scores = _with(scores, coupling=coupling)
    elif mismatched is not None or state is not None:
        raise ConfigError(f"{name} has no state and compares no prompts", got="mismatched or state")
    losses = objective(scores, signal)
    total = float(losses.weight.double().sum()) if denominator is None else float(denominator)
    if total == 0:
        raise ConfigError(f"{name} has nothing to learn from", got="a total weight of 0")
    return LossResult(loss=reduce_losses(losses, total), losses=losses, state=new_state)


def loss_function(name: str) -> Callable[..., LossResult]:
    """`compute_loss` of an objective of the table; its hyperparameters are keywords of the function."""
    kind = OBJECTIVES[name]
    own = {field.name for field in fields(kind)}  # type: ignore[arg-type]

    def loss(logp: PerToken, **settings: Any) -> LossResult:
        hyper = {key: value for key, value in settings.items() if key in own}
        others = {key: value for key, value in settings.items() if key not in own}
        return compute_loss(build_objective(kind, name, hyper), logp, **others)

    loss.__name__ = loss.__qualname__ = name.replace("-", "_")
    loss.__doc__ = kind.__doc__
    return loss


def __getattr__(name: str) -> Callable[..., LossResult]:
    plain = name.replace("_", "-")
    if plain not in OBJECTIVES:
        near = "" if name.startswith("__") else suggestion(plain, OBJECTIVES) or ""
        raise AttributeError(f"there is no loss {name!r}. {near}".rstrip())
    return loss_function(plain)


def __dir__() -> list[str]:
    return sorted(
        [*(name.replace("-", "_") for name in OBJECTIVES), "compute_loss", "loss_function", "LossResult"]
    )


def _arguments(objective: Objective) -> tuple[str, ...]:
    """What else the loss reads."""
    scores = (one for one in SCORE_NAMES if one in objective.needs)
    return (
        *SIGNAL_ARGUMENTS[objective.signal],
        *scores,
        *(("step_rewards",) if objective.uses_steps else ()),
    )


def _step_rewards(
    given: Mapping[str, Any], mask: Tensor | None, lengths: Tensor | None
) -> Float[Tensor, " N"] | None:
    steps = given.get("step_rewards")
    return None if steps is None else _flat("step_rewards", steps, mask, lengths)[0]


def _scores(
    objective: Objective,
    logp: PerToken,
    mask: Tensor | None,
    lengths: Tensor | None,
    given: Mapping[str, Any],
) -> TokenScores:
    name = objective_name(objective)
    missing = [one for one in SCORE_NAMES if one in objective.needs and given.get(one) is None]
    if missing:
        raise ConfigError(f"{name} needs {', '.join(missing)}", got="none", expected="in the form of logp")
    flat, counts = _flat("logp", logp, mask, lengths)
    others = {}
    for key in (one for one in SCORE_NAMES if one in objective.needs):
        others[key], own = _flat(key, given[key], mask, lengths)
        if not torch.equal(own, counts):
            raise ConfigError(
                f"{key} and logp have different lengths", got=own.tolist(), expected=str(counts.tolist())
            )
    return TokenScores(logp=flat, lengths=counts, **others)


def _flat(
    name: str, values: PerToken, mask: Tensor | None, lengths: Tensor | None
) -> tuple[Float[Tensor, " N"], Int[Tensor, " C"]]:
    """(the tokens one completion after another, tokens of each completion)"""
    if not isinstance(values, Tensor):
        flat, counts = torch.cat(list(values)), torch.tensor([len(one) for one in values])
    elif values.ndim == 2:
        if mask is None or mask.shape != values.shape:
            raise ConfigError(
                f"{name} is padded, and the mask does not fit",
                got=None if mask is None else tuple(mask.shape),
                expected=f"mask= of the shape {tuple(values.shape)}",
            )
        flat, counts = values[mask.bool()], mask.bool().sum(1)
    else:
        if lengths is None or int(lengths.sum()) != len(values):
            raise ConfigError(
                f"{name} is flat, and the lengths do not fit",
                got=None if lengths is None else f"a sum of {int(lengths.sum())}",
                expected=f"lengths= with a sum of {len(values)}",
            )
        flat, counts = values, lengths
    if int(counts.min()) < 1:
        raise ConfigError(f"A completion in {name} has no tokens", got=counts.tolist())
    return flat, counts.to(flat.device)


def _signal(
    objective: Objective, given: Mapping[str, Any], lengths: Tensor, step: Tensor | None = None
) -> Signal:
    kind, count = objective.signal, len(lengths)

    def tensor(name: str, size: int, dtype: torch.dtype | None = None) -> Tensor:
        found = torch.as_tensor(given[name], device=lengths.device, dtype=dtype)
        if found.shape != (size,):
            raise ConfigError(f"{name} has the wrong shape", got=tuple(found.shape), expected=f"({size},)")
        return found

    if kind is Labels or kind is Rewards:
        name = "labels" if kind is Labels else "rewards"
        if given.get(name) is None:
            raise ConfigError(f"{objective_name(objective)} needs {name}", expected=f"{count} numbers")
        if kind is Labels:
            return Labels(label=tensor("labels", count, torch.long))
        group = torch.zeros(count, dtype=torch.long, device=lengths.device)
        return Rewards(
            reward=tensor("rewards", count, torch.get_default_dtype()),
            group=group if given.get("group") is None else tensor("group", count, torch.long),
            step=step,
        )
    sides = _sides(given, count, lengths.device)
    if kind is Hybrid:
        for name, expected in (
            ("source", "0 data, 1 policy, 2 reference, per completion"),
            ("group", "the number of its prompt, per completion"),
        ):
            if given.get(name) is None:
                raise ConfigError(f"{objective_name(objective)} needs {name}", expected=expected)
        return Hybrid(
            **sides, source=tensor("source", count, torch.long), group=tensor("group", count, torch.long)
        )
    known = given.get("probability")
    chance = None if known is None else tensor("probability", len(sides["chosen"]), torch.get_default_dtype())
    return Pairs(**sides, probability=chance)


def _sides(given: Mapping[str, Any], count: int, device: torch.device) -> dict[str, Tensor]:
    named = [given.get(side) is not None for side in ("chosen", "rejected")]
    if not any(named):
        if count % 2:
            raise ConfigError(
                "Pairs need chosen and rejected completions",
                got=f"{count} completions",
                expected="chosen=, rejected=",
            )
        order = torch.arange(count, device=device)
        return {"chosen": order[: count // 2], "rejected": order[count // 2 :]}
    if not all(named):
        raise ConfigError("chosen and rejected go together", got="one of them")
    return {
        side: torch.as_tensor(given[side], dtype=torch.long, device=device) for side in ("chosen", "rejected")
    }


def _prompts(prompt: Tensor | None, signal: Signal, lengths: Tensor) -> Tensor:
    """Where no prompts are given, the completions of a pair or a group share one."""
    if prompt is not None:
        return torch.as_tensor(prompt, device=lengths.device)
    if isinstance(signal, Rewards | Hybrid):
        return signal.group
    numbers = torch.arange(len(lengths), device=lengths.device)
    if isinstance(signal, Pairs):
        numbers = numbers.index_copy(0, signal.rejected, numbers[signal.chosen])
    return numbers


def _mismatched(objective: Coupled, given: Mapping[str, Any] | None) -> TokenScores | None:
    if "mismatched" not in objective.couples:
        if given is not None:
            raise ConfigError(f"{objective_name(objective)} does not use mismatched", got="mismatched=...")
        return None
    if given is None:
        raise ConfigError(
            f"{objective_name(objective)} needs mismatched",
            got="none",
            expected='{"logp": ..., "ref_logp": ...}: completions scored under the prompt of another group',
        )
    others = {key: value for key, value in given.items() if key not in ("logp", "mask", "lengths")}
    return _detached(_scores(objective, given["logp"], given.get("mask"), given.get("lengths"), others))


def _with(scores: TokenScores, **changes: Any) -> TokenScores:
    return TokenScores(**{field.name: getattr(scores, field.name) for field in fields(TokenScores)} | changes)


def _detached(scores: TokenScores) -> TokenScores:
    values = {field.name: getattr(scores, field.name) for field in fields(TokenScores)}
    return _with(scores, **{name: one.detach() for name, one in values.items() if isinstance(one, Tensor)})
