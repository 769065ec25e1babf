"""Weighted sums of objectives, and MPO, which is one of them."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Literal, TypeGuard, get_args

import torch
from torch import Tensor

from preftune.errors import ConfigError
from preftune.objectives.base import ChosenFall, Coupled, Objective, Opponent, State, coupling_of
from preftune.objectives.checks import positive
from preftune.objectives.learning_rates import our_rate, rates_of
from preftune.spec import parse_sum
from preftune.types import (
    Coupling,
    Entries,
    Float,
    Hybrid,
    Int,
    Labels,
    Losses,
    Pairs,
    Rewards,
    Signal,
    StepView,
    TokenScores,
)

_OF_THE_POLICY = ("logps/", "log_ratios/")  # metrics that are equal whichever term reports them


@dataclass(frozen=True, kw_only=True)
class Term:
    """One objective of a sum; `label` distinguishes it from the other terms."""

    weight: float
    objective: Objective
    label: str


class WeightedSum(Coupled):
    """A weighted sum of objectives; the terms come from a subclass."""

    @cached_property
    @abstractmethod
    def parsed(self) -> tuple[Term, ...]:
        """The terms."""

    def __post_init__(self) -> None:
        super().__post_init__()
        _ = self.parsed, self.signal  # refuse now what cannot be read or does not go together

    @property
    def needs(self) -> frozenset[str]:
        return frozenset({"coupling"}).union(*(term.objective.needs for term in self.parsed))

    @property
    def signal(self) -> type[Signal]:
        return common_signal([term.objective.signal for term in self.parsed])

    @property
    def trains(self) -> Literal["policy", "reward model"]:
        return "policy" if any(term.objective.trains == "policy" for term in self.parsed) else "reward model"

    @property
    def value_heads(self) -> int:
        return max(term.objective.value_heads for term in self.parsed)

    @property
    def length_normalized(self) -> bool:
        return all(term.objective.length_normalized for term in self.parsed)

    @property
    def chosen_fall(self) -> ChosenFall:
        falls = [term.objective.chosen_fall for term in self.parsed]
        return "prevented" if "prevented" in falls else falls[0]  # type: ignore

    @property
    def opponents(self) -> tuple[Opponent, ...]:
        """Those that fit every term."""
        fitting = set.intersection(*(set(term.objective.opponents) for term in self.parsed))
        return tuple(opponent for opponent in get_args(Opponent) if opponent in fitting)

    @property
    def unjudged_samples(self) -> bool:
        return any(term.objective.unjudged_samples for term in self.parsed)

    @property
    def correctable(self) -> bool:
        return all(term.objective.correctable for term in self.parsed)

    @property
    def value_is_surrogate(self) -> bool:
        return any(term.objective.value_is_surrogate for term in self.parsed)

    @property
    def couples(self) -> frozenset[str]:
        return frozenset().union(
            *(term.objective.couples for term in self.parsed if _is_coupled(term.objective))
        )

    def weights(self, lengths: Int[Tensor, " C"], signal: Signal) -> Float[Tensor, " U"]:
        """Those of each term, one term after another."""
        return torch.cat(
            [
                term.objective.weights(lengths, derived_signal(signal, term.objective.signal, len(lengths)))
                for term in self.parsed
            ]
        )

    def initial_state(self) -> dict[str, Tensor]:
        """The states of the terms that have one, each name after its term's position."""
        return {
            f"{position}/{name}": value
            for position, term in enumerate(self.parsed)
            if _is_coupled(term.objective)
            for name, value in term.objective.initial_state().items()
        }

    def couple(self, step: StepView, state: State) -> tuple[Coupling, dict[str, Tensor]]:
        """The factor of each term's units, and what couples the terms themselves."""
        signals = [
            derived_signal(step.signal, term.objective.signal, len(step.lengths)) for term in self.parsed
        ]
        weights = [
            term.objective.weights(step.lengths, signal).double()
            for term, signal in zip(self.parsed, signals, strict=True)
        ]
        total = torch.cat(weights).sum()
        found: dict[str, dict[str, Tensor]] = {"whole": {}, "completion": {}, "pair": {}}
        new_state: dict[str, Tensor] = {}
        for position, (term, signal, weight) in enumerate(zip(self.parsed, signals, weights, strict=True)):
            per_weight = torch.where(weight.sum() != 0, 1 / weight.sum(), 0.0)
            found["whole"][f"{position}.scale"] = term.weight * total * per_weight
            found["whole"][f"{position}.mean"] = (weight != 0).sum() * per_weight
            if _is_coupled(term.objective):
                own, kept = term.objective.couple(
                    _own_view(step, signal, term.objective), _unprefixed(state, position)
                )
                new_state |= {f"{position}/{name}": value for name, value in kept.items()}
                for kind, values in found.items():
                    values |= {f"{position}/{name}": value for name, value in getattr(own, kind).items()}
        return Coupling(**found), new_state

    def __call__(self, scores: TokenScores, signal: Signal) -> Losses:
        coupling = coupling_of(scores)
        per_unit, weight, metrics = [], [], {}
        for position, term in enumerate(self.parsed):
            own = Coupling(
                **{f.name: _unprefixed(getattr(coupling, f.name), position) for f in fields(Coupling)}
            )
            own_scores = _own_scores(scores, term.objective, own if _is_coupled(term.objective) else None)
            losses = term.objective(
                own_scores, derived_signal(signal, term.objective.signal, len(scores.lengths))
            )
            scale, mean = (
                coupling.whole[f"{position}.{n}"].to(losses.per_unit.dtype) for n in ("scale", "mean")
            )
            per_unit.append(scale * losses.per_unit)
            weight.append(losses.weight)
            for name, values in losses.metrics.items():
                if name not in metrics:
                    metrics[name] = values
                elif not name.startswith(_OF_THE_POLICY):
                    metrics[f"{term.label}/{name}"] = values
            metrics[f"loss/{term.label}"] = Entries(
                values=mean * (losses.per_unit * losses.weight).detach(), counted=losses.weight != 0
            )
        return Losses(per_unit=torch.cat(per_unit), weight=torch.cat(weight), metrics=metrics)


