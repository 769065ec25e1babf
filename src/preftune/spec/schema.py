"""The version of the settings files, and how files of older versions are read.

A run writes `schema: N` into its config.yaml. A file without that line is of version 0. To rename or remove a setting,
raise SCHEMA by one and append a step to STEPS.
"""

from collections.abc import Callable
from typing import Any

from preftune.errors import ConfigError, shown

KEY = "schema"
SCHEMA = 1

Migration = Callable[[dict[str, Any]], list[str]]
"""Changes a tree of settings in place from one version to the next; what it changed, in words."""


def _from_0(settings: dict[str, Any]) -> list[str]:
    """`layout.row_tokens` left with rows of one length; a `collect.data_share` of 0 is now the default, null."""
    notes, layout, collect = [], settings.get("layout"), settings.get("collect")
    if isinstance(layout, dict) and "row_tokens" in layout:
        del layout["row_tokens"]
        notes.append("layout.row_tokens is no longer a setting")
    if isinstance(collect, dict) and collect.get("data_share") == 0 and "prompts" in collect:
        collect["data_share"] = None
        notes.append("collect.data_share 0 is now null")
    return notes


STEPS: tuple[Migration, ...] = (_from_0,)
"""Step k leads from version k to version k + 1."""


def migrated(settings: dict[str, Any], where: str) -> tuple[dict[str, Any], list[str]]:
    """Settings of any version as settings of this one, without the version, and what that changed. A file that
    a newer preftune wrote is refused.
    """
    tree = {name: dict(value) if isinstance(value, dict) else value for name, value in settings.items()}
    version = tree.pop(KEY, 0)
    if not isinstance(version, int) or isinstance(version, bool) or not 0 <= version <= SCHEMA:
        newer = isinstance(version, int) and version > SCHEMA
        raise ConfigError(
            f"{where} was written by a newer preftune" if newer else f"Invalid value for {KEY} in {where}",
            got=f"{KEY} {shown(version)}",
            expected=f"at most {KEY} {SCHEMA}" if newer else f"a whole number from 0 to {SCHEMA}",
            do="Upgrade preftune: pip install --upgrade preftune" if newer else None,
        )
    notes = [note for step in STEPS[version:] for note in step(tree)]
    return tree, notes
