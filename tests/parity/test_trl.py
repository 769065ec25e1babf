"""Parity with TRL 1.16's loss code, at a policy that is not the reference, in fp32; and where the two depart."""

from importlib.metadata import version

import pytest
import torch

from preftune.objectives.apo import APODown, APOZero
from preftune.objectives.bco_pair import BCOPair
from preftune.objectives.cpo import CPO
from preftune.objectives.discopop import DiscoPOP
from preftune.objectives.dpo import DPO
from preftune.objectives.exo import EXO
from preftune.objectives.f_dpo import FDPO
from preftune.objectives.hinge import Hinge
from preftune.objectives.ipo import IPO
from preftune.objectives.length import LDDPO, LNDPO
from preftune.objectives.nca import NCA, InfoNCA
from preftune.objectives.orpo import ORPO
from preftune.objectives.robust_dpo import RobustDPO
from preftune.objectives.rpo import RPO
from preftune.objectives.simpo import AlphaPO, SimPO
from preftune.objectives.sppo import SPPO
from tests.parity.trl_losses import (
    COMMON,
    assert_parity,
    cpo_batch,
    dpo_batch,
    kto_batch,
    models,
    ours,
    random_examples,
    theirs,
    tiny_dataset,
    tokenizer,
)

pytestmark = [pytest.mark.filterwarnings("ignore:.*gradient_checkpointing.* is deprecated:FutureWarning")]
RAGGED = random_examples(3, chosen_lengths=(5, 2, 7), rejected_lengths=(3, 6, 1))
LEVEL = random_examples(4, chosen_lengths=(4, 4, 4), rejected_lengths=(3, 6, 1))  # token mean = mean of means


def test_the_version_is_the_one_that_was_read():
    assert version("trl") == "1.16.0"


# --- DPOTrainer ---


@pytest.fixture(scope="module")
def dpo(tmp_path_factory):
    """(trainer, policy, reference); each test sets what TRL's constructor would copy from the config."""
    from trl import DPOConfig, DPOTrainer

    policy, reference = models()
    data = tiny_dataset(chosen=["w5", "w6"], rejected=["w7", "w8"])
    args = DPOConfig(output_dir=str(tmp_path_factory.mktemp("dpo")), **COMMON)
    trainer = DPOTrainer(policy, reference, args=args, train_dataset=data, processing_class=tokenizer())
    return trainer, policy, reference


def trl_dpo(
    dpo,
    examples,
    loss_type="sigmoid",
    *,
    beta,
    label_smoothing=0.0,
    ld_alpha=None,
    divergence="reverse_kl",
    alpha=1.0,
    tau=0.05,
    loss_types=None,
    loss_weights=None,
):
    trainer, policy, _ = dpo
    trainer.loss_types, trainer.loss_weights = loss_types or [loss_type], loss_weights or [1.0]
    trainer.beta, trainer.label_smoothing, trainer.ld_alpha = beta, label_smoothing, ld_alpha
    trainer.f_divergence_type, trainer.f_alpha_divergence_coef = divergence, alpha
    trainer.args.discopop_tau = tau
    return theirs(lambda: trainer._compute_loss(policy, dpo_batch(examples), False), policy)


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (DPO(beta=0.4), dict(beta=0.4)),
        (RobustDPO(beta=0.4, label_smoothing=0.2), dict(loss_type="robust", beta=0.4, label_smoothing=0.2)),
        (LNDPO(beta=3.0), dict(loss_type="sigmoid_norm", beta=3.0)),
        (LDDPO(beta=0.4, alpha=0.3), dict(beta=0.4, ld_alpha=0.3)),
        (FDPO(beta=0.4, divergence="forward_kl"), dict(beta=0.4, divergence="forward_kl")),
        (FDPO(beta=0.4, divergence="js"), dict(beta=0.4, divergence="js_divergence")),
        (
            FDPO(beta=0.4, divergence="alpha", alpha=0.5),
            dict(beta=0.4, divergence="alpha_divergence", alpha=0.5),
        ),
        (
            FDPO(beta=0.4, divergence="alpha", alpha=0.3),
            dict(beta=0.4, divergence="alpha_divergence", alpha=0.7),
        ),
        (IPO(tau=0.4), dict(loss_type="ipo", beta=0.4)),
        (Hinge(beta=0.4), dict(loss_type="hinge", beta=0.4)),
        (EXO(beta=0.4, label_smoothing=0.01), dict(loss_type="exo_pair", beta=0.4, label_smoothing=0.01)),
        (NCA(beta=0.4, reward_temperature=0.0), dict(loss_type="nca_pair", beta=0.4)),
        (InfoNCA(beta=0.4, reward_temperature=0.0), dict(beta=0.4)),
        (BCOPair(beta=0.4), dict(loss_type="bco_pair", beta=0.4)),
        (APOZero(beta=0.4), dict(loss_type="apo_zero", beta=0.4)),
        (APODown(beta=0.4), dict(loss_type="apo_down", beta=0.4)),
        (DiscoPOP(beta=0.4, tau=0.3), dict(loss_type="discopop", beta=0.4, tau=0.3)),
        (SPPO(beta=0.4, scale=1.0), dict(loss_type="sppo_hard", beta=0.4)),
    ],
    ids=lambda value: (
        type(value).__name__ if not isinstance(value, dict) else value.get("loss_type", "sigmoid")
    ),
)
def test_dpo_trainer(dpo, objective, settings):
    assert_parity(ours(objective, RAGGED, *dpo[1:]), trl_dpo(dpo, RAGGED, **settings))


