"""The facts of an objective, measured on its values and gradients."""

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from preftune.objectives.base import ChosenFall, Objective, State, reduce_losses
from preftune.objectives.contracts.steps import (
    SCORES,
    Piece,
    assemble,
    couple,
    leaf_names,
    loss_and_gradient,
    policy_scores,
    random_step,
    state_after,
)
from preftune.types import Hybrid, Labels, Rewards

LENGTH = 3  # tokens of each completion where all are alike
SHIFTS = [0.0] + [0.01 * 1.5**k for k in range(29)]  # nats per token, up to some hundreds
SMALL = 1e-9


def length_normalized(objective: Objective) -> bool:
    """Whether the loss stays when the first completion of each group has twice the tokens, at the same mean."""
    pieces = [replace(p, tokens=tuple(_flat(t) for t in p.tokens)) for p in random_step(3)]
    longer = [replace(p, tokens=(_repeated(p.tokens[0], 2), *p.tokens[1:])) for p in pieces]
    before, after = (float(loss_and_gradient(step, objective)[0]) for step in (pieces, longer))
    return abs(after - before) <= SMALL * max(1.0, abs(before))


def chosen_fall(objective: Objective) -> ChosenFall:
    """By the gradient, after steps at the reference. A chosen completion that is pushed down whether it is
    ahead or behind is meant to fall; otherwise the check is whether a fall of both completions raises the loss.
    """
    state = state_after([_alike(-1.0, -1.0)] * 20, objective)
    if all(_slopes(objective, ahead, 0.0, state)[1] > SMALL for ahead in (-1.0, -0.2, 0.2, 0.9)):
        return "intended"
    slopes = [_slopes(objective, 0.2, shift, state)[0] for shift in SHIFTS]
    steps = zip(SHIFTS, SHIFTS[1:], slopes, slopes[1:], strict=False)
    climb = sum((right - left) * (a + b) / 2 for left, right, a, b in steps)
    return "prevented" if climb > SMALL else "possible"


def value_is_surrogate(objective: Objective) -> bool:
    """Whether the value changes differently from what its gradient predicts, coupling included."""
    for seed in range(4):
        pieces = random_step(seed)
        state = state_after([random_step(seed + 20)] * 5, objective)
        couplings = couple(pieces, objective, state)
        weight = _weight(pieces, objective)
        _, gradient = loss_and_gradient(pieces, objective, weight, couplings)
        leaf = policy_scores(pieces, objective).detach()
        random = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(seed), dtype=leaf.dtype)
        direction = gradient / (gradient.norm() + 1e-12) + random / random.norm()
        step = 1e-6 * direction
        ahead, behind = (
            _value(_with_policy(pieces, objective, at), objective, state, weight)
            for at in (leaf + step, leaf - step)
        )
        predicted = 2 * float((gradient * step).sum())
        if abs(ahead - behind - predicted) > 1e-3 * max(abs(predicted), 1e-6 * float(gradient.norm())):
            return True
    return False


def correctable(objective: Objective) -> bool:
    """Whether the loss is on rewards, and no unit has a gradient at the tokens of two completions."""
    if objective.signal is not Rewards:
        return False
    pieces = random_step(5, num_groups=3)
    leaf = policy_scores(pieces, objective)
    scores, signal = assemble(pieces, objective, leaf, couple(pieces, objective))
    owner = torch.repeat_interleave(torch.arange(len(scores.lengths)), scores.lengths)
    for unit in objective(scores, signal).per_unit:
        (gradient,) = torch.autograd.grad(unit, leaf, retain_graph=True)
        if len(owner[gradient[0] != 0].unique()) > 1:
            return False
    return True


def values_are_returns(objective: Objective) -> bool:
    """Whether a critic that predicts the rewards of completions of one token gets no gradient."""
    if "value" not in objective.needs:
        return False
    step = [_first_token(piece, 2.0 + number) for number, piece in enumerate(_alike(-1.0, -1.0))]
    _, gradient = loss_and_gradient(step, objective, 1.0, couple(step, objective))
    return bool((gradient[leaf_names(objective).index("value")].abs() <= SMALL).all())


def trains(objective: Objective) -> str:
    """Whether log-probabilities have a gradient."""
    _, gradient = loss_and_gradient(random_step(1), objective)
    return "policy" if bool((gradient[0] != 0).any()) else "reward model"


def imitates(objective: Objective) -> bool:
    """Whether the loss is of labels, reads log-probabilities alone and gives a label of -1 no weight."""
    if objective.signal is not Labels or objective.needs - {"coupling"}:
        return False
    lengths, label = torch.tensor([1]), torch.tensor([-1])
    return not bool(objective.weights(lengths, Labels(label=label)).any())


def takes_opponents(objective: Objective) -> bool | None:
    """Whether a completion of another source changes the loss of a pair, or a reward is a win rate: one half
    teaches nothing and a win does, without another completion to compare with. None where sampling alone
    cannot make the signal.
    """
    if objective.signal is Hybrid:
        own, other = (_alike(-0.8, -1.2, sources=(1, source)) for source in (1, 2))
        losses = [float(loss_and_gradient(step, objective, 1.0)[0]) for step in (own, other)]
        return True if losses[0] != losses[1] else None
    if objective.signal is not Rewards or objective.trains != "policy":
        return False
    half, win = (_alone(reward) for reward in (0.5, 1.0))
    gradients = [loss_and_gradient(step, objective, 1.0)[1].abs().max() for step in (half, win)]
    return bool(gradients[0] <= SMALL < gradients[1])


