"""Checks that several commands make of their settings."""

import json
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from preftune.data.options import DataOptions
from preftune.errors import ConfigError, refuse_idle


def check_seed(seed: int) -> None:
    if not 0 <= seed < 2**62:
        raise ConfigError("seed is out of range", got=seed, expected="0 or more, less than 2**62")


def refuse_idle_rows(rows: DataOptions, used: tuple[str, ...], where: str) -> None:
    """Settings of the data that state nothing where only prompts are read."""
    unused = [option.name for option in fields(rows) if option.name not in used]
    refuse_idle(rows, f"on {where}", *unused, prefix="rows.")


READING_OPTIONS = ("split", "format", "columns", "ignore", "bad_rows", "template", "max_rows", "streaming")


def check_new_file(output: str, overwrite: bool) -> None:
    """Refuses, before the work starts, to replace a file without --overwrite."""
    if Path(output).exists() and not overwrite:
        raise ConfigError(
            f"The output {output} is there already",
            expected="a new file",
            do="Choose another --output, or add --overwrite",
        )


def name_bare_words(arguments: Sequence[str], setting: str) -> list[str]:
    """The words before the first flag as a list-valued setting: `a b --json` -> `--runs ["a","b"] --json`."""
    words = list(arguments)
    count = next((i for i, word in enumerate(words) if word.startswith("-")), len(words))
    return [f"--{setting}", json.dumps(words[:count]), *words[count:]] if count else words


def resumed_folder(arguments: Sequence[str], command: str) -> str | None:
    """FOLDER of `--resume FOLDER`, which allows nothing else; None where the first word is another."""
    if not arguments or arguments[0].partition("=")[0] != "--resume":
        return None
    first, *rest = arguments
    folder, *extra = [first.partition("=")[2], *rest] if "=" in first else [*rest, ""]
    if not folder or any(extra):
        raise ConfigError(
            "--resume takes a run folder and nothing else",
            got=" ".join(arguments),
            expected=f"preftune {command} --resume RUN",
            do="The run continues with the settings in its config.yaml",
        )
    return folder


def take_switch(arguments: Sequence[str], name: str) -> tuple[bool, list[str]]:
    """(whether `--NAME`, `--NAME true` or `--NAME=true` is among the words, the other words)"""
    is_on, others, words = False, [], list(arguments)
    while words:
        word = words.pop(0)
        flag, _, value = word.partition("=")
        if flag != f"--{name}":
            others.append(word)
            continue
        if not value and words and words[0].lower() in ("true", "false"):
            value = words.pop(0)
        is_on = value.lower() in ("", "true")
    return is_on, others
