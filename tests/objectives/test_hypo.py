"""HyPO: the mean of dpo over pairs plus the mean of a KL estimate over samples."""

import pytest
import torch

from preftune.objectives import reduce_losses
from preftune.objectives.dpo import DPO
from preftune.objectives.hypo import HyPO
from preftune.types import Hybrid, Pairs, StepView, TokenScores
from tests.objectives.golden import log_sigma, sigma

# Completion 0 over 1 and over 2 (of the data); 3, 5 and 6 in no pair: a sample of the policy, one of the
# data, and a sample of the policy; 4 over 1, by the policy.
HYBRID = Hybrid(
    chosen=torch.tensor([0, 0, 4]),
    rejected=torch.tensor([1, 2, 1]),
    source=torch.tensor([0, 0, 0, 1, 1, 0, 1]),
    group=torch.tensor([0, 0, 0, 0, 0, 1, 1]),
)
RATIOS = [1.0, -1.0, 0.5, 3.0, 2.0, 9.0, -1.0]


def scores(objective, signal=HYBRID, ratios=tuple(RATIOS)) -> TokenScores:
    """Completions of two tokens with the given log-ratios, and the coupling of a step that is this piece."""
    lengths = torch.full((len(ratios),), 2)
    ref = torch.full((2 * len(ratios),), -4.0).double()
    logp = (ref + torch.tensor(ratios, dtype=torch.float64).repeat_interleave(2) / 2).requires_grad_()
    view = StepView(lengths=lengths, prompt=torch.zeros(len(ratios), dtype=torch.long), signal=signal)
    coupling, state = objective.couple(view, objective.initial_state())
    assert state == objective.initial_state() == {}
    return TokenScores(logp=logp, ref_logp=ref, lengths=lengths, coupling=coupling)


def total(objective, given, signal=HYBRID) -> torch.Tensor:
    weight = float(objective.weights(given.lengths, signal).sum())
    return reduce_losses(objective(given, signal), weight)


def test_golden():
    """Margins 2, .5 and 3 at beta .1; samples h = 3 and -1: (4.5 + .5) / 2 = 2.5, times .2."""
    objective = HyPO(kl_weight=0.2)
    given = scores(objective)
    loss = total(objective, given)
    dpo = -(log_sigma(0.2) + log_sigma(0.05) + log_sigma(0.3)) / 3
    assert loss.item() == pytest.approx(dpo + 0.5, rel=1e-9)
    slopes = torch.autograd.grad(loss, given.logp)[0][::2].tolist()
    first, second, third = (0.1 * sigma(-x) / 3 for x in (0.2, 0.05, 0.3))
    expected = [-first - second, first + third, second, 0.2 * 3 / 2, -third, 0.0, 0.2 * -1 / 2]
    assert slopes == pytest.approx(expected, rel=1e-9)


def test_samples_of_a_prompt_are_each_other_s_baseline():
    """h = 3 and -1, baselines -1 and 3: (3 * 4 + 1 * 4) / 2 over two samples is 4; slopes of 4 and -4, halved."""
    none = torch.zeros(0, dtype=torch.long)
    signal = Hybrid(
        chosen=none, rejected=none, source=torch.tensor([1, 1]), group=torch.zeros(2, dtype=torch.long)
    )
    objective = HyPO(kl_weight=0.5)
    given = scores(objective, signal, (3.0, -1.0))
    loss = total(objective, given, signal)
    assert loss.item() == pytest.approx(0.5 * 4.0, rel=1e-12)
    slopes = torch.autograd.grad(loss, given.logp)[0][::2].tolist()
    assert slopes == pytest.approx([0.5 * 4 / 2, 0.5 * -4 / 2], rel=1e-12)


def test_with_a_baseline_the_expected_gradient_is_that_of_the_kl():
    """All nine draws of two samples of three arms, by their probability."""
    logits = torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64).log()
    none, two = torch.zeros(0, dtype=torch.long), torch.zeros(2, dtype=torch.long)
    signal = Hybrid(chosen=none, rejected=none, source=two + 1, group=two)
    logp, lengths, objective = logits.log_softmax(0), two + 1, HyPO(kl_weight=0.7)
    coupling, _ = objective.couple(StepView(lengths=lengths, prompt=two, signal=signal), {})
    expected = torch.zeros((), dtype=torch.float64)
    for one in range(3):
        for other in range(3):
            arms = torch.tensor([one, other])
            given = TokenScores(logp=logp[arms], ref_logp=ref[arms], lengths=lengths, coupling=coupling)
            chance = logp[arms].sum().exp().detach()
            expected = expected + chance * objective(given, signal).per_unit.mean()
    (mine,) = torch.autograd.grad(expected, logits, retain_graph=True)
    (exact,) = torch.autograd.grad(0.7 * (logp.exp() * (logp - ref)).sum(), logits)
    torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-12)


