"""Random optimizer steps for the contract suite: groups of completions with any signal, cut up and put
together at will.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from preftune.objectives.base import Coupled, Objective, State, reduce_losses
from preftune.types import Coupling, Hybrid, Labels, Losses, Pairs, Rewards, Signal, StepView, TokenScores

WITH_GRADIENT = (
    "logp",
    "entropy",
    "target_logit",
    "log_normalizer",
    "kl_from_ref",
    "kl_to_ref",
    "value",
    "value_after",
)
FROZEN = ("ref_logp", "behaviour_logp", "behaviour_value", "log_collision", "ref_entropy_share", "contrast")
SCORES = WITH_GRADIENT + FROZEN


@dataclass(frozen=True)
class Piece:
    """One group: K completions with a value of every score per token, and everything a signal may state about
    them.
    """

    tokens: tuple[dict[str, Tensor], ...]  # per completion: score name -> [tokens]
    pairs: tuple[tuple[int, int], ...]
    probabilities: tuple[float, ...]  # per pair, or none at all
    labels: tuple[int, ...]
    rewards: tuple[float, ...]
    sources: tuple[int, ...]  # 0 data, 1 policy, 2 reference
    prompt: int
    mismatched: dict[str, Tensor]  # one completion of another group under this prompt
    steps: tuple[Tensor, ...] = ()  # of each completion, as in Rewards.step


def random_step(seed: int, num_groups: int = 5, scale: float = 2.0) -> list[Piece]:
    """Ragged groups of 2 to 4 completions of 1 to 7 tokens, in fp64; every group has a pair and both labels."""
    random = torch.Generator().manual_seed(seed)

    def uniform(length: int) -> Tensor:
        return torch.rand(length, generator=random, dtype=torch.float64)

    def normal(length: int) -> Tensor:
        return torch.randn(length, generator=random, dtype=torch.float64)

    def draw(length: int) -> dict[str, Tensor]:
        logp, target = -scale * uniform(length) - 0.01, normal(length)
        near = [(logp + 0.5 * normal(length)).clamp(max=-1e-3) for _ in range(2)]
        scores = {
            "logp": logp,
            "ref_logp": near[0],
            "behaviour_logp": near[1],
            "target_logit": target,
            "log_normalizer": target - logp,
            "entropy": uniform(length),
            "ref_entropy_share": uniform(length),
            "kl_from_ref": uniform(length),
            "kl_to_ref": uniform(length),
            "log_collision": -uniform(length),
            "value": normal(length),
            "value_after": normal(length),
            "contrast": normal(length),
        }
        return scores | {"behaviour_value": scores["value"] + 0.5 * target}

    pieces = []
    for number in range(num_groups):
        k = int(torch.randint(2, 5, (1,), generator=random))
        lengths = torch.randint(1, 8, (k,), generator=random).tolist()
        pairs = ((0, 1),) if k < 4 else ((0, 1), (2, 3), (0, 3))
        pieces.append(
            Piece(
                tokens=tuple(draw(length) for length in lengths),
                pairs=pairs,
                probabilities=tuple((0.5 + 0.5 * uniform(len(pairs))).tolist()),
                labels=tuple(1 if i % 2 == 0 else -1 for i in range(k)),
                rewards=tuple(normal(k).tolist()),
                sources=(1, 2, 1, 0)[:k],
                prompt=1000 + 7 * number,
                mismatched=draw(3),
            )
        )
    return pieces


def couple(
    pieces: Sequence[Piece], objective: Objective, state: State | None = None
) -> list[Coupling | None]:
    """Each group's share of what couples the whole step; None where the objective is not coupled."""
    if "coupling" not in objective.needs:
        return [None] * len(pieces)
    assert isinstance(objective, Coupled)
    found, _ = objective.couple(
        _view(pieces, objective), objective.initial_state() if state is None else state
    )
    counts = {
        "completion": [len(piece.tokens) for piece in pieces],
        "pair": [len(piece.pairs) for piece in pieces],
    }
    cut = {kind: {n: v.split(counts[kind]) for n, v in getattr(found, kind).items()} for kind in counts}
    return [
        Coupling(whole=found.whole, **{kind: {n: parts[i] for n, parts in cut[kind].items()} for kind in cut})
        for i in range(len(pieces))
    ]


def state_after(steps: Sequence[Sequence[Piece]], objective: Objective) -> State | None:
    """What the objective's estimators remember of some steps; None where the objective is not coupled."""
    if "coupling" not in objective.needs:
        return None
    assert isinstance(objective, Coupled)
    state: State = objective.initial_state()
    for pieces in steps:
        state = objective.couple(_view(pieces, objective), state)[1]
    return state


def _view(pieces: Sequence[Piece], objective: Coupled) -> StepView:
    scores, signal = assemble(pieces, objective, couplings=[None] * len(pieces))
    mismatched = [piece.mismatched for piece in pieces]
    return StepView(
        lengths=scores.lengths,
        prompt=torch.tensor([piece.prompt for piece in pieces for _ in piece.tokens]),
        signal=signal,
        scores=scores if "scores" in objective.couples else None,
        mismatched=_scores(mismatched, objective, None) if "mismatched" in objective.couples else None,
    )


