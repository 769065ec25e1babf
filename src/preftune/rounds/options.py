"""What the settings of rounds mean: policies that a reward names by their place, and the text that rewrites."""

import json
import re
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from rich.table import Table

from preftune.cli.output import make_table
from preftune.errors import ConfigError, StorageError, storage_error
from preftune.rounds.evolve import REWRITE
from preftune.rounds.measure import HeldOut
from preftune.text import interval_text

_PLACES = re.compile(r"\b(policy|reference|model)=(last|before|first)\b")


def named_places(reward: str) -> set[str]:
    """The places of policies that a reward names: last, before, first."""
    return {place for _, place in _PLACES.findall(reward)}


def named_reward(reward: str, last: str, before: str | None, first: str | None) -> str:
    """The reward of a round, with the folders of the policies that it names.

    `last` is the policy that the round starts from, `before` the one that the round before started from, and
    `first` what the start was tuned from.
    """
    folders = {"last": last, "before": before, "first": first}

    def folder(found: re.Match[str]) -> str:
        path = folders[found[2]]
        if path is None:
            raise ConfigError(
                f"The reward names the policy {found[2]}, which the first round does not have",
                got=reward,
                expected="--base: the model that the start was tuned from",
                do="Add --base MODEL",
            )
        quote = '"' if "'" in path else "'"
        return f"{found[1]}={quote}{path}{quote}"

    return _PLACES.sub(folder, reward)


def rewrite_template(path: str | None) -> str:
    """The text that asks for a new prompt."""
    if path is None:
        return REWRITE
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("evolve_template cannot be read", got=f"{path}: {error}") from error
    if "{prompt}" not in text:
        raise ConfigError("evolve_template has no place for the prompt", got=path, expected="{prompt} in it")
    return text


def rows_of_stage(path: Path) -> list[dict[str, Any]]:
    """The rows of a file that a stage wrote."""
    try:
        return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except OSError as error:
        raise storage_error("read the rows", path, error) from error
    except ValueError as error:
        raise StorageError(
            f"{path} holds a line that is no JSON", got=str(error), do="Delete the file: it is made again"
        ) from error


def held_out_table(measures: Sequence[HeldOut | None]) -> Table:
    """A row for the start and for each round."""
    known = [one for one in measures if one is not None]
    names = [one.name for one in fields(HeldOut) if one.name not in ("num_prompts", "k", "threshold")]
    title = f"{known[0].num_prompts} held-out prompts, k = {known[0].k}" if known else "no held-out reward"
    rows = []
    for number, one in enumerate(measures):
        cells = [interval_text(getattr(one, name)) if one else "-" for name in names]
        rows.append((str(number) if number else "start", *cells))
    headings = ("round", *(name.replace("_", " ").replace("pass ", "pass@") for name in names))
    return make_table(headings, rows, title=title)