def test_units():
    """A pair counts with its chosen completion, a sample by itself."""
    objective = HyPO()
    given = scores(objective)
    assert objective.weights(given.lengths, HYBRID).tolist() == [2, 0, 0, 1, 1, 0, 1]
    losses = objective(given, HYBRID)
    assert losses.weight.tolist() == [2, 0, 0, 1, 1, 0, 1]
    assert losses.metrics["hypo/kl"].tolist() == pytest.approx([3.0, -1.0])
    assert losses.metrics["rewards/margins"].tolist() == pytest.approx([0.2, 0.05, 0.3])


def test_coupling_holds_the_two_counts_of_the_step():
    """Three pairs and two samples: 5 / 3 and 5 / 2. Nothing needs to be scored for it."""
    objective = HyPO()
    assert objective.couples == frozenset()
    whole = scores(objective).coupling.whole
    assert {name: value.item() for name, value in whole.items()} == pytest.approx(
        {"pair": 5 / 3, "sample": 5 / 2}
    )


def test_one_pair_and_one_sample_are_each_counted_in_full():
    signal = Hybrid(
        chosen=torch.tensor([0]),
        rejected=torch.tensor([1]),
        source=torch.tensor([0, 0, 1]),
        group=torch.zeros(3, dtype=torch.long),
    )
    whole = scores(HyPO(), signal, (1.0, -1.0, 2.0)).coupling.whole
    assert {name: value.item() for name, value in whole.items()} == {"pair": 2.0, "sample": 2.0}


def test_without_samples_it_is_dpo():
    signal = Hybrid(
        chosen=torch.tensor([0]),
        rejected=torch.tensor([1]),
        source=torch.tensor([1, 2]),
        group=torch.zeros(2, dtype=torch.long),
    )
    objective = HyPO(beta=0.4, kl_weight=5.0)
    given = scores(objective, signal, (1.0, -1.0))
    dpo = DPO(beta=0.4)(given, Pairs(chosen=signal.chosen, rejected=signal.rejected)).per_unit.sum()
    assert total(objective, given, signal).item() == pytest.approx(dpo.item(), rel=1e-12)


def test_without_pairs_only_the_divergence_is_left():
    none = torch.zeros(0, dtype=torch.long)
    signal = Hybrid(chosen=none, rejected=none, source=torch.tensor([1, 1]), group=torch.arange(2))
    objective = HyPO(kl_weight=5.0)
    given = scores(objective, signal, (1.0, -3.0))
    assert total(objective, given, signal).item() == pytest.approx(5.0 * (0.5 + 4.5) / 2, rel=1e-12)


def test_expected_gradient_of_the_samples_is_that_of_the_kl():
    """Three arms, each a sample with the weight of its probability: the gradient of KL(pi || ref), exactly."""
    logits = torch.tensor([0.3, -0.4, 0.9], dtype=torch.float64, requires_grad=True)
    ref = torch.tensor([0.1, 0.6, 0.3], dtype=torch.float64).log()
    none, objective = torch.zeros(0, dtype=torch.long), HyPO(kl_weight=0.7)
    logp = logits.log_softmax(0)
    lengths = torch.ones(3, dtype=torch.long)
    signal = Hybrid(chosen=none, rejected=none, source=torch.ones(3, dtype=torch.long), group=torch.arange(3))
    coupling, _ = objective.couple(StepView(lengths=lengths, prompt=lengths, signal=signal), {})
    losses = objective(TokenScores(logp=logp, ref_logp=ref, lengths=lengths, coupling=coupling), signal)
    expected = (logp.exp().detach() * losses.per_unit).sum()
    (mine,) = torch.autograd.grad(expected, logits, retain_graph=True)
    (exact,) = torch.autograd.grad(0.7 * (logp.exp() * (logp - ref)).sum(), logits)
    torch.testing.assert_close(mine, exact, rtol=1e-10, atol=1e-12)
