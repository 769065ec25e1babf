"""From completions [S, G, C] with rewards to the scores and the signal of a step, and to a loss for each
seed.

Everything is laid out seed by seed: completions, groups and pairs of a seed are adjacent, so
that a seed's units can be found again behind the objective, and each seed's loss be divided by its own global
weight.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from preftune.lab.environment import CompletionTokens, World
from preftune.lab.methods import Method
from preftune.objectives import Objective, State, reduce_losses
from preftune.train.step import MicroBatch, couple_step
from preftune.types import Labels, Pairs, Rewards, Signal, TokenScores


@dataclass(frozen=True, kw_only=True)
class Step:
    """What a step learns from, for all seeds: completions with their tokens, and where each seed's part ends.

    `token_cuts`, `completion_cuts`, `unit_cuts` are [S + 1] each; `weight` [U] and `totals` [S] are those of
    the units.
    """

    tokens: CompletionTokens
    mismatched: CompletionTokens
    prompt: Int[Tensor, " C"]
    signal: Signal
    token_cuts: tuple[int, ...]
    completion_cuts: tuple[int, ...]
    pair_cuts: tuple[int, ...]
    unit_seed: Int[Tensor, " U"]
    totals: Float[Tensor, " S"]


def make_step(
    world: World,
    method: Method,
    completions: Tensor,
    rewards: Float[Tensor, "S G C"],
    flipped: Bool[Tensor, "S G P"] | None = None,
) -> Step:
    """The completions that take part, and the signal that the objective learns from."""
    num_seeds, num_groups, size = rewards.shape
    signal_kind = method.objective.signal
    index = torch.arange(rewards.numel())
    per_seed = num_groups * size
    pair_cuts: tuple[int, ...] = (0,) * (num_seeds + 1)
    if signal_kind is Rewards:
        signal: Signal = Rewards(
            reward=rewards.flatten(), group=torch.arange(num_seeds * num_groups).repeat_interleave(size)
        )
        cuts = tuple(range(0, per_seed * num_seeds + 1, per_seed))
    elif signal_kind is Pairs:
        chosen, rejected, pair_cuts = _pairs(world, method, rewards, flipped)
        signal = Pairs(chosen=chosen, rejected=rejected)
        cuts = tuple(range(0, per_seed * num_seeds + 1, per_seed))
    else:
        index, label = _labels(world, method, rewards, flipped)
        cuts = tuple(torch.searchsorted(index // per_seed, torch.arange(num_seeds + 1)).tolist())
        signal = Labels(label=label)
    tokens, mismatched = world.tokens(completions), world.tokens(completions, shift=1)
    if len(index) != rewards.numel() or signal_kind is Labels:
        tokens, mismatched = _taken(tokens, index), _taken(mismatched, index)
    token_ends = torch.cat([torch.zeros(1, dtype=torch.long), tokens.lengths.cumsum(0)])
    step = Step(
        tokens=tokens,
        mismatched=mismatched,
        prompt=torch.arange(num_groups).repeat(num_seeds).repeat_interleave(size)[index],
        signal=signal,
        token_cuts=tuple(token_ends[list(cuts)].tolist()),
        completion_cuts=cuts,
        pair_cuts=pair_cuts,
        unit_seed=torch.zeros(0, dtype=torch.long),
        totals=torch.zeros(num_seeds),
    )
    unit_seed, totals = _units(method.objective, step)
    return replace(step, unit_seed=unit_seed, totals=totals)


def _units(objective: Objective, step: Step) -> tuple[Int[Tensor, " U"], Float[Tensor, " S"]]:
    """(the seed of each unit, the global weight of each seed's step)."""
    num_seeds = len(step.totals)
    seeds, num_tokens = torch.arange(num_seeds), {end - start for start, end in pairwise(step.token_cuts)}
    if isinstance(step.signal, Rewards) and len(num_tokens) == 1:
        # Every seed has as many groups, completions and tokens, hence as many units: one call serves all.
        weight = objective.weights(step.tokens.lengths, step.signal).view(num_seeds, -1)
        return seeds.repeat_interleave(weight.shape[1]), weight.sum(1)
    weights = [_weights(objective, part) for part in seed_parts(step)]
    return torch.repeat_interleave(seeds, torch.tensor([len(w) for w in weights])), torch.stack(
        [w.sum() for w in weights]
    )


@dataclass(frozen=True, kw_only=True)
class SeedPart:
    """A seed's share of a step: slices into the flat tensors, and its signal with local indices."""

    tokens: slice
    completions: slice
    lengths: Int[Tensor, " C"]
    signal: Signal


def seed_parts(step: Step) -> list[SeedPart]:
    """Each seed's part, as if it were alone."""
    parts = []
    for s in range(len(step.completion_cuts) - 1):
        start, end = step.completion_cuts[s], step.completion_cuts[s + 1]
        signal = step.signal
        if isinstance(signal, Rewards):
            group = signal.group[start:end]
            mine: Signal = Rewards(reward=signal.reward[start:end], group=group - group[0])
        elif isinstance(signal, Labels):
            mine = Labels(label=signal.label[start:end])
        else:
            assert isinstance(signal, Pairs)
            first, last = step.pair_cuts[s], step.pair_cuts[s + 1]
            mine = Pairs(
                chosen=signal.chosen[first:last] - start, rejected=signal.rejected[first:last] - start
            )
        parts.append(
            SeedPart(
                tokens=slice(step.token_cuts[s], step.token_cuts[s + 1]),
                completions=slice(start, end),
                lengths=step.tokens.lengths[start:end],
                signal=mine,
            )
        )
    return parts


def seed_losses(
    objective: Objective,
    scores: TokenScores,
    mismatched: TokenScores | None,
    step: Step,
    states: Sequence[State | None],
) -> tuple[Float[Tensor, " S"], list[State | None]]:
    """Each seed's loss, reduced by its own global weight; 0 where a seed has nothing to learn from in this
    step.

    One call of the objective serves all seeds, as units of one never see another's. A coupled objective sees
    each seed's part alone, since what couples its units is a number for a whole step.
    """
    if "coupling" not in objective.needs:
        losses = objective(scores, step.signal)
        counted = losses.weight != 0
        weighted = losses.per_unit[counted] * losses.weight[counted].to(losses.per_unit.dtype)
        sums = weighted.new_zeros(len(step.totals)).index_add(0, step.unit_seed[counted], weighted)
        return sums / step.totals.to(sums.dtype).clamp(min=1e-30), list(states)
    found, after = [], []
    for part, state, total in zip(seed_parts(step), states, step.totals.tolist(), strict=True):
        if not total:
            found.append(scores.logp[:0].sum())  # a zero with a gradient, also where no seed learns
            after.append(state)
            continue
        loss, new = _coupled_loss(
            objective,
            _cut(scores, part),
            None if mismatched is None else _cut(mismatched, part),
            part,
            step,
            state,
            total,
        )
        found.append(loss)
        after.append(new)
    return torch.stack(found), after


def _coupled_loss(objective, scores, mismatched, part: SeedPart, step: Step, state, total):
    def piece(content: TokenScores) -> MicroBatch:
        return MicroBatch(
            content=content,
            lengths=part.lengths,
            prompt=step.prompt[part.completions],
            signal=part.signal,
            origins=(),
        )

    others = [piece(mismatched)] if mismatched is not None else []
    (coupling,), new = couple_step([piece(scores)], others, objective, lambda p: p.content, state)  # type: ignore[arg-type, return-value]
    return reduce_losses(objective(replace(scores, coupling=coupling), part.signal), total), new


def _cut(scores: TokenScores, part: SeedPart) -> TokenScores:
    flat: dict[str, Any] = {
        name: value[part.tokens]
        for name in TokenScores.__slots__
        if torch.is_tensor(value := getattr(scores, name)) and name != "lengths"
    }
    return TokenScores(lengths=part.lengths, **flat)


def _weights(objective: Objective, part: SeedPart) -> Float[Tensor, " U"]:
    if not len(part.lengths) or (isinstance(part.signal, Pairs) and not len(part.signal.chosen)):
        return torch.zeros(0)
    return objective.weights(part.lengths, part.signal)


# --- signals ---


def _pairs(world, method: Method, rewards, flipped) -> tuple[Tensor, Tensor, tuple[int, ...]]:
    """(chosen, rejected) as indices of all completions, and where each seed's pairs end."""
    num_seeds, num_groups, size = rewards.shape
    data = world.problem.data
    first, second = pair_places(rewards, method)  # [S, G, P]
    gap = rewards.gather(2, first) - rewards.gather(2, second)
    min_gap = data.min_gap if method.min_gap is None else method.min_gap
    kept = gap.abs() >= min_gap
    if data.ties == "drop" or min_gap > 0:
        kept &= gap != 0
    swapped = gap < 0
    if flipped is not None:
        swapped ^= flipped
    base = (torch.arange(num_seeds * num_groups) * size).view(num_seeds, num_groups, 1)
    chosen, rejected = torch.where(swapped, second, first) + base, torch.where(swapped, first, second) + base
    counts = kept.flatten(1).sum(1)
    return chosen[kept], rejected[kept], (0, *counts.cumsum(0).tolist())


def pair_places(rewards: Float[Tensor, "S G C"], method: Method) -> tuple[Tensor, Tensor]:
    """The two places in its group of each pair that may be formed, [S, G, P]."""
    num_seeds, num_groups, size = rewards.shape
    if method.pairs == "best_worst" or (method.objective.signal is Labels and method.labels == "best_worst"):
        return rewards.argmax(-1, keepdim=True), rewards.argmin(-1, keepdim=True)
    first, second = torch.triu_indices(size, size, offset=1)
    return first.expand(num_seeds, num_groups, -1), second.expand(num_seeds, num_groups, -1)


def _labels(world, method: Method, rewards, flipped) -> tuple[Tensor, Tensor]:
    """(which completions, their labels), seed by seed; a completion appears once for each pair that it
    is in.
    """
    if method.labels == "threshold":
        index, label = (
            torch.arange(rewards.numel()),
            torch.where(rewards.flatten() >= method.threshold, 1, -1),
        )
    else:
        chosen, rejected, _ = _pairs(world, method, rewards, flipped)
        index = torch.stack([chosen, rejected], dim=1).flatten()
        label = torch.tensor([1, -1]).repeat(len(chosen))
    if method.only != "both":
        kept = label == (1 if method.only == "preferred" else -1)
        index, label = index[kept], label[kept]
    return index, label


def _taken(tokens: CompletionTokens, index: Int[Tensor, " K"]) -> CompletionTokens:
    """The tokens of some completions, which may appear more than once."""
    starts = tokens.lengths.cumsum(0) - tokens.lengths
    lengths = tokens.lengths[index]
    offset = torch.arange(int(lengths.sum())) - torch.repeat_interleave(lengths.cumsum(0) - lengths, lengths)
    place = torch.repeat_interleave(starts[index], lengths) + offset
    return CompletionTokens(row=tokens.row[place], target=tokens.target[place], lengths=lengths)


# --- scores ---


def token_scores(
    logits: Tensor, ref: Tensor, behaviour: Tensor | None, tokens: CompletionTokens, needs: frozenset[str]
) -> TokenScores:
    """What an objective wants to know of each token, from the policy's logits [S, rows, V] and the
    log-probabilities of the reference and of the policy that sampled. There is no critic: values are 0.
    """
    num_outcomes = logits.shape[-1]
    logp_rows = logits.log_softmax(-1).reshape(-1, num_outcomes)
    ref_rows = ref.reshape(-1, num_outcomes)
    at = tokens.row * num_outcomes + tokens.target

    def of_token(rows: Tensor) -> Tensor:
        return rows.reshape(-1).index_select(0, at)

    def of_row(values: Tensor) -> Tensor:
        return values.index_select(0, tokens.row)

    def no_critic() -> Tensor:
        return torch.zeros(len(at), dtype=logits.dtype)

    makers = {
        "ref_logp": lambda: of_token(ref_rows).detach(),
        "behaviour_logp": lambda: of_token(ref_rows if behaviour is None else behaviour).detach(),
        "entropy": lambda: of_row(-(logp_rows.exp() * logp_rows).sum(-1)),
        "target_logit": lambda: of_token(logits),
        "log_normalizer": lambda: of_row(logits.reshape(-1, num_outcomes).logsumexp(-1)),
        "log_collision": lambda: of_row((2 * logp_rows).logsumexp(-1)).detach(),
        "ref_entropy_share": lambda: (
            of_row(-(ref_rows.exp() * ref_rows).sum(-1)) / torch.tensor(float(num_outcomes)).log()
        ),
        "kl_from_ref": lambda: of_row((ref_rows.exp() * (ref_rows - logp_rows)).sum(-1)),
        "kl_to_ref": lambda: of_row((logp_rows.exp() * (logp_rows - ref_rows)).sum(-1)),
        "value": no_critic,
        "behaviour_value": no_critic,
    }
    found: dict[str, Any] = {name: make() for name, make in makers.items() if name in needs}
    return TokenScores(logp=of_token(logp_rows), lengths=tokens.lengths, **found)