def test_trl_ignores_label_smoothing_of_sigmoid(dpo):
    """Ours is the mixture of the two losses; TRL's stays DPO's."""
    smoothed = ours(DPO(beta=0.4, label_smoothing=0.2), RAGGED, *dpo[1:])[0]
    plain = ours(DPO(beta=0.4), RAGGED, *dpo[1:])[0]
    trl = trl_dpo(dpo, RAGGED, beta=0.4, label_smoothing=0.2)[0]
    torch.testing.assert_close(trl, plain, rtol=1e-5, atol=1e-6)
    assert abs((smoothed - trl).item()) > 1e-2


def test_trl_alpha_is_one_minus_alpha_of_the_paper(dpo):
    mine = ours(FDPO(beta=0.4, divergence="alpha", alpha=0.3), RAGGED, *dpo[1:])[0]
    trl = trl_dpo(dpo, RAGGED, beta=0.4, divergence="alpha_divergence", alpha=0.3)[0]
    assert abs((mine - trl).item()) > 1e-2


def test_trl_ipo_is_the_mean_and_not_the_sum(dpo):
    mine = ours(IPO(tau=0.4, reduction="sum"), RAGGED, *dpo[1:])[0]
    assert abs((mine - trl_dpo(dpo, RAGGED, "ipo", beta=0.4)[0]).item()) > 1e-2


def test_trl_sppo_has_twice_the_loss_of_the_paper(dpo):
    value, gradient = ours(SPPO(beta=0.4), RAGGED, *dpo[1:])
    assert_parity((2 * value, 2 * gradient), trl_dpo(dpo, RAGGED, "sppo_hard", beta=0.4))


def test_rpo_is_sigmoid_plus_sft_where_chosen_lengths_are_equal(dpo):
    """TRL's likelihood is a mean over all chosen tokens of the micro-batch, ours a mean per completion."""
    both = dict(beta=0.4, loss_types=["sigmoid", "sft"], loss_weights=[1.0, 0.7])
    objective = RPO(beta=0.4, nll_weight=0.7)
    assert_parity(ours(objective, LEVEL, *dpo[1:]), trl_dpo(dpo, LEVEL, **both))
    assert abs((ours(objective, RAGGED, *dpo[1:])[0] - trl_dpo(dpo, RAGGED, **both)[0]).item()) > 1e-3


# --- KTOTrainer ---


def test_apo_zero_on_singles(tmp_path):
    from trl import KTOConfig, KTOTrainer

    policy, reference = models()
    data = tiny_dataset(completion=["w5", "w6"], label=[True, False])
    args = KTOConfig(output_dir=str(tmp_path), loss_type="apo_zero_unpaired", beta=0.4, **COMMON)
    trainer = KTOTrainer(policy, reference, args=args, train_dataset=data, processing_class=tokenizer())
    trl = theirs(lambda: trainer._compute_loss(policy, kto_batch(RAGGED), False), policy)
    assert_parity(ours(APOZero(beta=0.4, unit="completion"), RAGGED, policy, reference), trl)


# --- CPOTrainer ---


@pytest.fixture(scope="module")
def cpo(tmp_path_factory):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    policy, reference = models()
    data = tiny_dataset(chosen=["w5", "w6"], rejected=["w7", "w8"])
    args = CPOConfig(output_dir=str(tmp_path_factory.mktemp("cpo")), **COMMON)
    return CPOTrainer(policy, args=args, train_dataset=data, processing_class=tokenizer()), policy, reference


