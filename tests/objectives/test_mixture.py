"""Mixtures: each term as if it were alone, over the whole step; and what a spec may say."""

import math
from dataclasses import dataclass, replace

import jaxtyping
import pytest
import torch

from preftune.errors import ConfigError
from preftune.objectives import OBJECTIVES, reduce_losses
from preftune.objectives.base import Coupled, coupling_of, plain_metric, sum_tokens
from preftune.objectives.bco_pair import BCOPair
from preftune.objectives.bnf import BNF
from preftune.objectives.contracts.steps import assemble, call, couple, loss_and_gradient, random_step
from preftune.objectives.dpo import DPO
from preftune.objectives.f_dpo import FDPO
from preftune.objectives.kinds import PairObjective
from preftune.objectives.mixture import MPO, Mixture, common_signal, derived_signal, parse_terms
from preftune.objectives.nca import NCA
from preftune.objectives.pairwise import pair_margin, pair_weights
from preftune.objectives.reward_distillation import RewardDistillation
from preftune.objectives.rpo import RPO
from preftune.objectives.sft import SFT
from preftune.objectives.simpo import CPOSimPO
from preftune.types import Coupling, Hybrid, Labels, Losses, Pairs, Rewards, StepView, TokenScores
from tests.objectives.golden import PAIR, log_sigma, make_scores, sigma


def view(lengths, signal, scores=None, mismatched=None) -> StepView:
    prompt = torch.zeros(len(lengths), dtype=torch.long)
    return StepView(
        lengths=torch.tensor(lengths), prompt=prompt, signal=signal, scores=scores, mismatched=mismatched
    )


def coupled(objective, scores, signal) -> TokenScores:
    """The scores of a whole step with what couples it."""
    found, state = objective.couple(view(scores.lengths.tolist(), signal), objective.initial_state())
    assert state == {}
    return replace(scores, coupling=found)


def reduced(objective, scores, signal) -> torch.Tensor:
    losses = objective(coupled(objective, scores, signal), signal)
    return reduce_losses(losses, float(objective.weights(scores.lengths, signal).double().sum()))


def pair_loss_and_slopes(objective):
    """Of the pair that all objectives are worked out on: the step's loss, and its slopes token by token."""
    scores = make_scores(objective, (-10.0, -14.0), (-11.0, -13.0), (5, 8))
    loss = reduced(objective, scores, PAIR)
    return loss.item(), torch.autograd.grad(loss, scores.logp)[0].tolist()


# --- by hand ---


def test_dpo_and_sft_by_hand():
    """.5 * .598139 + 2 * (10 nats / 5 tokens) = 4.299069; the chosen tokens are pushed by both."""
    loss, slopes = pair_loss_and_slopes(Mixture(terms="0.5*dpo(beta=0.1) + 2*sft"))
    assert loss == pytest.approx(-0.5 * log_sigma(0.2) + 4.0, rel=1e-12)
    push = 0.5 * 0.1 * sigma(-0.2)
    assert slopes == pytest.approx([-push - 2 / 5] * 5 + [push] * 8, rel=1e-12)


def test_mpo_by_hand():
    """.8 * .598139 + .2 * 1.288793 + 2 = 2.736270: dpo, bco-pair and the mean over chosen tokens."""
    loss, slopes = pair_loss_and_slopes(MPO())
    assert loss == pytest.approx(0.8 * 0.598139 + 0.2 * 1.288793 + 2.0, abs=1e-6)
    dpo, bco = 0.8 * 0.1 * sigma(-0.2), 0.2 * 0.1 * sigma(-0.1)
    assert slopes == pytest.approx([-dpo - bco - 0.2] * 5 + [dpo + bco] * 8, rel=1e-12)


def test_units_scales_and_what_is_logged_by_hand():
    """Two pairs, completions of 1, 2, 3 and 1 tokens: dpo weighs 2, sft 1 + 3 = 4 tokens, together 6."""
    objective = Mixture(terms="3*dpo + 0.5*sft")
    pairs = Pairs(chosen=torch.tensor([0, 2]), rejected=torch.tensor([1, 3]))
    lengths = torch.tensor([1, 2, 3, 1])
    assert objective.weights(lengths, pairs).tolist() == [1, 1, 1, 0, 0, 1, 1, 1, 0]  # pairs, then tokens
    found, _ = objective.couple(view([1, 2, 3, 1], pairs), {})
    assert {name: value.item() for name, value in found.whole.items()} == pytest.approx(
        {"0.scale": 3 * 6 / 2, "0.mean": 1.0, "1.scale": 0.5 * 6 / 4, "1.mean": 1.0}
    )
    assert (found.completion, found.pair) == ({}, {})
    logp = -torch.arange(1.0, 8.0, dtype=torch.float64)
    losses = objective(TokenScores(logp=logp, ref_logp=logp, lengths=lengths, coupling=found), pairs)
    assert losses.per_unit.tolist() == pytest.approx([9 * math.log(2)] * 2 + [0.75 * t for t in range(1, 8)])
    assert plain_metric(losses.metrics["loss/dpo"]).tolist() == pytest.approx([math.log(2)] * 2)
    assert plain_metric(losses.metrics["loss/sft"]).tolist() == pytest.approx([1.0, 4.0, 5.0, 6.0])


