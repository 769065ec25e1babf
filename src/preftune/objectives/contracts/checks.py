"""The contracts: each takes an objective and raises an AssertionError that names the fault."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import MISSING, dataclass, fields, replace
from typing import Any, get_type_hints

import torch
from torch.testing import assert_close

from preftune.errors import ConfigError
from preftune.objectives.base import Objective, plain_metric, reduce_losses
from preftune.objectives.checks import choices_of
from preftune.objectives.contracts import measured
from preftune.objectives.contracts.steps import (
    FROZEN,
    Piece,
    assemble,
    call,
    couple,
    loss_and_gradient,
    policy_scores,
    random_step,
    with_scores,
)

Contract = Callable[[Objective], None]
CUTS = ((2, 3), (1, 4), (1, 1, 3))  # uneven, so that a micro-batch's own divisor shows
EXTREMES = (
    (0.0, 0.0),
    (-1e-9, -1e-9),
    (-1e-9, -30.0),
    (-30.0, -1e-9),
    (-200.0, -200.0),
    (-200.0, -1e-3),
    (-1e-3, -200.0),
)
"""Log-probabilities of each token under policy and reference."""


def cut_anywhere(objective: Objective) -> None:
    pieces = random_step(seed=1)
    loss, gradient = loss_and_gradient(pieces, objective)
    scores, signal = assemble(pieces, objective)
    weight = float(objective.weights(scores.lengths, signal).double().sum())
    couplings = couple(pieces, objective)
    for cut in CUTS:
        parts, start = [], 0
        for size in cut:
            here = slice(start, start + size)
            parts.append(loss_and_gradient(pieces[here], objective, weight, couplings[here]))
            start += size
        _same(torch.stack([part[0] for part in parts]).sum(), loss, "the loss of a step depends on its cuts")
        _same(torch.cat([part[1] for part in parts], 1), gradient, "the gradient depends on cuts")


def any_order(objective: Objective) -> None:
    pieces, order = random_step(seed=2), [3, 0, 4, 2, 1]
    loss, gradient = loss_and_gradient(pieces, objective)
    shuffled_loss, shuffled_gradient = loss_and_gradient([pieces[i] for i in order], objective)
    parts = gradient.split([sum(len(t["logp"]) for t in piece.tokens) for piece in pieces], 1)
    _same(shuffled_loss, loss, "the loss depends on the order of groups")
    _same(shuffled_gradient, torch.cat([parts[i] for i in order], 1), "the gradient depends on their order")


def groups_apart(objective: Objective) -> None:
    """A mixture has the units of one term after those of another, so a group's units need not come first."""
    pieces = random_step(seed=3)
    couplings = couple(pieces, objective)
    whole, rest = call(pieces, objective, couplings), call(pieces[1:], objective, couplings[1:])
    assert len(whole.per_unit) > len(rest.per_unit) > 0, "a group has no unit of its own"
    before = torch.stack([whole.per_unit, whole.weight], 1)
    for unit in torch.stack([rest.per_unit, rest.weight], 1):
        near = torch.isclose(before, unit, rtol=1e-12, atol=1e-12).all(1)
        assert bool(near.any()), "a unit looks at another group"


def zero_weight(objective: Objective) -> None:
    pieces = random_step(seed=4)
    leaf = policy_scores(pieces, objective)
    losses = objective(*assemble(pieces, objective, leaf))
    (gradient,) = torch.autograd.grad(reduce_losses(losses, 1.0), leaf)
    if bool((losses.weight == 0).any()) and len(losses.weight) == leaf.shape[1]:
        assert bool((gradient[:, losses.weight == 0] == 0).all()), "a unit of weight zero has a gradient"
    assert bool((gradient != 0).any()), "there is no gradient"


