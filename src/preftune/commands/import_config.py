"""The command `import-config`: a configuration of TRL, LLaMA-Factory, axolotl or ms-swift as one of preftune."""

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import yaml

from preftune.cli.output import print_json
from preftune.cli.settings import parse_settings
from preftune.cli.translate import Translation, detect_tool, nested, translate
from preftune.errors import ConfigError, without_secrets
from preftune.spec.schema import KEY, SCHEMA
from preftune.spec.strict_yaml import parse_yaml
from preftune.storage import new_file, whole_file
from preftune.terminal import clean_terminal


@dataclass(frozen=True, kw_only=True)
class ImportConfigConfig:
    """Translate a configuration of TRL, LLaMA-Factory, axolotl or ms-swift. Every key is translated, reported as
    not needed, or refused with a reason; with refused keys the exit status is 2.

    Args:
        file: the YAML or JSON file of the other tool.
        tool: whose file it is; detected from its keys when not given.
        output: write the settings here instead of printing them.
        overwrite: replace the output if it exists.
        json: print the settings and the account of every key as JSON.
    """

    file: str
    tool: Literal["trl", "llama-factory", "axolotl", "ms-swift"] | None = None
    output: str | None = None
    overwrite: bool = False
    json: bool = False


def run(arguments: Sequence[str]) -> int:
    settings = parse_settings(ImportConfigConfig, arguments, "preftune import-config", positional="file")
    config = _read(settings.file)
    found = translate(config, settings.tool or detect_tool(config))
    refused = [one for one in found.accounts if one.outcome == "refused"]
    text = settings_text(found)
    if settings.output is not None:
        with (
            new_file(settings.output, settings.overwrite) as path,
            whole_file(Path(path), "write the settings") as file,
        ):
            file.write_bytes(text.encode())
    if settings.json:
        print_json({**asdict(found), "settings": dict(found.settings)})
    else:
        _tell(found)
        print(clean_terminal(settings.output or text), end="" if settings.output is None else "\n")
    return 2 if refused else 0


def _read(name: str) -> dict[str, object]:
    try:
        content = parse_yaml(Path(name).read_text(encoding="utf-8"), name)
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"Cannot read {name}", got=" ".join(str(error).split())[:160], expected="a YAML or JSON file"
        ) from error
    if not isinstance(content, dict):
        raise ConfigError(
            f"{name} holds no settings", got=type(content).__name__, expected="key: value lines"
        )
    for key, value in content.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"{name}: {key} is not finite", got=str(value), expected="a number")
    return content


def settings_text(found: Translation) -> str:
    """The YAML file, with the command that uses it and what has to be done manually. Passwords in addresses are not
    copied.
    """
    lines = [f"# from {found.tool}; use it with: preftune {found.command} --config FILE"]
    lines += [f"# {one.key}: {one.says}" for one in found.accounts if one.outcome == "refused"]
    return without_secrets(
        "\n".join([*lines, yaml.safe_dump({KEY: SCHEMA, **nested(found.settings)}, sort_keys=False)])
    )


def _tell(found: Translation) -> None:
    """The account of every key, on standard error."""
    width = max(len(one.key) for one in found.accounts)
    for outcome in ("translated", "not needed", "refused"):
        chosen = [one for one in found.accounts if one.outcome == outcome]
        if chosen:
            print(f"{outcome} ({len(chosen)}):", file=sys.stderr)
        for one in chosen:
            print(clean_terminal(without_secrets(f"  {one.key:<{width}}  {one.says}")), file=sys.stderr)