# --- each term as if it were alone ---


@pytest.mark.parametrize(
    ("spec", "terms"),
    [
        (
            "0.8*dpo(beta=0.3)+0.2*bco-pair+cpo",
            [(0.8, DPO(beta=0.3)), (0.2, BCOPair()), (1.0, OBJECTIVES["cpo"]())],
        ),
        ("bnf+0.1*sft", [(1.0, BNF()), (0.1, SFT())]),
        ("-2*sft(reduction=sequence_mean)+3*bnf", [(-2.0, SFT(reduction="sequence_mean")), (3.0, BNF())]),
        ("0.5*nca + 2*reward-distillation", [(0.5, NCA()), (2.0, RewardDistillation())]),
        ("dpo(beta=0.1) + 0.5*dpo(beta=2)", [(1.0, DPO()), (0.5, DPO(beta=2.0))]),
    ],
)
def test_the_loss_is_the_weighted_sum_of_the_terms_losses(spec, terms):
    pieces = random_step(seed=21)
    loss, gradient = loss_and_gradient(pieces, Mixture(terms=spec))
    alone = [(weight, *loss_and_gradient(pieces, objective)) for weight, objective in terms]
    torch.testing.assert_close(loss, sum(w * value for w, value, _ in alone), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(gradient, sum(w * slope for w, _, slope in alone), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "spec", ["bnf + sft", "nca + 2*reward-distillation", "sft(reduction=sequence_mean)+bnf"]
)
def test_each_terms_loss_is_logged_as_if_it_were_alone(spec):
    """The mean of the entries of all pieces, whatever the units weigh."""
    pieces, objective = random_step(seed=22), Mixture(terms=spec)
    couplings = couple(pieces, objective)
    parts = [
        call([piece], objective, [coupling]).metrics
        for piece, coupling in zip(pieces, couplings, strict=True)
    ]
    for term in objective.parsed:
        entries = torch.cat([plain_metric(part[f"loss/{term.label}"]) for part in parts])
        assert entries.mean().item() == pytest.approx(
            loss_and_gradient(pieces, term.objective)[0].item(), rel=1e-6
        )


def test_kin():
    """Where no completion is chosen twice, likelihood per completion is a term of its own."""
    pieces = [piece for piece in random_step(seed=23) if len(piece.pairs) == 1]
    for spec, other in (
        ("dpo(beta=0.5) + 0.2*sft(reduction=sequence_mean)", RPO()),
        ("simpo(beta=10, gamma=5.4) + 0.05*sft(reduction=sequence_mean)", CPOSimPO()),
        ("0.8*dpo+0.2*bco-pair(beta=0.1)+1*sft", MPO()),
        ("dpo(beta=0.3)", DPO(beta=0.3)),
    ):
        silent = [replace(piece, probabilities=()) for piece in pieces]  # rpo reads no soft labels
        mixed, alone = loss_and_gradient(silent, Mixture(terms=spec)), loss_and_gradient(silent, other)
        for mine, its in zip(mixed, alone, strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-12, atol=1e-12)


def test_a_term_without_weight_in_a_step_adds_nothing():
    """Dispreferred completions only: bnf alone."""
    signal = Labels(label=torch.tensor([-1, -1]))
    logp = torch.tensor([-1.0, -2.0, -0.5], dtype=torch.float64, requires_grad=True)
    scores = TokenScores(logp=logp, ref_logp=logp.detach() - 0.1, lengths=torch.tensor([1, 2]))
    mixture = Mixture(terms="2*bnf + sft")
    loss = reduced(mixture, scores, signal)
    alone = 2 * reduce_losses(BNF()(scores, signal), 2.0)
    assert loss.item() == pytest.approx(alone.item(), rel=1e-12)
    assert torch.autograd.grad(loss, logp)[0].tolist() == pytest.approx(
        torch.autograd.grad(alone, logp)[0].tolist()
    )
    found = mixture(coupled(mixture, scores, signal), signal).metrics
    metrics = {name: plain_metric(values) for name, values in found.items()}
    assert (metrics["loss/sft"].tolist(), len(metrics["loss/bnf"])) == ([], 2)


# --- what is logged ---


def test_names_of_metrics():
    """The first term to give a name keeps it; log-probabilities and log-ratios are the same for all."""
    metrics = call(random_step(seed=24), Mixture(terms="dpo + simpo + dpo(beta=1)")).metrics
    policy = {f"{name}/{side}" for name in ("logps", "log_ratios") for side in ("chosen", "rejected")}
    rewards = {f"rewards/{name}" for name in ("chosen", "rejected", "margins", "accuracies")}
    assert set(metrics) == policy | rewards | {
        f"{term}/{name}" for term in ("simpo", "dpo-2") for name in rewards
    } | {"loss/dpo", "loss/simpo", "loss/dpo-2"}
    torch.testing.assert_close(metrics["dpo-2/rewards/margins"], 10 * metrics["rewards/margins"])


def test_a_term_sees_what_it_declares_and_no_more():
    """sft alone logs no log-ratios, and in a mixture neither, though another term's reference is there."""
    found = call(random_step(seed=25), Mixture(terms="sft + 2*dpo")).metrics
    metrics = {name: plain_metric(values) for name, values in found.items()}
    assert (
        len(metrics["log_ratios/chosen"]) == len(metrics["rewards/margins"]) != len(metrics["logps/chosen"])
    )


# --- signals ---


def test_labels_out_of_pairs():
    """Completions: chosen twice, rejected, in no pair, chosen and rejected, rejected."""
    pairs = Pairs(
        chosen=torch.tensor([0, 0, 3]),
        rejected=torch.tensor([1, 3, 4]),
        probability=torch.tensor([1.0, 0.9, 0.6]),
    )
    found = derived_signal(pairs, Labels, 5)
    assert isinstance(found, Labels)
    assert found.label.tolist() == [1, -1, 0, 0, -1]
    assert derived_signal(pairs, Pairs, 5) is pairs
    hybrid = Hybrid(
        chosen=pairs.chosen,
        rejected=pairs.rejected,
        source=torch.zeros(5, dtype=torch.long),
        group=torch.zeros(5, dtype=torch.long),
    )
    bare = derived_signal(hybrid, Pairs, 5)
    assert isinstance(bare, Pairs)
    assert bare.chosen is hybrid.chosen and bare.rejected is hybrid.rejected and bare.probability is None
    assert derived_signal(hybrid, Labels, 5).label.tolist() == [1, -1, 0, 0, -1]  # type: ignore[union-attr]
    assert derived_signal(hybrid, Hybrid, 5) is hybrid


def test_labels_are_those_that_data_of_pairs_imply():
    from preftune.model.layout import group_labels
    from tests.models import random_groups

    for group in random_groups(seed=3, num_groups=6):
        chosen, rejected = (
            torch.tensor([pair[side] for pair in group.pairs], dtype=torch.long) for side in (0, 1)
        )
        found = derived_signal(Pairs(chosen=chosen, rejected=rejected), Labels, len(group.completions))
        assert found.label.tolist() == group_labels(replace(group, labels=()))  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("kinds", "common"),
    [
        ([Labels, Labels], Labels),
        ([Rewards, Rewards], Rewards),
        ([Pairs], Pairs),
        ([Hybrid, Hybrid], Hybrid),
        ([Labels, Pairs], Pairs),
        ([Pairs, Labels], Pairs),
        ([Labels, Hybrid], Hybrid),
        ([Pairs, Hybrid, Labels], Hybrid),
    ],
)
def test_common_signal(kinds, common):
    assert common_signal(kinds) is common


