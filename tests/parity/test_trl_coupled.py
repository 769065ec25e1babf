"""Parity with TRL 1.16's KTO, AOT and dynamic fine-tuning, the whole step being one micro-batch of TRL's; and
departures.

TRL 1.16 has no BCO trainer any more.
"""

import pytest
import torch

from preftune.objectives.aot import AOT
from preftune.objectives.dpo import DPO
from preftune.objectives.dynamic_ft import DynamicFT
from preftune.objectives.kto import KTO
from tests.parity.test_trl import RAGGED, assert_parity, dpo, trl_dpo  # noqa: F401  (dpo is a fixture)
from tests.parity.trl_losses import (
    COMMON,
    kto_batch,
    models,
    ours,
    padded,
    random_examples,
    scores_of,
    theirs,
    tiny_dataset,
    tokenizer,
)

pytestmark = [pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")]

# --- KTO ---

SINGLES = [(e.prompt, e.chosen) for e in RAGGED] + [(e.prompt, e.rejected) for e in RAGGED]
# As TRL makes them: each prompt with the completion of the row before.
SHIFTED = [(prompt, SINGLES[row - 1][1]) for row, (prompt, _) in enumerate(SINGLES)]


def trl_kto(tmp_path, policy, reference, **settings):
    from trl import KTOConfig, KTOTrainer

    data = tiny_dataset(completion=["w5", "w6"], label=[True, False])
    args = KTOConfig(output_dir=str(tmp_path), loss_type="kto", **settings, **COMMON)
    trainer = KTOTrainer(policy, reference, args=args, train_dataset=data, processing_class=tokenizer())
    batch = kto_batch(RAGGED) | {
        "KL_input_ids": padded([p + c for p, c in SHIFTED], 0),
        "KL_attention_mask": padded([[1] * len(p + c) for p, c in SHIFTED], 0),
        "KL_completion_mask": padded([[0] * len(p) + [1] * len(c) for p, c in SHIFTED], 0),
    }
    return theirs(lambda: trainer._compute_loss(policy, batch, False), policy)


@pytest.mark.parametrize("above", [True, False], ids=["z0 above zero", "z0 zero"])
def test_kto(tmp_path, above):
    """The mean log-ratio of the mismatched completions changes its sign when policy and reference change
    places.
    """
    objective = KTO(beta=0.4, desirable_weight=1.3, undesirable_weight=0.6)
    pair = models()
    found = scores_of(objective, SHIFTED, *pair)
    if bool((found.logp - found.ref_logp).sum() > 0) != above:
        pair = pair[::-1]
    settings = dict(beta=0.4, desirable_weight=1.3, undesirable_weight=0.6)
    mine = ours(objective, RAGGED, *pair, mismatched=SHIFTED)
    assert_parity(mine, trl_kto(tmp_path, *pair, **settings))


# --- AOT ---

# Of nearly equal lengths, or the margins of policy and reference would have one order.
MIXED = random_examples(5, chosen_lengths=(3, 4, 3, 5, 4), rejected_lengths=(4, 3, 3, 5, 4))


@pytest.mark.parametrize("pairing", ["paired", "unpaired"])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.2])
def test_aot(dpo, pairing, label_smoothing):  # noqa: F811
    objective = AOT(beta=0.4, pairing=pairing, label_smoothing=label_smoothing)
    kind = "aot" if pairing == "paired" else "aot_unpaired"
    trl = trl_dpo(dpo, MIXED, kind, beta=0.4, label_smoothing=label_smoothing)
    mine = ours(objective, MIXED, *dpo[1:])
    assert_parity(mine, trl)
    assert (
        abs((mine[0] - ours(DPO(beta=0.4, label_smoothing=label_smoothing), MIXED, *dpo[1:])[0]).item())
        > 1e-2
    )


def test_trl_sorts_within_a_micro_batch(dpo):  # noqa: F811
    """With one pair in each, its AOT is DPO; ours is that of the step, however it is cut."""
    pieces = [trl_dpo(dpo, [example], "aot", beta=0.4)[0] for example in MIXED]
    torch.testing.assert_close(
        sum(pieces) / len(pieces), ours(DPO(beta=0.4), MIXED, *dpo[1:])[0], rtol=1e-5, atol=1e-6
    )


# --- dynamic fine-tuning ---


def test_dynamic_ft(tmp_path):
    from trl import SFTConfig, SFTTrainer

    policy, reference = models()
    data = tiny_dataset(completion=["w5", "w6"])
    args = SFTConfig(output_dir=str(tmp_path), loss_type="dft", **COMMON)
    trainer = SFTTrainer(policy, args=args, train_dataset=data, processing_class=tokenizer())
    rows = [(e.prompt, e.chosen) for e in RAGGED]
    batch = {
        "input_ids": padded([p + c for p, c in rows], 0),
        "attention_mask": padded([[1] * len(p + c) for p, c in rows], 0),
        "labels": padded([[-100] * len(p) + c for p, c in rows], -100),
    }
    trl = theirs(lambda: trainer.compute_loss(policy, dict(batch)), policy)
    assert_parity(ours(DynamicFT(), RAGGED, policy, reference), trl)
