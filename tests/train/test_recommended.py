"""A setting far outside what an objective's page recommends is told before training."""

import re
from dataclasses import replace

import pytest

from preftune.catalogue.entries import entry
from preftune.model.adapters import LoraOptions
from preftune.objectives import OBJECTIVES, Objective
from preftune.race.options import BudgetOptions, CompareConfig
from preftune.train.optim import OptimOptions
from preftune.train.options import TrainConfig
from preftune.train.recommended import unusual_settings
from tests.catalogue.learning_rates import DOCS, with_row, with_table


@pytest.mark.parametrize(
    ("name", "settings", "rate", "rank", "expected"),
    [
        ("dpo", {}, 1e-6, 0, []),
        ("dpo", {}, 1e-4, 16, []),
        ("bnf", {}, 1e-4, 16, []),
        ("dpo", {}, 1e-2, 16, ["learning rate 0.01 is far above the usual 3e-06 to 1e-05 for adapters"]),
        ("dpo", {}, 1e-3, 0, ["learning rate 0.001 is far above the usual 3e-07 to 1e-06 for all weights"]),
        (
            "simpo",
            {},
            1e-4,
            0,
            ["learning rate 0.0001 is far above the usual 3e-07 to 1e-06 for all weights"],
        ),
        ("dpo", {}, 1e-10, 0, ["learning rate 1e-10 is far below the usual"]),
        ("simpo", {"beta": 0.1}, 1e-6, 0, ["beta 0.1 is far below the recommended 2"]),
        ("dpo", {"beta": 5.0}, 1e-6, 0, ["beta 5 is far above the recommended 0.1"]),
        ("dpo", {"beta": 0.01}, 0.0, 0, []),
        ("sft", {}, 1e-5, 0, []),
    ],
)
def test_what_is_unusual(name, settings, rate, rank, expected):
    lines = unusual_settings(OBJECTIVES[name](**settings), OptimOptions(learning_rate=rate), rank)
    assert len(lines) == len(expected)
    for line, start in zip(lines, expected, strict=True):
        assert line.startswith(start) and line.endswith(f"see: preftune objectives {name}")


@pytest.mark.parametrize("name", OBJECTIVES)
def test_defaults_are_usual(name):
    objective = OBJECTIVES[name]
    rates = objective.learning_rates
    assert 0 < rates.low <= rates.default <= rates.high < 1
    assert rates is not Objective.learning_rates and rates.source
    assert unusual_settings(objective(), OptimOptions(learning_rate=rates.default), 0) == []


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_page_names_the_default_rate_and_its_source(name):
    page = (DOCS / "objectives" / f"{name}.md").read_text(encoding="utf-8")
    assert with_row(page, name) == page, "run python -m tests.catalogue.learning_rates"
    rates = OBJECTIVES[name].learning_rates
    row = next(line for line in page.splitlines() if line.startswith("| learning rate |"))
    default, adapters = re.findall(r"[0-9.]+e-[0-9]+", row)[:2]
    assert float(default) == rates.default and float(adapters) == pytest.approx(10 * rates.default)
    assert f"Source: {rates.source} |" in row


def test_the_table_of_rates_is_that_of_the_classes():
    page = (DOCS / "training.md").read_text(encoding="utf-8")
    assert with_table(page) == page, "run python -m tests.catalogue.learning_rates"


@pytest.mark.parametrize(
    ("name", "rank", "expected"),
    [
        ("dpo", 0, 1e-6),
        ("dpo", 16, 1e-5),
        ("kto", 0, 5e-6),
        ("sft", 8, 2e-4),
        ("nca", 1, 5e-6),
        ("cpo", 16, 1e-4),
    ],
)
def test_a_run_without_a_rate_takes_that_of_its_objective(name, rank, expected):
    config = TrainConfig(data="x", output="y", objective=OBJECTIVES[name](), lora=LoraOptions(rank=rank))
    assert config.optim.learning_rate == expected
    again = replace(config, optim=OptimOptions(learning_rate=0.5))
    assert again.optim.learning_rate == 0.5
    assert TrainConfig(data="x", output="y", optim=OptimOptions(learning_rate=0.0)).optim.learning_rate == 0.0


def test_a_comparison_has_one_grid_for_all_methods():
    settings = {"objectives": "dpo,kto,sft", "output": "y", "data": "x", "budget": BudgetOptions(steps=4)}
    assert CompareConfig(**settings).race().rates == (3e-7, 1e-6, 3e-6, 1e-5)
    adapters = CompareConfig(**settings, lora=LoraOptions(rank=8))
    assert adapters.race().rates == (3e-6, 1e-5, 3e-5, 1e-4)


SOURCES = re.compile(
    r"authors|paper|TRL|DPO|BCO|IPO|our choice|Our choice|NVIDIA|OpenRLHF|Tulu|implementation|see the table|alpha|verl"
)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_page_names_the_source_of_the_strength(name):
    """Of the hyperparameters that set how strongly the reference or the margin counts."""
    for parameter in entry(name).hyper_parameters:
        if parameter.name in ("beta", "tau", "kl_coef", "kl_weight", "eta"):
            assert SOURCES.search(parameter.note), f"{parameter.name}: {parameter.note}"