@pytest.mark.parametrize("spec", ["nca + dpo", "sft + nca", "rwr+dpo+sft"])
def test_rewards_go_with_rewards_only(spec):
    with pytest.raises(
        ConfigError, match=r"signals that do not go together; got .*rewards; expected rewards for all terms"
    ):
        Mixture(terms=spec)


# --- coupled terms ---


@dataclass(frozen=True, kw_only=True)
class Drift(Coupled, PairObjective):
    """A coupled objective for tests: margins over a running mean, every kind of coupling, a state."""

    rate: float = 0.5
    steps: int = 1
    loud: bool = False

    @property
    def needs(self):
        return frozenset({"coupling", "entropy"})

    @property
    def couples(self):
        return frozenset({"scores", "mismatched"} if self.loud else {"scores"})

    def initial_state(self):
        return {"mean": torch.tensor(0.0, dtype=torch.float64)}

    def couple(self, step, state):
        assert set(state) == {"mean"}
        assert (
            step.scores.ref_logp is None and step.scores.entropy is not None
        )  # as alone, though dpo needs a reference
        assert (step.mismatched is not None) == self.loud
        drift = torch.tensor(0.0) if step.mismatched is None else step.mismatched.logp.mean()
        mean = (1 - self.rate) * state["mean"] + self.rate * step.scores.logp.mean() + drift
        number = torch.arange(len(step.signal.chosen), dtype=torch.float64)
        found = Coupling(
            whole={"mean": mean}, completion={"length": step.lengths.double()}, pair={"number": number}
        )
        return found, {"mean": mean}

    def __call__(self, scores, signal):
        own = coupling_of(scores)
        assert (set(own.whole), set(own.completion), set(own.pair)) == ({"mean"}, {"length"}, {"number"})
        margin = pair_margin(sum_tokens(scores.logp, scores.lengths) / own.completion["length"], signal)
        per_unit = (margin - own.whole["mean"]).square() + own.pair["number"]
        return Losses(
            per_unit=per_unit, weight=pair_weights(signal).to(per_unit.dtype), metrics={"m": margin.detach()}
        )