@dataclass(frozen=True, kw_only=True)
class Mixture(WeightedSum):
    """A weighted sum of objectives, each reduced over the whole step as if it were trained alone.

        L = sum_k weight_k * L_k,   L_k = sum_u per_unit_ku * w_ku / W_k,   W_k = sum_u w_ku over the step

    Every term keeps its own units: the tokens of `sft` and the pairs of `dpo` are not weighed against each
    other. The one reducer divides by W = sum_k W_k, so the units of term k are scaled by weight_k * W / W_k,
    which is why a mixture looks at the whole step before its gradient. A term without weight in a step adds
    nothing to it. Terms on labels take them from the pairs of the others: +1 chosen, -1 rejected, 0 neither
    or both.

    Args:
        terms: such as "0.8*dpo(beta=0.1) + 0.2*bco-pair + sft": names of objectives with their settings, each
            with a weight, a number other than 0 that is 1 if left out. The default is MPO's.
    """

    name = "mixture"
    learning_rates = our_rate(1e-6, "the default of dpo. The terms of the sum decide which rate suits it")

    terms: str = "0.8*dpo(beta=0.1)+0.2*bco-pair(beta=0.1)+sft"

    @cached_property
    def parsed(self) -> tuple[Term, ...]:
        try:
            return parse_terms(self.terms)
        except ConfigError as error:
            raise ConfigError(f"terms of mixture: {str(error).removesuffix('.')}") from error


