"""Steps for coupled objectives, worked out by hand: one token per completion unless lengths are given."""

from dataclasses import replace

import torch

from preftune.objectives import Coupled, State
from preftune.types import Coupling, Pairs, Rewards, Signal, StepView, TokenScores
from tests.objectives.golden import spread


def make_step_scores(logp, ref=None, lengths=None) -> TokenScores:
    lengths = lengths or [1] * len(logp)
    ref_logp = None if ref is None else spread(ref, lengths)
    return TokenScores(
        logp=spread(logp, lengths).requires_grad_(), ref_logp=ref_logp, lengths=torch.tensor(lengths)
    )


def pairs_of(count: int) -> Pairs:
    """Completion 2i is chosen, 2i + 1 rejected."""
    return Pairs(chosen=torch.arange(0, 2 * count, 2), rejected=torch.arange(1, 2 * count, 2))


def rewards_of(*groups: tuple[float, ...]) -> Rewards:
    index = [number for number, group in enumerate(groups) for _ in group]
    return Rewards(reward=torch.tensor([r for group in groups for r in group]), group=torch.tensor(index))


def couple(
    objective: Coupled,
    scores: TokenScores,
    signal: Signal,
    state: State | None = None,
    *,
    prompt=None,
    mismatched=None,
) -> tuple[Coupling, dict[str, torch.Tensor]]:
    """What couples a step that holds these scores; each completion has a prompt of its own unless prompts are
    given.
    """
    view = StepView(
        lengths=scores.lengths,
        prompt=torch.arange(len(scores.lengths)) if prompt is None else torch.tensor(prompt),
        signal=signal,
        scores=replace(scores, logp=scores.logp.detach()) if "scores" in objective.couples else None,
        mismatched=None if mismatched is None else replace(mismatched, logp=mismatched.logp.detach()),
    )
    return objective.couple(view, objective.initial_state() if state is None else state)


def coupled(
    objective: Coupled, scores: TokenScores, signal: Signal, state: State | None = None, **more
) -> TokenScores:
    """The scores of a whole step with what couples them."""
    return replace(scores, coupling=couple(objective, scores, signal, state, **more)[0])


def numbers(state: State) -> dict[str, object]:
    return {name: tensor.tolist() for name, tensor in state.items()}
