"""TRL's own loss code, run on a tiny Llama in memory: ragged random pairs in, loss and gradient out."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from datasets import Dataset
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from preftune.objectives import Coupled, Objective, reduce_losses
from preftune.types import Labels, Pairs, Rewards, Signal, StepView, TokenScores
from tests.models import VOCAB, tiny_model

COMMON = dict(
    report_to=[],
    use_cpu=True,
    per_device_train_batch_size=2,
    max_length=64,
    disable_tqdm=True,
    bf16=False,
    activation_checkpointing=False,
)


@dataclass(frozen=True)
class Example:
    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


def random_examples(
    seed: int, chosen_lengths: Sequence[int], rejected_lengths: Sequence[int]
) -> list[Example]:
    random = torch.Generator().manual_seed(seed)

    def ids(length: int) -> list[int]:
        return torch.randint(3, VOCAB, (length,), generator=random).tolist()

    return [
        Example(prompt=ids(2 + n % 3), chosen=ids(n), rejected=ids(m))
        for n, m in zip(chosen_lengths, rejected_lengths, strict=True)
    ]


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(3, VOCAB)} | {"<pad>": 0, "<bos>": 1, "<eos>": 2}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="<pad>")), pad_token="<pad>", eos_token="<eos>"
    )


def tiny_dataset(**columns: object) -> Dataset:
    return Dataset.from_dict({"prompt": ["w3", "w4"]} | columns)


def models() -> tuple[PreTrainedModel, PreTrainedModel]:
    """Policy and reference with different weights: no log-ratio is zero."""
    return tiny_model(seed=1, std=0.12), tiny_model(seed=2, std=0.12)


# --- batches as TRL's collators make them ---


def padded(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    width = max(map(len, rows))
    return torch.tensor([[*row, *[value] * (width - len(row))] for row in rows])


def dpo_batch(examples: Sequence[Example]) -> dict[str, Tensor]:
    rows = [(e.prompt, e.chosen) for e in examples] + [(e.prompt, e.rejected) for e in examples]
    return {
        "input_ids": padded([p + c for p, c in rows], 0),
        "attention_mask": padded([[1] * len(p + c) for p, c in rows], 0),
        "completion_mask": padded([[0] * len(p) + [1] * len(c) for p, c in rows], 0),
    }


def kto_batch(examples: Sequence[Example]) -> dict[str, Tensor]:
    batch = dpo_batch(examples)
    return batch | {"label": torch.tensor([True] * len(examples) + [False] * len(examples))}


def cpo_batch(examples: Sequence[Example]) -> dict[str, Tensor]:
    batch = {}
    for side in ("chosen", "rejected"):
        rows = [(e.prompt, getattr(e, side)) for e in examples]
        batch[f"{side}_input_ids"] = padded([p + c for p, c in rows], 0)
        batch[f"{side}_attention_mask"] = padded([[1] * len(p + c) for p, c in rows], 0)
        batch[f"{side}_labels"] = padded([[-100] * len(p) + c for p, c in rows], -100)
    return batch


# --- the two sides ---


def gradient_of(loss: Tensor, model: PreTrainedModel) -> Tensor:
    gradients = torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
    return torch.cat([g.flatten() for g in gradients if g is not None])


def completion_logp(model: PreTrainedModel, prompt: list[int], completion: list[int]) -> Tensor:
    """Log-probabilities of the completion's tokens, one unpadded sequence at a time."""
    ids = torch.tensor([prompt + completion])
    logp = model(ids).logits[0, :-1].log_softmax(-1)
    return logp.gather(1, ids[0, 1:, None])[len(prompt) - 1 :, 0]


Completion = tuple[list[int], list[int]]
"""Prompt and completion."""


def scores_of(
    objective: Objective,
    completions: Sequence[Completion],
    policy: PreTrainedModel,
    reference: PreTrainedModel,
) -> TokenScores:
    with torch.no_grad():
        ref_logp = torch.cat([completion_logp(reference, p, c) for p, c in completions])
    return TokenScores(
        logp=torch.cat([completion_logp(policy, p, c) for p, c in completions]),
        lengths=torch.tensor([len(c) for _, c in completions]),
        ref_logp=ref_logp if "ref_logp" in objective.needs else None,
        behaviour_logp=ref_logp if "behaviour_logp" in objective.needs else None,
    )


def ours(
    objective: Objective,
    examples: Sequence[Example],
    policy: PreTrainedModel,
    reference: PreTrainedModel,
    mismatched: Sequence[Completion] = (),
) -> tuple[Tensor, Tensor]:
    """(loss, gradient of the policy's parameters) of a step; completion 2i is chosen, 2i + 1 rejected."""
    completions = [(e.prompt, c) for e in examples for c in (e.chosen, e.rejected)]
    scores = scores_of(objective, completions, policy, reference)
    even = torch.arange(0, len(completions), 2)
    signal = {
        Pairs: Pairs(chosen=even, rejected=even + 1),
        Labels: Labels(label=1 - 2 * (torch.arange(len(completions)) % 2)),
        Rewards: Rewards(
            reward=1.0 - torch.arange(len(completions)) % 2, group=torch.arange(len(completions)) // 2
        ),
    }[objective.signal]
    if isinstance(objective, Coupled):
        others = scores_of(objective, mismatched, policy, reference) if mismatched else None
        scores = coupled(objective, scores, signal, others)
    loss = reduce_losses(objective(scores, signal), float(objective.weights(scores.lengths, signal).sum()))
    return loss, gradient_of(loss, policy)


@torch.no_grad()
def coupled(
    objective: Coupled, scores: TokenScores, signal: Signal, mismatched: TokenScores | None
) -> TokenScores:
    """The scores with what couples them, as the first step of a run."""
    prompt = torch.arange(len(scores.lengths)) // 2
    view = StepView(
        lengths=scores.lengths, prompt=prompt, signal=signal, scores=scores, mismatched=mismatched
    )
    return replace(scores, coupling=objective.couple(view, objective.initial_state())[0])


def theirs(loss: Callable[[], Tensor], policy: PreTrainedModel) -> tuple[Tensor, Tensor]:
    value = loss()
    return value, gradient_of(value, policy)


def assert_parity(mine, other):
    torch.testing.assert_close(mine[0], other[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(mine[1], other[1], rtol=1e-5, atol=1e-5 * other[1].abs().max().item())
