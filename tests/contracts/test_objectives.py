"""What every objective of the table must keep to. A new objective gets all of this by being registered."""

import contextlib
import itertools
from dataclasses import asdict, fields, replace

import jaxtyping
import pytest
import torch

from preftune.errors import ConfigError
from preftune.objectives import OBJECTIVES
from preftune.objectives.contracts.checks import CONTRACTS, refuses
from preftune.objectives.contracts.steps import couple, loss_and_gradient, random_step, state_after
from tests.contracts.variants import ALL, IDS, VARIANTS, variants_of


@pytest.mark.parametrize(("name", "objective"), ALL, ids=IDS)
@pytest.mark.parametrize("contract", CONTRACTS)
def test_contract(contract, name, objective, monkeypatch):
    if CONTRACTS[contract] is refuses:  # as for a user: no type checker in the way
        monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)
    CONTRACTS[contract](objective)


def settings(name):
    """The variants of an objective, and its default with each single hyper-parameter that a variant has
    changed.
    """
    found = variants_of(name)
    for variant in found[1:]:
        for field in fields(variant):
            with contextlib.suppress(
                ConfigError
            ):  # one that has no effect alone is refused; the variants must have it
                found.append(OBJECTIVES[name](**{field.name: getattr(variant, field.name)}))
    return found


def _steps(tokens):
    """A step that ends with the first token of a completion."""
    found = torch.full_like(tokens["logp"], torch.nan)
    found[0] = 0.5
    return found


@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_hyper_parameter_is_felt(name):
    """Of each field there are two settings that differ in it alone, and they differ in loss or gradient.

    In a first step or in a later one (a momentum has nothing to weigh before that), with data that give the
    probability of a pair or with data that do not, or with rewards of steps.
    """
    before, pieces = [random_step(seed=12), random_step(seed=13)], random_step(seed=11, num_groups=9)
    silent = [replace(piece, probabilities=()) for piece in pieces]
    stepped = [replace(piece, steps=tuple(map(_steps, piece.tokens))) for piece in pieces]
    results = []
    for one in settings(name):
        later = couple(pieces, one, state_after(before, one))
        tries = (
            loss_and_gradient(pieces, one),
            loss_and_gradient(pieces, one, couplings=later),
            loss_and_gradient(silent, one),
            *([loss_and_gradient(stepped, one)] if one.uses_steps and not one.needs & {"coupling"} else []),
        )
        results.append((asdict(one), [tensor for pair in tries for tensor in pair]))
    for field in fields(OBJECTIVES[name]):
        if field.name == "heads":  # the width of the model's head: tests/objectives/test_bradley_terry.py
            continue
        felt = False
        for (one, first), (other, second) in itertools.combinations(results, 2):
            if {key for key in one if one[key] != other[key]} == {field.name}:
                felt |= not all(map(torch.equal, first, second))
        assert felt, (
            f"{name}.{field.name} changes nothing, or no two settings of the suite differ in it alone"
        )


def test_the_table_is_complete():
    assert set(VARIANTS) <= set(OBJECTIVES)
    assert list(OBJECTIVES) == sorted(OBJECTIVES)