def assemble(
    pieces: Sequence[Piece],
    objective: Objective,
    leaf: Tensor | None = None,
    couplings: Sequence[Coupling | None] | None = None,
) -> tuple[TokenScores, Signal]:
    """Scores and signal of some groups as one micro-batch; only what the objective declares is there.

    `leaf`, from `policy_scores`, replaces what comes from the policy, to take gradients with respect to it.
    Without `couplings` the groups are the whole step.
    """
    couplings = couple(pieces, objective) if couplings is None else couplings
    scores = _scores([tokens for piece in pieces for tokens in piece.tokens], objective, leaf)
    return replace(scores, coupling=_joined(couplings)), _signal(pieces, objective.signal)


def _scores(
    completions: Sequence[dict[str, Tensor]], objective: Objective, leaf: Tensor | None
) -> TokenScores:
    flat = {
        name: torch.cat([tokens[name] for tokens in completions])
        for name in ("logp", *objective.needs)
        if name in SCORES
    }
    if leaf is not None:
        flat |= dict(zip(leaf_names(objective), leaf, strict=True))
    return TokenScores(lengths=torch.tensor([len(tokens["logp"]) for tokens in completions]), **flat)  # type: ignore


def _joined(couplings: Sequence[Coupling | None]) -> Coupling | None:
    known = [coupling for coupling in couplings if coupling is not None]
    if not known:
        return None

    def cat(kind: str) -> dict[str, Tensor]:
        return {name: torch.cat([getattr(c, kind)[name] for c in known]) for name in getattr(known[0], kind)}

    return Coupling(whole=known[0].whole, completion=cat("completion"), pair=cat("pair"))


def _signal(pieces: Sequence[Piece], kind: type[Signal]) -> Signal:
    starts = torch.tensor([0, *(len(piece.tokens) for piece in pieces)]).cumsum(0).tolist()
    group = torch.tensor([g for g, piece in enumerate(pieces) for _ in piece.tokens])
    if kind in (Pairs, Hybrid):
        pairs = [(s + c, s + r) for s, piece in zip(starts, pieces, strict=False) for c, r in piece.pairs]
        chosen, rejected = torch.tensor([c for c, _ in pairs]), torch.tensor([r for _, r in pairs])
        if kind is Hybrid:
            source = torch.tensor([s for p in pieces for s in p.sources])
            return Hybrid(chosen=chosen, rejected=rejected, source=source, group=group)
        chances = [p for piece in pieces for p in piece.probabilities]
        known = torch.tensor(chances, dtype=torch.float64) if chances else None
        return Pairs(chosen=chosen, rejected=rejected, probability=known)
    if kind is Labels:
        return Labels(label=torch.tensor([label for piece in pieces for label in piece.labels]))
    numbers = torch.tensor([reward for piece in pieces for reward in piece.rewards], dtype=torch.float64)
    steps = [one for piece in pieces for one in piece.steps]
    step = torch.cat(steps) if steps and len(steps) == len(numbers) else None
    return Rewards(reward=numbers, group=group, step=step)


def leaf_names(objective: Objective) -> list[str]:
    """The scores an objective sees that carry a gradient."""
    return ["logp", *(name for name in WITH_GRADIENT if name in objective.needs)]


def policy_scores(pieces: Sequence[Piece], objective: Objective) -> Tensor:
    """[F, N]: logp and what else comes from the policy with a gradient."""
    completions = [tokens for piece in pieces for tokens in piece.tokens]
    rows = [torch.cat([tokens[name] for tokens in completions]) for name in leaf_names(objective)]
    return torch.stack(rows).clone().requires_grad_()


def loss_and_gradient(
    pieces: Sequence[Piece],
    objective: Objective,
    weight: float | None = None,
    couplings: Sequence[Coupling | None] | None = None,
) -> tuple[Tensor, Tensor]:
    """(loss, d loss / d policy scores [F, N]) of one micro-batch, reduced by the given weight or by its own."""
    leaf = policy_scores(pieces, objective)
    scores, signal = assemble(pieces, objective, leaf, couplings)
    if weight is None:
        weight = float(objective.weights(scores.lengths, signal).double().sum())
    loss = reduce_losses(objective(scores, signal), weight)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def with_scores(pieces: Sequence[Piece], **values: float) -> list[Piece]:
    """The same groups with some scores set to a constant everywhere."""

    def changed(tokens: dict[str, Tensor]) -> dict[str, Tensor]:
        return {n: torch.full_like(v, values[n]) if n in values else v for n, v in tokens.items()}

    return [
        replace(
            piece,
            tokens=tuple(changed(tokens) for tokens in piece.tokens),
            mismatched=changed(piece.mismatched),
        )
        for piece in pieces
    ]


def call(
    pieces: Sequence[Piece], objective: Objective, couplings: Sequence[Coupling | None] | None = None
) -> Losses:
    scores, signal = assemble(pieces, objective, couplings=couplings)
    return objective(scores, signal)