@pytest.fixture
def with_drift(monkeypatch):
    monkeypatch.setitem(OBJECTIVES, "drift", Drift)


@pytest.mark.parametrize("loud", ["false", "true"])
def test_coupled_terms_are_coupled_as_if_alone(with_drift, loud):
    """Over three steps: coupling and state, under names that tell two terms of a kind apart."""
    alone, other = Drift(loud=loud == "true"), Drift(rate=0.25)
    mixture = Mixture(terms=f"dpo + 0.5*drift(loud={loud}) + 2*drift(rate=0.25, steps=3)")
    assert mixture.needs == {"coupling", "entropy", "ref_logp"}
    assert mixture.couples == alone.couples
    states = [objective.initial_state() for objective in (alone, other, mixture)]
    assert set(states[2]) == {"1/mean", "2/mean"}
    for seed in (31, 32, 33):
        pieces = random_step(seed)
        scores, signal = assemble(pieces, mixture, couplings=[None] * len(pieces))
        step = view(
            scores.lengths.tolist(),
            signal,
            scores,
            replace(scores, logp=2 * scores.logp) if alone.loud else None,
        )
        mixed, states[2] = mixture.couple(step, states[2])
        bare = replace(step, scores=replace(scores, ref_logp=None))
        found, states[0] = alone.couple(bare, states[0])
        _, states[1] = other.couple(replace(bare, mismatched=None), states[1])
        assert states[2] == {"1/mean": states[0]["mean"], "2/mean": states[1]["mean"]}
        assert mixed.whole["1/mean"] == found.whole["mean"]
        assert set(mixed.completion) == {"1/length", "2/length"}
        assert set(mixed.pair) == {"1/number", "2/number"}
        torch.testing.assert_close(mixed.pair["1/number"], found.pair["number"])


