"""Defaults (those of the sources that each page names) and the edges of every range."""

import math
from dataclasses import asdict

import jaxtyping
import pytest

from preftune.errors import ConfigError
from preftune.objectives import OBJECTIVES

DEFAULTS = {
    "alpha-dpo": {"beta": 2.5, "gamma": 1.5, "alpha": 0.2},
    "alphapo": {"beta": 2.5, "gamma": 0.1, "alpha": 0.25},
    "aot": {"beta": 0.01, "pairing": "paired", "label_smoothing": 0.0},
    "apo-down": {"beta": 0.1},
    "apo-zero": {"beta": 0.1, "unit": "pair"},
    "bco": {"beta": 0.01},
    "bco-pair": {"beta": 0.01},
    "beta-dpo": {"beta": 0.1, "alpha": 0.6, "keep": 0.8},
    "bnf": {"reduction": "sequence_mean"},
    "cal-dpo": {"beta": 0.002, "calibration_weight": 0.5},
    "cpo": {"beta": 0.1, "nll_weight": 1.0, "nll_scale": "mean"},
    "dft": {"tau": 1.0, "gamma": 0.85, "variant": "dft"},
    "dil": {"link": "lsif"},
    "discopop": {"beta": 0.05, "tau": 0.05},
    "dpo": {"beta": 0.1, "label_smoothing": 0.0},
    "dpop": {"beta": 0.3, "penalty": 50.0},
    "dynamic-ft": {},
    "era": {"beta": 1.0, "gamma": 1e-3},
    "exo": {"beta": 0.1, "label_smoothing": 1e-3},
    "f-dpo": {"beta": 0.1, "divergence": "js", "alpha": None},
    "gdpo": {"beta": 0.1, "soft_label": 0.9},
    "gsil": {"beta": 0.01, "offset": 2.0, "link": "bernoulli"},
    "hinge": {"beta": 0.05},
    "infonca": {"beta": 0.01, "reward_temperature": 1.0},
    "ipo": {"tau": 0.1, "reduction": "mean"},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "ld-dpo": {"beta": 0.1, "alpha": 0.5},
    "ln-dpo": {"beta": 5.0},
    "nca": {"beta": 0.01, "reward_temperature": 1.0},
    "orpo": {"odds_weight": 0.1},
    "r-dpo": {"beta": 0.1, "alpha": 0.01},
    "reward-distillation": {"beta": 0.1},
    "robust-dpo": {"beta": 0.1, "label_smoothing": 0.1},
    "rpo": {"beta": 0.5, "nll_weight": 0.2, "nll_scale": "mean"},
    "rwr": {"temperature": 1.0, "max_weight": 20.0, "reduction": "token_mean"},
    "sft": {"reduction": "token_mean"},
    "simper": {},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "slic": {"delta": 1.0, "nll_weight": 0.1, "nll_scale": "sum"},
    "sppo": {"beta": 1e-3, "scale": 0.5},
}
ABOVE_ZERO = ([1e-6], [0.0, -1.0, math.inf])
FROM_ZERO = ([0.0], [-1e-6, math.inf])
ANY = ([-1.0, 0.0], [math.inf])
RANGES = {  # field -> (edges that are taken, values that are refused)
    **dict.fromkeys(("beta", "tau", "scale", "delta", "odds_weight", "temperature", "max_weight"), ABOVE_ZERO),
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), ABOVE_ZERO),
    "keep": ([1e-6, 1.0], [0.0, 1.000001]),
    **dict.fromkeys(("nll_weight", "calibration_weight", "penalty", "reward_temperature"), FROM_ZERO),
    "offset": ANY,
    "soft_label": ([0.500001, 1.0], [0.5, 1.000001]),
    "label_smoothing": ([0.0, 0.499999], [-1e-6, 0.5]),
}
OWN_RANGES = {  # where a field of that name has another range
    ("alpha-dpo", "alpha"): ANY,
    ("alpha-dpo", "gamma"): ANY,
    ("alphapo", "alpha"): ANY,
    ("alphapo", "gamma"): ANY,
    ("beta-dpo", "alpha"): FROM_ZERO,
    ("dft", "gamma"): ([1e-6, 1.0], [0.0, 1.000001]),
    ("simpo", "gamma"): ANY,
    ("era", "gamma"): FROM_ZERO,
    ("ld-dpo", "alpha"): ([0.0, 1.0], [-1e-6, 1.000001]),
    ("r-dpo", "alpha"): FROM_ZERO,
    ("discopop", "tau"): ([1e-6, 1.0], [0.0, 1.000001]),
    ("exo", "label_smoothing"): ([1e-6, 0.499999], [0.0, 0.5]),
}
FIELDS = [
    (name, field) for name, fields in DEFAULTS.items() for field, value in fields.items() if isinstance(value, float)
]


def test_defaults():
    assert {name: asdict(kind()) for name, kind in OBJECTIVES.items()} == DEFAULTS


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_ranges(name, field, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # as for a user: no type checker in the way
    taken, refused = OWN_RANGES.get((name, field)) or RANGES[field]
    for value in taken:
        OBJECTIVES[name](**{field: value})
    for value in refused:
        with pytest.raises(ConfigError, match=f"^{name}: {field} is out of range"):
            OBJECTIVES[name](**{field: value})