def finite_at_extremes(objective: Objective) -> None:
    for dtype in (torch.float32, torch.float64):
        for logp, other in EXTREMES:
            known = {"logp": logp, "ref_logp": other, "behaviour_logp": other}
            pieces = with_scores(random_step(seed=5), **known)
            leaf = policy_scores(pieces, objective).detach().to(dtype).requires_grad_()
            losses = objective(*assemble([_in_dtype(piece, dtype) for piece in pieces], objective, leaf))
            (gradient,) = torch.autograd.grad(reduce_losses(losses, 10.0), leaf)
            metrics = {name: plain_metric(values) for name, values in losses.metrics.items()}
            numbers = {"loss": losses.per_unit, "gradient": gradient, **metrics}
            for name, values in numbers.items():
                place = f"at logp {logp:g}, reference {other:g}, {str(dtype).removeprefix('torch.')}"
                assert bool(torch.isfinite(values).all()), f"{name} is not finite {place}"


def metrics_detached(objective: Objective) -> None:
    pieces = random_step(seed=6)
    losses = objective(*assemble(pieces, objective, policy_scores(pieces, objective)))
    assert losses.metrics, "there are no metrics"
    assert losses.per_unit.requires_grad, "the loss has no gradient"
    assert not losses.weight.requires_grad, "the weights have a gradient"
    for name, values in [(name, plain_metric(values)) for name, values in losses.metrics.items()]:
        assert not values.requires_grad, f"the metric {name} has a gradient"
        assert values.ndim == 1, f"the metric {name} is not a list of numbers"


def pure(objective: Objective) -> None:
    scores, signal = assemble(random_step(seed=7), objective)
    before = copy.deepcopy((scores, signal))
    first, second = objective(scores, signal), objective(scores, signal)
    assert torch.equal(first.per_unit, second.per_unit), "two calls with the same input differ"
    for kept, now in zip(before, (scores, signal), strict=True):
        for field in fields(kept):
            if torch.is_tensor(getattr(kept, field.name)):
                same = torch.equal(getattr(kept, field.name), getattr(now, field.name))
                assert same, f"the call changes its input {field.name}"


def frozen_scores(objective: Objective) -> None:
    pieces = random_step(seed=8)
    scores, signal = assemble(pieces, objective, policy_scores(pieces, objective))
    frozen = {n: getattr(scores, n).clone().requires_grad_() for n in FROZEN if n in objective.needs}
    reduce_losses(objective(replace(scores, **frozen), signal), 1.0).backward()
    for name, values in frozen.items():
        assert values.grad is None, f"{name} gets a gradient"


def weights_known(objective: Objective) -> None:
    scores, signal = assemble(random_step(seed=9), objective)
    known = objective.weights(scores.lengths, signal).double()
    assert torch.equal(objective(scores, signal).weight, known), "weights() and the call return other weights"


def needs_read(objective: Objective) -> None:
    pieces = random_step(seed=10)
    before = loss_and_gradient(pieces, objective)
    for need in objective.needs - {"coupling"}:
        after = loss_and_gradient(with_scores(pieces, **{need: -0.3}), objective)
        assert not all(map(torch.equal, before, after)), f"{need} is in needs and is not read"


def refuses(objective: Objective) -> None:
    """A number that is none, and a choice that does not exist, with a ConfigError that names the setting."""
    for field in fields(objective):  # type: ignore
        bad = "no such choice" if isinstance(field.default, str) else float("nan")
        try:
            type(objective)(**{field.name: bad})
        except ConfigError as error:
            assert field.name in str(error), f"the refusal of {field.name} does not name it: {error}"
        else:
            raise AssertionError(
                f"{field.name} takes {bad}: declare its range, such as {field.name}: float = positive(0.1)"
            )


def _fact(name: str) -> Contract:
    def check(objective: Objective) -> None:
        declared, found = getattr(objective, name), getattr(measured, name)(objective)
        assert declared == found, f"{name} is {declared!r} and the loss behaves as {found!r}"

    return check


def opponents(objective: Objective) -> None:
    """With the defaults: at a weight of 0 the source of a completion has no effect."""
    found, declared = measured.takes_opponents(type(objective)()), objective.opponents
    if found is None:
        assert declared == (), (
            f"opponents is {declared!r} and the policy's samples alone do not make the signal"
        )
    else:
        assert ("reference" in declared) == found, f"opponents is {declared!r} and the loss says otherwise"


