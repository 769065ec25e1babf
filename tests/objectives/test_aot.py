"""AOT: three pairs of one token each, log-ratios 1, -1, 3 of the chosen and 2, -3, 0 of the rejected
completions.
"""

import pytest
import torch

from preftune.errors import StorageError
from preftune.objectives.aot import AOT
from preftune.objectives.dpo import DPO
from preftune.types import Coupling, Pairs
from tests.objectives.coupled import couple, coupled, make_step_scores, pairs_of
from tests.objectives.golden import gradient, log_sigma, sigma

LOGP = [-1.0, -3.0, -2.0, -4.0, -1.0, -6.0]  # margins 2, 2, 5
REF = [-2.0, -5.0, -1.0, -1.0, -4.0, -6.0]  # margins 3, 0, 2
PAIRED, UNPAIRED = AOT(beta=0.5), AOT(beta=0.5, pairing="unpaired")


def step(logp=LOGP, ref=REF, lengths=None):
    return make_step_scores(logp, ref, lengths)


def smoothed(margin, e):
    return -(1 - e) * log_sigma(margin) - e * log_sigma(-margin)


def slope(margin, e):
    return -(1 - e) * sigma(-margin) + e * sigma(margin)


@pytest.mark.parametrize("e", [0.0, 0.2])
def test_paired_golden(e):
    """Margins 2, 2, 5 meet 0, 2, 3: the tie goes by prompt, so the first pair has rank 1. Differences 2, 0,
    2.
    """
    objective = AOT(beta=0.5, label_smoothing=e)
    scores = coupled(objective, step(), pairs_of(3))
    assert scores.coupling.pair["reference_margin"].tolist() == [0, 2, 3]
    losses = objective(scores, pairs_of(3))
    assert losses.per_unit.tolist() == pytest.approx([smoothed(m, e) for m in (1.0, 0.0, 1.0)], rel=1e-12)
    slopes = [0.5 * slope(m, e) for m in (1.0, 0.0, 1.0)]
    assert gradient(losses, scores) == pytest.approx([s for m in slopes for s in (m, -m)], rel=1e-9)
    assert losses.weight.tolist() == [1, 1, 1]
    assert losses.metrics["rewards/chosen"].tolist() == pytest.approx([0.5, -0.5, 1.5])
    assert losses.metrics["rewards/rejected"].tolist() == pytest.approx([1.0, -1.5, 0.0])


@pytest.mark.parametrize("e", [0.0, 0.2])
def test_unpaired_golden(e):
    """-1, 1, 3 meet -3, 0, 2: differences 2, 1, 1. A unit holds half of its chosen side's term and of its
    rejected one's.
    """
    objective = AOT(beta=0.5, pairing="unpaired", label_smoothing=e)
    scores = coupled(objective, step(), pairs_of(3))
    assert {n: v.tolist() for n, v in scores.coupling.pair.items()} == {
        "rejected": [0, -3, 2],
        "chosen": [3, -1, 1],
    }
    losses = objective(scores, pairs_of(3))
    chosen, rejected = (
        [0.5, 1.0, 0.5],
        [0.5, 1.0, 0.5],
    )  # beta times the difference, of each pair's two completions
    expected = [(smoothed(c, e) + smoothed(r, e)) / 2 for c, r in zip(chosen, rejected, strict=True)]
    assert losses.per_unit.tolist() == pytest.approx(expected, rel=1e-12)
    slopes = [
        s for c, r in zip(chosen, rejected, strict=True) for s in (0.5 * slope(c, e), -0.5 * slope(r, e))
    ]
    assert gradient(losses, scores) == pytest.approx(slopes, rel=1e-9)


def joint(scores, pairs, beta, paired):
    """The definition, differentiated through the sort."""
    ratio = scores.logp if paired else scores.logp - scores.ref_logp
    if paired:
        one = ratio[pairs.chosen] - ratio[pairs.rejected]
        other = scores.ref_logp[pairs.chosen] - scores.ref_logp[pairs.rejected]
    else:
        one, other = ratio[pairs.chosen], ratio[pairs.rejected]
    loss = -torch.nn.functional.logsigmoid(beta * (one.sort().values - other.sort().values)).sum()
    return loss.item(), torch.autograd.grad(loss, scores.logp)[0].tolist()


@pytest.mark.parametrize("objective", [PAIRED, UNPAIRED])
def test_value_and_gradient_are_those_of_the_joint_loss(objective):
    """Also where a completion stands in several pairs."""
    random = torch.Generator().manual_seed(0)
    logp, ref = (-5 * torch.rand(2, 8, generator=random, dtype=torch.float64)).tolist()
    pairs = Pairs(chosen=torch.tensor([0, 2, 0, 5, 6, 6]), rejected=torch.tensor([1, 3, 3, 4, 7, 4]))
    scores = coupled(objective, step(logp, ref), pairs)
    value, slopes = joint(scores, pairs, 0.5, objective.pairing == "paired")
    losses = objective(scores, pairs)
    assert losses.per_unit.sum().item() == pytest.approx(value, rel=1e-12)
    assert gradient(losses, scores) == pytest.approx(slopes, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("pairing", ["paired", "unpaired"])
def test_one_pair_is_dpo(pairing):
    objective = AOT(beta=0.3, pairing=pairing, label_smoothing=0.1)
    scores = coupled(objective, step(LOGP[:2], REF[:2], [2, 3]), pairs_of(1))
    one, other = objective(scores, pairs_of(1)), DPO(beta=0.3, label_smoothing=0.1)(scores, pairs_of(1))
    assert one.per_unit.tolist() == pytest.approx(other.per_unit.tolist(), rel=1e-12)
    assert gradient(one, scores) == pytest.approx(gradient(other, scores), rel=1e-12)


@pytest.mark.parametrize("objective", [PAIRED, UNPAIRED])
def test_ties_do_not_depend_on_the_order_of_the_groups(objective):
    """Every value of the policy is tied, those of the reference are not; prompts, and then lengths, break the
    tie.
    """
    logp, ref = [-3.0, -3.0, -3.0, -3.0, -3.0, -3.0], [-1.0, -2.0, -5.0, -3.0, -3.0, -6.0]
    if objective is UNPAIRED:
        ref = [-3.0, -2.0, -3.0, -4.0, -3.0, -6.0]
    for prompt, lengths in (([7, 7, 5, 5, 6, 6], None), ([7] * 6, [2, 2, 1, 2, 1, 1])):
        found = {}
        for order in ([0, 1, 2], [2, 0, 1], [1, 2, 0]):
            places = [place for pair in order for place in (2 * pair, 2 * pair + 1)]
            scores = step(
                [logp[i] for i in places], [ref[i] for i in places], lengths and [lengths[i] for i in places]
            )
            couplings, _ = couple(objective, scores, pairs_of(3), prompt=[prompt[i] for i in places])
            for name, values in couplings.pair.items():
                found.setdefault(name, []).append(
                    [round(values[order.index(pair)].item(), 9) for pair in range(3)]
                )
        assert all(one == values[0] for values in found.values() for one in values)
        assert any(len(set(values[0])) > 1 for values in found.values())


def test_what_it_declares():
    assert AOT().couples == {"scores"}
    found, state = couple(PAIRED, step(), pairs_of(3))
    assert isinstance(found, Coupling)
    assert (state, PAIRED.initial_state()) == ({}, {})
    with pytest.raises(StorageError, match="The state of aot does not fit"):
        couple(PAIRED, step(), pairs_of(3), {"mean": torch.zeros(())})