def test_coupled_terms_add_up(with_drift):
    pieces = random_step(seed=34)
    loss, gradient = loss_and_gradient(pieces, Mixture(terms="dpo + 0.5*drift(rate=0.2)"))
    terms = [(1.0, DPO()), (0.5, Drift(rate=0.2))]
    alone = [(weight, *loss_and_gradient(pieces, objective)) for weight, objective in terms]
    torch.testing.assert_close(loss, sum(w * value for w, value, _ in alone), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(
        gradient[0], sum(w * slope[0] for w, _, slope in alone), rtol=1e-12, atol=1e-12
    )


def test_a_term_that_is_not_coupled_gets_no_coupling():
    seen = []

    class Spy(DPO):
        def __call__(self, scores, signal):
            seen.append(scores.coupling)
            return super().__call__(scores, signal)

    mixture = Mixture(terms="dpo + sft")
    mixture.__dict__["parsed"] = (replace(mixture.parsed[0], objective=Spy()), mixture.parsed[1])
    call(random_step(seed=35), mixture)
    assert seen == [None]


# --- specs ---


def test_specs(with_drift):
    found = parse_terms(
        " 1e+2 * dpo ( beta = 1e+1 , label_smoothing=0.2 ) + bco-pair+-.5*f-dpo(divergence=alpha,alpha=3e-1)"
        "+2.e+0*f-dpo(alpha=null)+ sft() + 7*drift(steps=5, loud=true)+drift(loud=false)"
    )
    assert [(term.weight, term.objective, term.label) for term in found] == [
        (100.0, DPO(beta=10.0, label_smoothing=0.2), "dpo"),
        (1.0, BCOPair(), "bco-pair"),
        (-0.5, FDPO(divergence="alpha", alpha=0.3), "f-dpo"),
        (2.0, FDPO(), "f-dpo-2"),
        (1.0, SFT(), "sft"),
        (7.0, Drift(steps=5, loud=True), "drift"),
        (1.0, Drift(), "drift-2"),
    ]


BAD = {
    "": "The objective is not understood; got nothing; expected NAME or NAME(setting=value, ...).",
    "dpo + ": "The objective is not understood; got nothing",
    "dpo sft": "The objective is not understood; got 'dpo sft'",
    "dpo*0.5": "The weight of the objective is not understood; got 'dpo'; expected number*objective.",
    "0.5*dpo(beta=1 + sft": "The objective is not understood; got 'dpo(beta=1 + sft'",
    "dpo(beta=1))": "The objective is not understood",
    "dppo": "There is no such objective; got dppo; expected agro, ",
    "half*dpo": "The weight of the objective is not understood; got 'half'",
    "*dpo": "The weight of the objective is not understood; got nothing",
    "nan*dpo": "The weight of the objective is not understood; got 'nan'",
    "inf*dpo": "The weight of the objective is not understood; got 'inf'",
    "1e999*dpo": "The weight of the objective dpo is out of range; got 1e999",
    "0*dpo": "A term has a weight of 0; got dpo. Leave the term out",
    "dpo + mixture": "A term cannot be a sum of objectives; got mixture. Write its terms out",
    "dpo + 0.5*mpo(beta=2)": "A term cannot be a sum of objectives; got mpo",
    "dpo(gamma=1)": "Objective 'dpo' has no such setting; got gamma; expected beta, label_smoothing.",
    "dpo(bta=1)": "got bta; expected beta, label_smoothing. Did you mean beta?",
    "dpo(beta=1, beta=2)": "A setting of objective 'dpo' is given twice; got beta.",
    "dpo(0.1)": "A setting of objective 'dpo' is not understood; got '0.1'; expected key=value.",
    "dpo(beta=1,)": "A setting of objective 'dpo' is not understood",
    "simper(beta=1)": "got beta; expected none",
    "dpo(beta)": "is not understood; got 'beta'",
    "dpo(beta=much)": "beta of objective 'dpo' has a value that it cannot take; got much; expected a number.",
    "dpo(beta=)": "beta of objective 'dpo' has a value that it cannot take; got nothing",
    "dpo(beta=null)": "beta of objective 'dpo' has a value that it cannot take; got null",
    "drift(steps=1.5)": "steps of objective 'drift' has a value that it cannot take; got 1.5; expected a whole number.",
    "drift(loud=yes)": "got yes; expected true or false",
}


@pytest.mark.parametrize("spec", BAD)
def test_bad_specs_are_told(spec, with_drift, monkeypatch):
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # as for a user: no type checker in the way
    with pytest.raises(ConfigError) as caught:
        Mixture(terms=spec)
    assert BAD[spec] in str(caught.value)


def test_values_out_of_range_are_told_by_the_objective(monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    for spec, told in (
        ("dpo(beta=-1)", "dpo: beta is out of range; got -1.0"),
        ("inpo(eta=0.1, tau=0.2)", "inpo: tau is out of range; got 0.2"),
    ):
        with pytest.raises(ConfigError, match=told):
            Mixture(terms=spec)


def test_needs_are_those_of_the_terms():
    assert Mixture(terms="sft + simpo").needs == {"coupling"}
    assert Mixture(terms="sft + dpo").needs == {"coupling", "ref_logp"}
    assert Mixture(terms="bradley-terry + dpo").needs == {"coupling", "ref_logp", "value_after"}
    assert (Mixture().couples, MPO().couples, MPO().initial_state()) == (frozenset(), frozenset(), {})
    assert (MPO().needs, MPO().signal) == ({"coupling", "ref_logp"}, Pairs)


def test_any_weight_of_mpo_can_be_written_in_a_spec():
    """However small or large: the sign in 1e+30 is not that of a sum."""
    found = MPO(dpo_weight=1e-30, bco_weight=1e30, sft_weight=0.1 + 0.2, beta=1e-5).parsed
    assert [(term.weight, term.objective) for term in found] == [
        (1e-30, DPO(beta=1e-5)),
        (1e30, BCOPair(beta=1e-5)),
        (0.1 + 0.2, SFT()),
    ]
