"""DPO as a good engineer writes it in an hour: the opponent of `pair_training.py` beside TRL.

Padded micro-batches of pairs of like length, the plain Hugging Face forward, the head at the positions of
answers only, reference log-probabilities computed once. No packing, no shared prompts, no chunks.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import PreTrainedModel

MICRO_BATCH_TOKENS = 2048  # padded positions at once
BETA = 0.1

Pair = tuple[list[int], list[int], list[int]]
"""Token ids of prompt, chosen, rejected."""


def micro_batches(pairs: Sequence[Pair]) -> list[list[int]]:
    """Pairs (by index) of like length, together within the budget of padded positions."""
    length = [len(prompt) + max(len(chosen), len(rejected)) for prompt, chosen, rejected in pairs]
    batches: list[list[int]] = []
    for index in sorted(range(len(pairs)), key=lambda i: -length[i]):
        if not batches or 2 * length[batches[-1][0]] * (len(batches[-1]) + 1) > MICRO_BATCH_TOKENS:
            batches.append([])
        batches[-1].append(index)
    return batches


def answer_logps(model: PreTrainedModel, pairs: Sequence[Pair]) -> Tensor:
    """[2, pairs]: summed log-probabilities of the chosen and of the rejected answers."""
    rows = [
        prompt + answer for side in (1, 2) for prompt, answer in ((pair[0], pair[side]) for pair in pairs)
    ]
    starts = [len(pair[0]) for _ in (1, 2) for pair in pairs]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows], device=model.device)
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=model.device)
    hidden = model.model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    places = [(r, t) for r, row in enumerate(rows) for t in range(starts[r], len(row))]
    r, t = torch.tensor(places, device=model.device).unbind(1)
    logps = model.lm_head(hidden[r, t - 1]).float().log_softmax(-1).gather(1, ids[r, t][:, None])[:, 0]
    return torch.zeros(len(rows), device=model.device).index_add(0, r, logps).view(2, -1)


@torch.no_grad()
def reference_logps(model: PreTrainedModel, pairs: Sequence[Pair]) -> Tensor:
    """[2, pairs]"""
    found = torch.zeros(2, len(pairs), device=model.device)
    for chosen in micro_batches(pairs):
        found[:, chosen] = answer_logps(model, [pairs[i] for i in chosen])
    return found


def step(
    model: PreTrainedModel, optimizer: torch.optim.Optimizer, pairs: Sequence[Pair], reference: Tensor
) -> float:
    """One update on all pairs; returns the loss."""
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    for chosen in micro_batches(pairs):
        ratio = answer_logps(model, [pairs[i] for i in chosen]) - reference[:, chosen]
        loss = -logsigmoid(BETA * (ratio[0] - ratio[1])).sum() / len(pairs)
        loss.backward()
        total += loss.item()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()
    return total
