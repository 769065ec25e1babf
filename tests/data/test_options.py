"""Settings are checked when they are made, without torch."""

import subprocess
import sys

import pytest

from preftune.data.options import DataOptions
from preftune.errors import ConfigError


@pytest.mark.parametrize(
    "option",
    [
        {"split": ""},
        {"min_gap": -0.1},
        {"min_gap": float("nan")},
        {"min_gap": float("inf")},
        {"max_length": 1},
        {"max_rows": 0},
        {"soft_label_temperature": 0.0},
        {"soft_label_temperature": float("inf")},
        {"soft_label_temperature": float("nan")},
        {"columns": {"loser": "chosen"}},
    ],
)
def test_what_is_out_of_range_is_an_error(option):
    with pytest.raises(ConfigError, match=f"data option {next(iter(option))}"):
        DataOptions(**option)


CHOICES = {
    "format": "pair",
    "bad_rows": "ignore",
    "pairing": "some",
    "template": "chatml",
    "truncation": "left",
}


def test_what_is_no_choice_is_an_error():
    """In a process of its own, because under pytest the type check speaks first."""
    code = (
        "from preftune.data.options import DataOptions\nfrom preftune.errors import ConfigError\n"
        f"for name, value in {CHOICES!r}.items():\n"
        "    try:\n        DataOptions(**{name: value})\n    except ConfigError as error:\n        print(error)\n"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told = result.stdout.splitlines()
    assert len(told) == len(CHOICES)
    for line, (name, value) in zip(told, CHOICES.items(), strict=True):
        assert line.startswith(f"The data option {name} is unknown; got {value}; expected ")


def test_every_option_is_described():
    described = DataOptions.__doc__ or ""
    assert all(f"\n        {name}: " in described for name in DataOptions.__dataclass_fields__)


def test_the_options_need_neither_torch_nor_transformers():
    code = "import sys, preftune.data.options, preftune.terminal; print({'torch', 'transformers'} & set(sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
