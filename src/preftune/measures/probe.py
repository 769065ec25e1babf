"""What diagnosis reads of a model in addition to logp: logits of the target tokens, and sums of hidden states. No
gradients.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from preftune.measures.ches import Ches, ches
from preftune.model.layout import LayoutOptions, collate
from preftune.model.policy import Policy, hidden_states, micro_batches, model_head, to_device
from preftune.model.scoring import Head, head_logits, score_tokens
from preftune.types import Batch, Group

Progress = Callable[[int, int], None]
_CHUNK_ELEMENTS = 2**24  # logits at a time, where all of them are needed: 64 MiB in fp32


@dataclass(frozen=True, kw_only=True)
class TokenProbe:
    """What a model computes for one completion, float32, a number per scored token."""

    logp: np.ndarray
    logit: np.ndarray  # of the token at that position, after scale, bias and soft cap
    mean_logit: np.ndarray  # over the vocabulary at the same position
    greedy: np.ndarray  # int64: the most probable token there, of this model or of the one that was named
    greedy_logp: np.ndarray  # of that token under this model


@torch.no_grad()
def probe_groups(
    policy: Policy,
    groups: Sequence[Group],
    options: LayoutOptions,
    progress: Progress,
    of: Sequence[Sequence[TokenProbe]] | None = None,
) -> list[list[TokenProbe]]:
    """[group][completion]; `progress` gets (done, of all groups). `of` is another model's, whose most probable
    tokens are looked at instead of this model's.
    """
    found: list[list[TokenProbe]] = [[] for _ in groups]
    head = model_head(policy.model)
    for indices, batch, hidden in _hidden_batches(policy, groups, options, progress):
        with torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.precision == "bf16"):
            scores = score_tokens(hidden, head, batch.targets, wanted=frozenset({"target_logit"}))
            if of is None:
                greedy = most_probable(hidden, head)
            else:
                known = [one.greedy for index in indices for one in of[index]]
                greedy = torch.from_numpy(np.concatenate(known)).to(hidden.device)
            greedy_logp = score_tokens(hidden, head, greedy).logp
        assert scores.target_logit is not None
        columns = [scores.logp, scores.target_logit, mean_logit(hidden, head), greedy_logp]
        counts = batch.lengths.tolist()
        parts = zip(
            *(column.float().cpu().split(counts) for column in columns),
            greedy.cpu().split(counts),
            strict=True,
        )
        for index in indices:
            for _ in groups[index].completions:
                logp, logit, mean, best_logp, best = (part.numpy() for part in next(parts))
                found[index].append(
                    TokenProbe(logp=logp, logit=logit, mean_logit=mean, greedy=best, greedy_logp=best_logp)
                )
    return found


@torch.no_grad()
def ches_scores(
    policy: Policy,
    groups: Sequence[Group],
    pairs: Sequence[Sequence[tuple[int, int]]],
    options: LayoutOptions,
    progress: Progress,
) -> list[list[Ches]]:
    """The CHES of each group's pairs (chosen, rejected). Of a trajectory, only positions that predict scored
    tokens count.
    """
    found: list[list[Ches]] = [[] for _ in groups]
    for indices, batch, hidden in _hidden_batches(policy, groups, options, progress):
        sums = iter(
            part.float().cpu().double().sum(0).numpy() for part in hidden.split(batch.lengths.tolist())
        )
        for index in indices:
            total = [next(sums) for _ in groups[index].completions]
            count = groups[index].num_scored
            found[index] = [ches(total[c], total[r], count[c], count[r]) for c, r in pairs[index]]
    return found


@torch.no_grad()
def mean_logit(hidden: Float[Tensor, "N H"], head: Head) -> Float[Tensor, " N"]:
    """The mean over the vocabulary of the logits at each position, in fp32 or better.

    Without a soft cap logits are linear in the hidden state, so their mean is that of one averaged row of the
    head.
    """
    if head.softcap is None:
        kind = torch.promote_types(hidden.dtype, torch.float32)
        mean = hidden.to(kind) @ head.weight.to(kind).mean(0)
        return head.scale * (mean if head.bias is None else mean + head.bias.to(kind).mean())
    return torch.cat([head_logits(part, head).mean(1) for part in _chunks(hidden, head)])


@torch.no_grad()
def most_probable(hidden: Float[Tensor, "N H"], head: Head) -> Int[Tensor, " N"]:
    """The token of the highest logit at each position."""
    return torch.cat([head_logits(part, head).argmax(1) for part in _chunks(hidden, head)])


def _chunks(hidden: Float[Tensor, "N H"], head: Head) -> Sequence[Float[Tensor, "n H"]]:
    return hidden.split(max(1, _CHUNK_ELEMENTS // len(head.weight)))


def _hidden_batches(
    policy: Policy, groups: Sequence[Group], options: LayoutOptions, progress: Progress
) -> Iterator[tuple[list[int], Batch, Float[Tensor, "N H"]]]:
    """(group indices, their batch, the hidden states that predict its completion tokens), one micro-batch
    after another.
    """
    for indices, part in micro_batches(policy, groups, options, progress):
        batch = to_device(collate(part, options, policy.sharing), policy.device)
        with (
            torch.no_grad(),
            torch.autocast(policy.device.type, torch.bfloat16, enabled=policy.precision == "bf16"),
        ):
            hidden = policy.run(
                lambda batch=batch: hidden_states(policy.model, batch, policy.sharing)[batch.predict_at]
            )
        yield indices, batch, hidden