def trl_cpo(cpo, examples, loss_type, *, beta, cpo_alpha=0.0, gamma=0.5, alpha=0.0):
    trainer, policy, _ = cpo
    trainer.loss_type, trainer.beta, trainer.cpo_alpha = loss_type, beta, cpo_alpha
    trainer.simpo_gamma, trainer.alpha = gamma, alpha
    return theirs(lambda: trainer.get_batch_loss_metrics(policy, cpo_batch(examples))[0], policy)


@pytest.mark.parametrize(
    ("objective", "settings"),
    [
        (SimPO(beta=1.5, gamma=0.4), dict(loss_type="simpo", beta=1.5, gamma=0.4)),
        (AlphaPO(beta=1.5, gamma=0.4, alpha=0.25), dict(loss_type="simpo", beta=1.5, gamma=0.4, alpha=0.25)),
        (AlphaPO(beta=1.5, gamma=0.4, alpha=-0.3), dict(loss_type="simpo", beta=1.5, gamma=0.4, alpha=-0.3)),
        (CPO(beta=0.4, nll_weight=0.0), dict(loss_type="sigmoid", beta=0.4)),
    ],
)
def test_cpo_trainer(cpo, objective, settings):
    assert_parity(ours(objective, RAGGED, *cpo[1:]), trl_cpo(cpo, RAGGED, **settings))


def test_cpo_likelihood_is_trls_where_chosen_lengths_are_equal(cpo):
    """TRL's is a mean over all chosen tokens of the micro-batch, so it depends on how a step is cut; ours
    does not.
    """
    objective = CPO(beta=0.4, nll_weight=0.7)
    settings = dict(loss_type="sigmoid", beta=0.4, cpo_alpha=0.7)
    assert_parity(ours(objective, LEVEL, *cpo[1:]), trl_cpo(cpo, LEVEL, **settings))
    assert abs((ours(objective, RAGGED, *cpo[1:])[0] - trl_cpo(cpo, RAGGED, **settings)[0]).item()) > 1e-3


def test_trl_adds_likelihood_to_simpo_unless_told_not_to(cpo):
    """cpo_alpha is 1 by default: SimPO plus the likelihood of the chosen completion."""
    from trl.experimental.cpo import CPOConfig

    assert CPOConfig.__dataclass_fields__["cpo_alpha"].default == 1.0
    mine = ours(SimPO(beta=1.5, gamma=0.4), LEVEL, *cpo[1:])[0]
    likelihood = ours(CPO(nll_weight=1.0), LEVEL, *cpo[1:])[0] - ours(CPO(nll_weight=0.0), LEVEL, *cpo[1:])[0]
    trl = trl_cpo(cpo, LEVEL, "simpo", beta=1.5, gamma=0.4, cpo_alpha=1.0)[0]
    torch.testing.assert_close(mine + likelihood, trl, rtol=1e-5, atol=1e-6)


# --- ORPOTrainer ---


def test_orpo_but_for_the_prompts_likelihood(tmp_path):
    """TRL's likelihood covers prompt and completion; the odds-ratio part is ours, and so is the rest without
    prompt.
    """
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    policy, reference = models()
    data = tiny_dataset(chosen=["w5", "w6"], rejected=["w7", "w8"])
    args = ORPOConfig(output_dir=str(tmp_path), beta=0.4, **COMMON)
    trainer = ORPOTrainer(policy, args=args, train_dataset=data, processing_class=tokenizer())
    batch = cpo_batch(LEVEL)
    whole = theirs(lambda: trainer.get_batch_loss_metrics(policy, batch)[0], policy)
    likelihood = theirs(lambda: trainer.concatenated_forward(policy, batch)[4], policy)
    mine = ours(ORPO(odds_weight=0.4), LEVEL, policy, reference)
    only_nll = ours(CPO(nll_weight=1.0), LEVEL, policy, reference)
    no_nll = ours(CPO(nll_weight=0.0), LEVEL, policy, reference)
    odds = tuple(a - (b - c) for a, b, c in zip(mine, only_nll, no_nll, strict=True))
    assert_parity(odds, tuple(a - b for a, b in zip(whole, likelihood, strict=True)))
    assert abs((mine[0] - whole[0]).item()) > 1e-2
