"""Random optimiser steps for the contract suite: groups of completions with any signal, cut up and put together at will."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from preftune.objectives import Objective, reduce_losses
from preftune.types import Advantages, Labels, Losses, Pairs, Rewards, Signal, TokenScores

SCORES = ("logp", "ref_logp", "behaviour_logp", "entropy", "target_logit", "log_normaliser")


@dataclass(frozen=True)
class Piece:
    """One group: K completions with a value of every score per token, and everything a signal may say of them."""

    tokens: tuple[dict[str, Tensor], ...]  # per completion: score name -> [tokens]
    pairs: tuple[tuple[int, int], ...]
    labels: tuple[int, ...]
    rewards: tuple[float, ...]


def random_step(seed: int, num_groups: int = 5, scale: float = 2.0) -> list[Piece]:
    """Ragged groups of 2 to 4 completions of 1 to 7 tokens, in fp64; every group has a pair and both labels."""
    random = torch.Generator().manual_seed(seed)

    def draw(length: int) -> dict[str, Tensor]:
        logp = -scale * torch.rand(length, generator=random, dtype=torch.float64) - 0.01
        noise = [0.5 * torch.randn(length, generator=random, dtype=torch.float64) for _ in range(2)]
        entropy = torch.rand(length, generator=random, dtype=torch.float64)
        target = torch.randn(length, generator=random, dtype=torch.float64)
        return dict(zip(SCORES, (logp, (logp + noise[0]).clamp(max=-1e-3), (logp + noise[1]).clamp(max=-1e-3), entropy,
                                 target, target - logp), strict=True))  # fmt: skip

    pieces = []
    for _ in range(num_groups):
        k = int(torch.randint(2, 5, (1,), generator=random))
        lengths = torch.randint(1, 8, (k,), generator=random).tolist()
        pieces.append(
            Piece(
                tokens=tuple(draw(length) for length in lengths),
                pairs=((0, 1),) if k < 4 else ((0, 1), (2, 3), (0, 3)),
                labels=tuple(1 if i % 2 == 0 else -1 for i in range(k)),
                rewards=tuple(torch.randn(k, generator=random, dtype=torch.float64).tolist()),
            )
        )
    return pieces


def assemble(pieces: Sequence[Piece], objective: Objective, leaf: Tensor | None = None) -> tuple[TokenScores, Signal]:
    """Scores and signal of some groups as one micro-batch; only what the objective declares is there.

    `leaf` replaces the policy's logp, to take gradients with respect to it.
    """
    completions = [tokens for piece in pieces for tokens in piece.tokens]
    flat = {name: torch.cat([tokens[name] for tokens in completions]) for name in SCORES}
    kept = {name: value for name, value in flat.items() if name in objective.needs}
    lengths = torch.tensor([len(tokens["logp"]) for tokens in completions])
    scores = TokenScores(logp=flat["logp"] if leaf is None else leaf, lengths=lengths, **kept)
    return scores, _signal(pieces, objective.signal)


def _signal(pieces: Sequence[Piece], kind: type[Signal]) -> Signal:
    starts = torch.tensor([0, *(len(piece.tokens) for piece in pieces)]).cumsum(0).tolist()
    group = torch.tensor([g for g, piece in enumerate(pieces) for _ in piece.tokens])
    if kind is Pairs:
        pairs = [(s + c, s + r) for s, piece in zip(starts, pieces, strict=False) for c, r in piece.pairs]
        return Pairs(chosen=torch.tensor([c for c, _ in pairs]), rejected=torch.tensor([r for _, r in pairs]))
    if kind is Labels:
        return Labels(label=torch.tensor([label for piece in pieces for label in piece.labels]))
    numbers = torch.tensor([reward for piece in pieces for reward in piece.rewards], dtype=torch.float64)
    return Rewards(reward=numbers, group=group) if kind is Rewards else Advantages(advantage=numbers, group=group)


def policy_logp(pieces: Sequence[Piece]) -> Tensor:
    return torch.cat([tokens["logp"] for piece in pieces for tokens in piece.tokens]).clone().requires_grad_()


def loss_and_gradient(pieces: Sequence[Piece], objective: Objective, weight: float | None = None) -> tuple[Tensor, Tensor]:
    """(loss, d loss / d logp) of one micro-batch, reduced by the given weight or by its own."""
    leaf = policy_logp(pieces)
    scores, signal = assemble(pieces, objective, leaf)
    if weight is None:
        weight = float(objective.weights(scores.lengths, signal).sum())
    loss = reduce_losses(objective(scores, signal), weight)
    (gradient,) = torch.autograd.grad(loss, leaf)
    return loss.detach(), gradient


def with_scores(pieces: Sequence[Piece], **values: float) -> list[Piece]:
    """The same groups with some scores set to a constant everywhere."""
    return [
        replace(piece, tokens=tuple(
            {n: torch.full_like(v, values[n]) if n in values else v for n, v in tokens.items()} for tokens in piece.tokens
        ))
        for piece in pieces
    ]  # fmt: skip


def call(pieces: Sequence[Piece], objective: Objective) -> Losses:
    scores, signal = assemble(pieces, objective)
    return objective(scores, signal)
