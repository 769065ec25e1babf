"""Parity with TRL 1.16's WPO weighting, our scores going the whole way from hidden states; and where the two
depart.
"""

from dataclasses import replace

import pytest
import torch

from preftune.model.policy import model_head
from preftune.model.scoring import score_tokens
from preftune.objectives import Objective, reduce_losses
from preftune.objectives.wpo import WPO
from preftune.types import Losses, Pairs, TokenScores
from tests.parity.trl_losses import (
    COMMON,
    Example,
    dpo_batch,
    gradient_of,
    models,
    random_examples,
    theirs,
    tiny_dataset,
    tokenizer,
)

pytestmark = [pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")]
RAGGED = random_examples(3, chosen_lengths=(5, 2, 7), rejected_lengths=(3, 6, 1))


@pytest.fixture(scope="module")
def weighted(tmp_path_factory):
    """(trainer, policy, reference) with WPO's weights."""
    from trl import DPOConfig, DPOTrainer

    policy, reference = models()
    data = tiny_dataset(chosen=["w5", "w6"], rejected=["w7", "w8"])
    args = DPOConfig(output_dir=str(tmp_path_factory.mktemp("wpo")), use_weighting=True, beta=0.4, **COMMON)
    trainer = DPOTrainer(policy, reference, args=args, train_dataset=data, processing_class=tokenizer())
    return trainer, policy, reference


def scores_of(model, prompt: list[int], completion: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """(logp, log collision) of the completion's tokens, by our own operation on the hidden states."""
    ids = torch.tensor([prompt + completion])
    hidden = model.get_decoder()(ids).last_hidden_state[0, len(prompt) - 1 : -1]
    found = score_tokens(
        hidden, model_head(model), torch.tensor(completion), wanted=frozenset({"log_collision"})
    )
    return found.logp, found.log_collision


def mine(
    objective: Objective, examples: list[Example], policy, reference
) -> tuple[Losses, torch.Tensor, torch.Tensor]:
    """(losses, loss, gradient); completion 2i is chosen, 2i + 1 rejected."""
    completions = [(e.prompt, c) for e in examples for c in (e.chosen, e.rejected)]
    found = [scores_of(policy, p, c) for p, c in completions]
    with torch.no_grad():
        ref_logp = torch.cat([scores_of(reference, p, c)[0] for p, c in completions])
    scores = TokenScores(
        logp=torch.cat([logp for logp, _ in found]),
        log_collision=torch.cat([collision for _, collision in found]),
        ref_logp=ref_logp,
        lengths=torch.tensor([len(c) for _, c in completions]),
    )
    even = torch.arange(0, len(completions), 2)
    losses = objective(scores, Pairs(chosen=even, rejected=even + 1))
    loss = reduce_losses(losses, float(losses.weight.sum()))
    return losses, loss, gradient_of(loss, policy)


def likely(model, examples: list[Example]) -> list[Example]:
    """The same prompts, both completions of the policy's likeliest tokens: above what it draws on average,
    and D = 0.
    """

    def greedy(prompt: list[int], length: int) -> list[int]:
        ids = list(prompt)
        for _ in range(length):
            ids.append(int(model(torch.tensor([ids])).logits[0, -1].argmax()))
        return ids[len(prompt) :]

    found = [greedy(e.prompt, len(e.chosen)) for e in examples]
    return [replace(e, chosen=one, rejected=one) for e, one in zip(examples, found, strict=True)]


def test_wpo_below_the_bound(weighted):
    trainer, policy, reference = weighted
    losses, loss, gradient = mine(WPO(beta=0.4), RAGGED, policy, reference)
    assert bool((losses.metrics["pair_weight"] < 1).all())
    trl = theirs(lambda: trainer._compute_loss(policy, dpo_batch(RAGGED), False), policy)
    torch.testing.assert_close(loss, trl[0], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient, trl[1], rtol=1e-5, atol=1e-5 * trl[1].abs().max().item())


def test_trl_does_not_bound_the_weight(weighted):
    """The authors' code does: likely pairs weigh 1 there and here, and more in TRL."""
    trainer, policy, reference = weighted
    examples = likely(policy, RAGGED)
    losses, loss, _ = mine(WPO(beta=0.4), examples, policy, reference)
    assert losses.metrics["pair_weight"].tolist() == [1.0] * 3
    torch.testing.assert_close(loss, torch.log(torch.tensor(2.0)), rtol=1e-5, atol=1e-6)
    trl = trainer._compute_loss(policy, dpo_batch(examples), False)
    assert trl.item() > 1.2 * loss.item()
    weights = []
    for e in examples:
        logp, collision = scores_of(policy, e.prompt, e.chosen)
        weights.append((2 * (logp - collision).mean()).exp())
    torch.testing.assert_close(trl, loss * torch.stack(weights).mean(), rtol=1e-5, atol=1e-6)
