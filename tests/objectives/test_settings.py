"""Defaults (those of the sources that each page names) and the edges of every range."""

import math
from dataclasses import asdict

import jaxtyping
import pytest

from preftune.errors import ConfigError
from preftune.objectives import OBJECTIVES

DEFAULTS = {
    "agro": {"beta": 0.1},
    "alpha-dpo": {"beta": 2.5, "gamma": 1.5, "alpha": 0.2},
    "alphapo": {"beta": 2.5, "gamma": 0.1, "alpha": 0.25},
    "aot": {"beta": 0.01, "pairing": "paired", "label_smoothing": 0.0},
    "apo-down": {"beta": 0.1},
    "apo-zero": {"beta": 0.1, "unit": "pair"},
    "bco": {"beta": 0.01},
    "bco-pair": {"beta": 0.01},
    "best-of-n": {"negative_weight": 0.05, "negatives": "sum", "min_ratio": 0.01, "nll_scale": "mean"},
    "beta-dpo": {"beta": 0.1, "alpha": 0.6, "keep": 0.8},
    "bnf": {"reduction": "sequence_mean"},
    "bpo": {"beta": 0.1, "link": "logistic"},
    "bradley-terry": {"margin": 0.0, "centring": 0.01, "heads": 1},
    "cal-dpo": {"beta": 0.002, "calibration_weight": 0.5},
    "copg": {"beta": 0.1},
    "cpo": {"beta": 0.1, "nll_weight": 1.0, "nll_scale": "mean"},
    "cpo-simpo": {"beta": 10.0, "gamma": 5.4, "nll_weight": 0.05, "nll_scale": "mean"},
    "dapo": {"clip_low": 0.2, "clip_high": 0.28, "eps": 1e-4},
    "dft": {"tau": 1.0, "gamma": 0.85, "variant": "dft"},
    "dil": {"link": "lsif"},
    "discopop": {"beta": 0.05, "tau": 0.05},
    "dpo": {"beta": 0.1, "label_smoothing": 0.0},
    "dpop": {"beta": 0.3, "penalty": 50.0},
    "dr-grpo": {"clip": 0.2, "max_tokens": 128},
    "dynamic-ft": {},
    "era": {"beta": 1.0, "gamma": 1e-3},
    "exo": {"beta": 0.1, "label_smoothing": 1e-3},
    "exo-group": {"beta": 0.5, "reward_temperature": 0.5},
    "f-dpo": {"beta": 0.1, "divergence": "js", "alpha": None},
    "gdpo": {"beta": 0.1, "soft_label": 0.9, "link": "logistic"},
    "grpo": {"beta": 0.04, "clip": 0.2, "eps": 1e-4, "kl": "k3"},
    "gsil": {"beta": 0.01, "offset": 2.0, "link": "bernoulli"},
    "gspo": {"clip_low": 3e-4, "clip_high": 4e-4, "eps": 1e-4},
    "gvpo": {"beta": 0.1},
    "hinge": {"beta": 0.05},
    "hypo": {"beta": 0.1, "kl_weight": 1e-4},
    "infonca": {"beta": 0.01, "reward_temperature": 1.0},
    "inpo": {"eta": 7.5e-3, "tau": 2.5e-3},
    "ipo": {"tau": 0.1, "reduction": "mean"},
    "kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.0},
    "ld-dpo": {"beta": 0.1, "alpha": 0.5},
    "ln-dpo": {"beta": 5.0},
    "mallowspo": {"beta": 0.1, "scale": None},
    "mixture": {"terms": "0.8*dpo(beta=0.1)+0.2*bco-pair(beta=0.1)+sft"},
    "mpo": {"dpo_weight": 0.8, "bco_weight": 0.2, "sft_weight": 1.0, "beta": 0.1},
    "nash-md": {"beta": 0.1},
    "nca": {"beta": 0.01, "reward_temperature": 1.0},
    "orpo": {"odds_weight": 0.1},
    "ppo": {
        "kl_coef": 0.05,
        "clip": 0.2,
        "vf_coef": 0.1,
        "gamma": 1.0,
        "lam": 0.95,
        "normalize_returns": True,
        "value_clip": None,
        "dual_clip": None,
    },
    "preference-matching": {},
    "r-dpo": {"beta": 0.1, "alpha": 0.01},
    "rebel": {"eta": 1.0, "kl_coef": 0.05},
    "reinforce": {"baseline": "leave_one_out", "beta": 0.0, "momentum": None, "credit": "return"},
    "reinforce-plus-plus": {"beta": 0.01, "gamma": 1.0, "clip": 0.2},
    "reward-aware-rpo": {"beta": 0.2, "eta": 1.0, "distance": "backward_kl"},
    "reward-distillation": {"beta": 0.1},
    "rloo": {"beta": 0.03, "clip": None},
    "robust-dpo": {"beta": 0.1, "label_smoothing": 0.1},
    "rpo": {"beta": 0.5, "nll_weight": 0.2, "nll_scale": "mean"},
    "rwr": {"temperature": 1.0, "max_weight": 20.0, "reduction": "token_mean"},
    "sft": {"reduction": "token_mean"},
    "simper": {},
    "simpo": {"beta": 2.0, "gamma": 1.0},
    "slic": {"delta": 1.0, "nll_weight": 0.1, "nll_scale": "sum"},
    "spo": {"win": "sigmoid"},
    "sppo": {"beta": 1e-3, "scale": 0.5},
    "stepwise": {"loss": "logistic"},
    "tdpo": {"beta": 0.1, "variant": "tdpo2", "alpha": None},
    "tis-dpo": {"beta": 0.1, "alpha": 0.5, "mu": 1.0, "lower": -0.5, "upper": 1.5},
    "topr": {"positive_low": 1.0, "positive_high": 1.0, "negative_low": 0.0, "negative_high": 1.0},
    "wpo": {"beta": 0.01},
    "xpo": {"beta": 0.1, "alpha": 1e-5},
}
ABOVE_ZERO = ([1e-6], [0.0, -1.0, math.inf])
FROM_ZERO = ([0.0], [-1e-6, math.inf])
ANY = ([-1.0, 0.0], [math.inf])
RANGES = {  # field -> (edges that are taken, values that are refused)
    **dict.fromkeys(
        ("beta", "tau", "eta", "scale", "delta", "odds_weight", "temperature", "max_weight"), ABOVE_ZERO
    ),
    **dict.fromkeys(
        ("nll_weight", "calibration_weight", "penalty", "reward_temperature", "kl_coef", "kl_weight"),
        FROM_ZERO,
    ),
    **dict.fromkeys(
        ("beta", "tau", "scale", "delta", "odds_weight", "temperature", "max_weight"), ABOVE_ZERO
    ),
    **dict.fromkeys(("dpo_weight", "bco_weight", "sft_weight"), ABOVE_ZERO),
    **dict.fromkeys(
        ("margin", "centring", "nll_weight", "calibration_weight", "penalty", "reward_temperature"), FROM_ZERO
    ),
    **dict.fromkeys(("desirable_weight", "undesirable_weight"), ABOVE_ZERO),
    "keep": ([1e-6, 1.0], [0.0, 1.000001]),
    **dict.fromkeys(("nll_weight", "calibration_weight", "penalty", "reward_temperature"), FROM_ZERO),
    "offset": ANY,
    "mu": FROM_ZERO,
    "lower": ([-9.0, 1.499999], [-math.inf]),
    "upper": ([-0.499999, 9.0], [math.inf]),
    "clip": ([1e-6, 0.999999], [0.0, 1.0]),
    "clip_low": ([1e-6, 0.999999], [0.0, 1.0]),
    **dict.fromkeys(("clip_high", "eps"), ABOVE_ZERO),
    **dict.fromkeys(("negative_weight", "kl_coef", "vf_coef"), FROM_ZERO),
    "min_ratio": ([0.0, 0.999999], [-1e-6, 1.0]),
    "lam": ([0.0, 1.0], [-1e-6, 1.000001]),
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
    ("cpo-simpo", "gamma"): ANY,
    ("era", "gamma"): FROM_ZERO,
    **dict.fromkeys((("ppo", "gamma"), ("reinforce-plus-plus", "gamma")), ([1e-6, 1.0], [0.0, 1.000001])),
    **dict.fromkeys(
        ((name, "beta") for name in ("grpo", "reinforce", "reinforce-plus-plus", "rloo")), FROM_ZERO
    ),
    ("dr-grpo", "max_tokens"): ([1], [0, -1]),
    ("bradley-terry", "heads"): ([1, 1024], [0, 1025]),
    ("topr", "positive_low"): ([0.0, 1.0], [-1e-6, math.inf]),
    ("topr", "positive_high"): ([1.0], [-1e-6, math.inf]),
    ("topr", "negative_low"): ([0.0, 1.0], [-1e-6, math.inf]),
    ("topr", "negative_high"): ([0.0], [-1e-6, math.inf]),
    ("ld-dpo", "alpha"): ([0.0, 1.0], [-1e-6, 1.000001]),
    ("r-dpo", "alpha"): FROM_ZERO,
    ("tis-dpo", "alpha"): FROM_ZERO,
    ("discopop", "tau"): ([1e-6, 1.0], [0.0, 1.000001]),
    ("exo-group", "reward_temperature"): ABOVE_ZERO,
    ("inpo", "eta"): ([2.6e-3, 1.0], [0.0, -1.0, math.inf]),
    ("inpo", "tau"): ([1e-6, 7.4e-3], [0.0, 7.5e-3]),
    ("nash-md", "beta"): FROM_ZERO,
    ("xpo", "alpha"): FROM_ZERO,
    ("exo", "label_smoothing"): ([1e-6, 0.499999], [0.0, 0.5]),
}
FIELDS = [
    (name, field)
    for name, fields in DEFAULTS.items()
    for field, value in fields.items()
    if isinstance(value, (int, float)) and not isinstance(value, bool)
]


def test_defaults():
    """Beside these, the pages of all objectives name the defaults, and a test compares."""
    assert {name: asdict(OBJECTIVES[name]()) for name in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize(("name", "field"), FIELDS)
def test_ranges(name, field, monkeypatch):
    monkeypatch.setattr(
        jaxtyping.config, "jaxtyping_disable", True
    )  # as for a user: no type checker in the way
    taken, refused = OWN_RANGES.get((name, field)) or RANGES[field]
    for value in taken:
        OBJECTIVES[name](**{field: value})
    for value in refused:
        with pytest.raises(ConfigError, match=f"^{name}: {field} is out of range"):
            OBJECTIVES[name](**{field: value})