CONTRACTS: Mapping[str, Contract] = {
    "a step may be cut anywhere": cut_anywhere,
    "the order of groups does not matter": any_order,
    "a unit does not look at another group": groups_apart,
    "a unit of weight zero has no gradient": zero_weight,
    "extreme log-probabilities give finite numbers": finite_at_extremes,
    "metrics are detached numbers": metrics_detached,
    "the loss is pure": pure,
    "reference and behaviour policy get no gradient": frozen_scores,
    "weights are known before any score": weights_known,
    "needs are what is read": needs_read,
    "hyperparameters out of range are refused": refuses,
    "trains": _fact("trains"),
    "imitates": _fact("imitates"),
    "length_normalized": _fact("length_normalized"),
    "chosen_fall": _fact("chosen_fall"),
    "value_is_surrogate": _fact("value_is_surrogate"),
    "correctable": _fact("correctable"),
    "values_are_returns": _fact("values_are_returns"),
    "opponents": opponents,
    "unjudged_samples": _fact("unjudged_samples"),
    "least_completions": _fact("least_completions"),
}
"""What every objective keeps to, and the facts that it declares."""


@dataclass(frozen=True, kw_only=True)
class ContractResult:
    """One contract of an objective; `failure` is empty if it holds."""

    contract: str
    failure: str = ""


def contract_results(variants: list[Objective]) -> list[ContractResult]:
    """Each contract, over all variants of an objective."""
    return [
        ContractResult(contract=name, failure=_failure(check, variants)) for name, check in CONTRACTS.items()
    ]


def _failure(check: Contract, variants: list[Objective]) -> str:
    for objective in variants:
        try:
            check(objective)
        except Exception as error:  # whatever the user's code raises is an answer
            text = " ".join(str(error).split()) or "an assertion failed"
            kind = "" if isinstance(error, AssertionError) else f"{type(error).__name__}: "
            return f"{kind}{text[:200]} ({objective})"
    return ""


AT_START = ("the loss is pure", "weights are known before any score", "needs are what is read")
"""Contracts without which a run would be silently wrong."""


def refuse_broken(objective: Objective, name: str) -> None:
    """Refuse an objective of the user's that does not keep what training relies on."""
    for contract in AT_START:
        if failure := _failure(CONTRACTS[contract], [objective]):
            raise ConfigError(
                f"The objective {name} cannot be trained: {failure}",
                do=f"Fix it; `preftune objectives --check {name}` prints every failure",
            )


def default_variants(kind: type[Objective]) -> list[Objective]:
    """The defaults, and each hyperparameter at another value, where the class takes it alone."""
    return [kind(), *(other for other in _changed(kind))]


def _changed(kind: type[Any]) -> Iterator[Objective]:
    hints = get_type_hints(kind)
    for field in fields(kind):
        for value in _others(hints[field.name], None if field.default is MISSING else field.default):
            try:
                yield kind(**{field.name: value})
            except ConfigError:
                continue


def _others(hint: Any, default: Any) -> list[object]:
    if isinstance(default, bool):
        return [not default]
    if isinstance(default, int | float):
        return [type(default)(2 * default) if default else type(default)(1)] + (  # type: ignore
            [default / 2] if isinstance(default, float) else []
        )
    return [choice for choice in choices_of(hint) if choice != default]


def _in_dtype(piece: Piece, dtype: torch.dtype) -> Piece:
    def low(tokens: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {name: values.to(dtype) for name, values in tokens.items()}

    tokens = tuple(low(known) for known in piece.tokens)
    return replace(piece, tokens=tokens, mismatched=low(piece.mismatched))


def _same(one: torch.Tensor, other: torch.Tensor, told: str) -> None:
    assert_close(one, other, rtol=1e-12, atol=1e-12, msg=lambda text: f"{told}: {text}")