def unjudged_samples(objective: Objective) -> bool:
    """Whether a completion of the policy in no pair has a gradient, with the default settings."""
    if objective.signal is not Hybrid:
        return False
    pair = _alike(-0.8, -1.2, sources=(0, 0))[0]
    step = [replace(pair, tokens=(*pair.tokens, _completion(-0.5)), sources=(0, 0, 1))]
    _, gradient = loss_and_gradient(step, type(objective)(), 1.0, couple(step, type(objective)()))
    return bool((gradient[0][-LENGTH:] != 0).any())


def least_completions(objective: Objective) -> int:
    """1 where the only completion of a prompt teaches something: its reward changes the gradient, or at the
    reference the loss raises it whatever its reward. Else 2.
    """
    if objective.signal is not Rewards:
        return 1
    gradients = []
    for shift in (0.0, 1.5):
        step = [_first_alone(piece, shift * number) for number, piece in enumerate(random_step(3))]
        gradients.append(loss_and_gradient(step, objective, 1.0, couple(step, objective))[1])
    at_reference = loss_and_gradient(_alone(0.0), objective, 1.0, couple(_alone(0.0), objective))[1][0]
    return 1 if not torch.equal(*gradients) or bool((at_reference < -SMALL).all()) else 2


# --- steps in which all is known ---


def _completion(logp: float) -> dict[str, Tensor]:
    """Every score constant; the reference and the behavior policy at -1 per token."""
    known = dict.fromkeys(SCORES, 0.0) | {
        "logp": logp,
        "ref_logp": -1.0,
        "behaviour_logp": -1.0,
        "log_normalizer": -logp,
        "log_collision": -0.2,
        "ref_entropy_share": 0.3,
        "kl_from_ref": 0.1,
        "kl_to_ref": 0.1,
    }
    return {name: torch.full((LENGTH,), value, dtype=torch.float64) for name, value in known.items()}


def _alike(chosen: float, rejected: float, sources: tuple[int, ...] = (1, 2)) -> list[Piece]:
    """Three prompts with one pair each, of these log-probabilities per token."""
    return [
        Piece(
            tokens=(_completion(chosen + 0.01 * number), _completion(rejected + 0.01 * number)),
            pairs=((0, 1),),
            probabilities=(),
            labels=(1, -1),
            rewards=(1.0, 0.0),
            sources=sources,
            prompt=number,
            mismatched=_completion(-1.0),
        )
        for number in range(3)
    ]


def _alone(reward: float) -> list[Piece]:
    """One prompt with one completion, at the reference."""
    (first, *_) = _alike(-1.0, -1.0)
    return [replace(first, tokens=first.tokens[:1], pairs=(), labels=(1,), rewards=(reward,), sources=(1,))]


def _first_alone(piece: Piece, shift: float) -> Piece:
    """The first completion of a group without the others, its reward moved."""
    return replace(
        piece,
        tokens=piece.tokens[:1],
        rewards=(piece.rewards[0] + shift,),
        labels=piece.labels[:1],
        sources=piece.sources[:1],
        pairs=(),
    )


def _first_token(piece: Piece, reward: float) -> Piece:
    """A group with the first token of its first completion alone, and a critic that knows its reward."""
    known = {"value": reward, "behaviour_value": reward}
    tokens = {
        name: torch.full_like(values[:1], known[name]) if name in known else values[:1]
        for name, values in piece.tokens[0].items()
    }
    return replace(_first_alone(piece, reward - piece.rewards[0]), tokens=(tokens,))


def _flat(tokens: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: values.mean().expand(len(values)).clone() for name, values in tokens.items()}


def _repeated(tokens: dict[str, Tensor], times: int) -> dict[str, Tensor]:
    return {name: values.repeat_interleave(times) for name, values in tokens.items()}


def _slopes(objective: Objective, ahead: float, shift: float, state: State | None) -> tuple[float, float]:
    """(derivative along a fall of both completions, along a rise of the chosen one), at a pair whose chosen
    completion leads by 2 `ahead` per token and both of which have fallen by `shift`.
    """
    pieces = _alike(-1.0 + ahead - shift, -1.0 - ahead - shift)
    couplings = couple(pieces, objective, state)
    _, gradient = loss_and_gradient(pieces, objective, _weight(pieces, objective), couplings)
    both = gradient[0].view(len(pieces), 2, LENGTH).sum(2)
    return -float(both.sum()), float(both[:, 0].sum())


def _weight(pieces: Sequence[Piece], objective: Objective) -> float:
    scores, signal = assemble(pieces, objective, couplings=[None] * len(pieces))
    return float(objective.weights(scores.lengths, signal).double().sum())


def _with_policy(pieces: Sequence[Piece], objective: Objective, leaf: Tensor) -> list[Piece]:
    """The groups with other scores of the policy, in `couple` too."""
    changed, start = [], 0
    for piece in pieces:
        tokens = []
        for known in piece.tokens:
            stop = start + len(known["logp"])
            own = {name: leaf[row, start:stop] for row, name in enumerate(leaf_names(objective))}
            tokens.append(known | own)
            start = stop
        changed.append(replace(piece, tokens=tuple(tokens)))
    return changed


def _value(pieces: Sequence[Piece], objective: Objective, state: State | None, weight: float) -> float:
    scores, signal = assemble(pieces, objective, couplings=couple(pieces, objective, state))
    return float(reduce_losses(objective(scores, signal), weight))