@dataclass(frozen=True, kw_only=True)
class MPO(WeightedSum):
    """A preference, an absolute quality and a likelihood: DPO, BCO on pairs and SFT in one sum.

        L = w_p * L_dpo + w_q * L_bco-pair + w_g * L_sft

    Wang et al., "Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed Preference
    Optimization", 2024, arXiv 2411.10442; checked against a public implementation. The authors' code
    subtracts a running mean of the rewards in the second term, as BCO does; here, as in that implementation,
    its threshold is 0.

    Args:
        dpo_weight: w_p, > 0.
        bco_weight: w_q, > 0.
        sft_weight: w_g, > 0, of the mean over all chosen tokens of the step.
        beta: strength of the pull to the reference in the first two terms, > 0.
    """

    name = "mpo"
    learning_rates = rates_of(5e-6, "the paper (section 7, as in TRL's index of papers)")

    dpo_weight: float = positive(0.8)
    bco_weight: float = positive(0.2)
    sft_weight: float = positive(1.0)
    beta: float = positive(0.1)

    @cached_property
    def parsed(self) -> tuple[Term, ...]:
        return parse_terms(
            f"{self.dpo_weight}*dpo(beta={self.beta}) + {self.bco_weight}*bco-pair(beta={self.beta})"
            f" + {self.sft_weight}*sft"
        )


# --- from text to terms ---


def parse_terms(text: str) -> tuple[Term, ...]:
    """The terms of a sum. The second `dpo` is labeled dpo-2."""
    from preftune.objectives.resolve import make_objective_of  # the table holds this file's classes

    terms: list[Term] = []
    for written in parse_sum(text, "objective", blanks=False):
        objective = make_objective_of(written)
        if isinstance(objective, WeightedSum):
            raise ConfigError(
                "A term cannot be a sum of objectives", got=written.name, do="Write its terms out"
            )
        if written.weight == 0:
            raise ConfigError("A term has a weight of 0", got=written.name, do="Leave the term out")
        count = 1 + sum(type(term.objective) is type(objective) for term in terms)
        label = written.name + (f"-{count}" if count > 1 else "")
        weight = 1.0 if written.weight is None else written.weight
        terms.append(Term(weight=weight, objective=objective, label=label))
    return tuple(terms)


# --- what each term sees ---


def common_signal(kinds: Sequence[type[Signal]]) -> type[Signal]:
    """The signal from which those of all terms can be had."""
    if len(set(kinds)) == 1:
        return kinds[0]
    if Rewards in kinds:
        names = " and ".join(sorted({kind.__name__.lower() for kind in kinds}))
        raise ConfigError(
            "mixture: terms learn from signals that do not go together",
            got=names,
            expected="rewards for all terms or for none",
        )
    return Hybrid if Hybrid in kinds else Pairs


def derived_signal(signal: Signal, kind: type[Signal], num_completions: int) -> Signal:
    """The signal itself, or from pairs the labels +1 (chosen), -1 (rejected) and 0 (neither, or both)."""
    if isinstance(signal, kind):
        return signal
    assert isinstance(signal, Pairs | Hybrid)
    if kind is Pairs:
        return Pairs(chosen=signal.chosen, rejected=signal.rejected)
    nothing = torch.zeros(num_completions, dtype=torch.long, device=signal.chosen.device)
    return Labels(label=nothing.index_fill(0, signal.chosen, 1) - nothing.index_fill(0, signal.rejected, 1))


def _is_coupled(objective: Objective) -> TypeGuard[Coupled]:
    return "coupling" in objective.needs


def _own_scores(scores: TokenScores, objective: Objective, coupling: Coupling | None) -> TokenScores:
    """What the objective would see alone: nothing that it does not declare."""
    known = {name: getattr(scores, name) for name in objective.needs - {"coupling"}}
    return TokenScores(logp=scores.logp, lengths=scores.lengths, coupling=coupling, **known)


def _own_view(step: StepView, signal: Signal, objective: Coupled) -> StepView:
    """The step as the objective would see it alone."""
    own = {
        name: _own_scores(scores, objective, None)
        if name in objective.couples and scores is not None
        else None
        for name, scores in (("scores", step.scores), ("mismatched", step.mismatched))
    }
    return replace(step, signal=signal, **own)


def _unprefixed(values: Mapping[str, Tensor], position: int) -> dict[str, Tensor]:
    """The values of the term at this position, under its own names."""
    prefix = f"{position}/"
    return {name.removeprefix(prefix): value for name, value in values.items() if name.startswith(prefix)}
