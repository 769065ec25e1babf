"""Checks that several commands make of their settings."""

from dataclasses import fields
from typing import Literal

from preftune.data.options import DataOptions
from preftune.errors import ConfigError, refuse_idle

Precision = Literal["fp32", "bf16"]


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**62:
        raise ConfigError("seed is out of range", got=seed, expected="0 or more, less than 2**62")


def refuse_idle_rows(rows: DataOptions, used: tuple[str, ...], where: str) -> None:
    """Settings of the data that say nothing where only prompts are read."""
    unused = [option.name for option in fields(rows) if option.name not in used]
    refuse_idle(rows, f"on {where}", *unused, prefix="rows.")


READING_OPTIONS = ("split", "format", "columns", "bad_rows", "template", "max_rows")
