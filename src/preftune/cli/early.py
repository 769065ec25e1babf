"""Mistakes in values that show before the libraries are imported: a word in place of a number, a file that does
not exist, a required setting that is missing. The sentences are those that the full check would print.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from preftune.cli.outline import Outline, Setting
from preftune.data.names import missing_data, suffix_of
from preftune.errors import ConfigError, shown
from preftune.model.names import BUNDLED_MODELS, missing_model

DATA_SETTINGS = frozenset({"data", "eval_data", "prompts"})
MODEL_SETTINGS = frozenset({"model", "compare"})
VALUE_PACKAGES = {
    ("optim.name", "adamw-8bit"): "torchao",
    ("optim.name", "adamw_8bit"): "torchao",
    ("optim.name", "schedule-free"): "schedulefree",
    ("lora.quantization", "int4"): "torchao",
    ("lora.quantization", "int8"): "torchao",
}
"""(setting, value) -> the package that it needs."""

INSPECT = "inspect:"  # before the name of a task of inspect-ai

TRACKER_PACKAGES = ("tensorboard", "wandb", "mlflow", "trackio")

EXPECTED = {"int": "a whole number", "float": "a number", "bool": "true or false"}


def check_words(command: str, words: Sequence[str], outline: Outline) -> None:
    """Raises the first mistake among full flags and their values."""
    settings = {one.name: one for one in outline.settings}
    given = dict(_values(words))
    for name, value in given.items():
        if name in settings:
            _check_value(settings[name], value)
        if package := VALUE_PACKAGES.get((name, value)):
            _check_package(name, value, package)
        if name == "report_to":
            _check_trackers(value)
        if (command, name) == ("eval", "tasks"):
            check_tasks(value)
        if name in DATA_SETTINGS and settings[name].kind != "list[str]":
            _check_data(value)
        if name in MODEL_SETTINGS:
            _check_model(value)
    complete = any(word.partition("=")[0] in ("--config", "--resume", "--print_config") for word in words)
    missing = [
        one.name
        for one in outline.settings
        if one.default is None and one.name not in given and one.kind != "list[str]"
    ]
    if missing and not complete:
        raise ConfigError(
            f"--{missing[0]} is missing",
            expected=f"--{missing[0]} VALUE",
            do=f"See preftune {command.replace('diagnose-', 'diagnose ')} --help",
        )


def _values(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for place, word in enumerate(words):
        if not word.startswith("--"):
            continue
        flag, equals, value = word[2:].partition("=")
        if equals:
            yield flag, value
        elif place + 1 < len(words) and not words[place + 1].startswith("--"):
            yield flag, words[place + 1]


def _check_value(setting: Setting, value: str) -> None:
    kinds = [kind.strip() for kind in re.split(r"\|(?![^\[]*\])", setting.kind)]
    if value.strip().lower() in ("null", "none", "~") or len(set(kinds) - {"None"}) != 1:
        return
    kind = next(one for one in kinds if one != "None")
    if kind.startswith("Literal["):
        choices = ast.literal_eval(f"({kind[len('Literal[') : -1]},)")
        if value not in choices and all(isinstance(one, str) for one in choices):
            raise _invalid(setting, value, ", ".join(choices))
    elif (kind in ("int", "float") and not _is_number(value)) or (
        kind == "bool" and value.lower() not in ("true", "false", "yes", "no", "on", "off")
    ):
        raise _invalid(setting, value, EXPECTED[kind])


def _invalid(setting: Setting, value: str, expected: str) -> ConfigError:
    return ConfigError(f"Invalid value for {setting.name}", got=value, expected=expected)


def _is_number(text: str) -> bool:
    try:
        float(text.removeprefix("."))  # YAML writes infinity as .inf
    except ValueError:
        return False
    return True


def _check_package(name: str, value: str, package: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"{name} {value} needs the package {package}",
            got="not installed",
            do=f"Install it with: pip install {package}",
        )


def _check_trackers(value: str) -> None:
    for name in (part.strip(" '\"") for part in value.strip("[]").split(",") if part.strip()):
        if name in TRACKER_PACKAGES and importlib.util.find_spec(name) is None:
            raise ConfigError(
                f"report_to {name} needs the package {name}",
                got="not installed",
                do=f"Install it with: pip install {name}",
            )
        if name not in (*TRACKER_PACKAGES, "none"):
            raise ConfigError("Unknown tracker", got=name, expected=", ".join(TRACKER_PACKAGES))


def check_tasks(text: str) -> list[str]:
    """The names of tasks; an error if the library of one is not installed."""
    names = [name.strip() for name in text.split(",") if name.strip()]
    if not names:
        raise ConfigError("tasks names no task", got=shown(text), expected="names such as gsm8k,hellaswag")
    for name in names:
        module, package = ("inspect_ai", "inspect-ai") if name.startswith(INSPECT) else ("lm_eval", "lm-eval")
        if importlib.util.find_spec(module) is None:
            raise ConfigError(
                f"Task {name} needs the package {package}",
                got="not installed",
                do="Install it with: pip install 'preftune[tasks]'",
            )
    return names


def _check_data(source: str) -> None:
    path = Path(source).expanduser()
    is_name = suffix_of(path) or source.startswith((".", "/", "~"))
    if is_name and not path.exists():
        raise missing_data(source)


def _check_model(name: str) -> None:
    elsewhere = name in BUNDLED_MODELS or not name or Path(name).expanduser().exists()
    if not elsewhere and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise missing_model(name)


def check_runs(words: Sequence[str]) -> None:
    """Run folders that are given as bare words."""
    for word in words:
        if word.startswith("-"):
            return
        if not Path(word).exists():
            raise ConfigError(
                "There is no such run folder", got=word, do="Give the output folder of a training run"
            )
