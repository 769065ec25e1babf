"""Mistakes in values that show before the libraries are imported: a word in place of a number, a file that does
not exist, a required setting that is missing. The sentences are those that the full check would print.
"""

import ast
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from preftune.cli.early_names import check_bare_names, check_given_names
from preftune.cli.names import SPELLINGS, nearest
from preftune.cli.outline import ROOT, Outline, Setting, objective_outlines
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
    _check_files(given)
    _check_stray(command, words)
    _check_swapped(given)
    check_bare_names(command, words)
    check_given_names(command, given)
    for name, value in given.items():
        if name in settings:
            check_value(settings[name], value)
        elif name in outline.sections and not re.search(r"[{:]", value):
            inner = [one.name for one in outline.settings if one.section == name]
            first = next((one for one in inner if one.endswith((".model", ".rank", ".name"))), inner[0])
            raise ConfigError(
                f"{name} is a group of settings",
                got=value,
                expected=", ".join(f"--{one}" for one in inner[:4]),
                do=f"Did you mean --{first} {value}?",
            )
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
    rehearses = command == "train" and not {"--dry-run", "--dry_run"}.isdisjoint(words)
    needless = {*given, *(["output"] if rehearses else [])}  # a dry run writes nothing
    missing = [
        one.name
        for one in outline.settings
        if one.default is None and one.name not in needless and one.kind != "list[str]"
    ]
    if not complete:
        _check_together(command, given)
    if missing and not complete:
        raise ConfigError(
            f"--{missing[0]} is missing",
            expected=f"--{missing[0]} VALUE",
            do=f"See preftune {command.replace('diagnose-', 'diagnose ')} --help",
        )


def _check_together(command: str, given: Mapping[str, str]) -> None:
    """Settings that need, or exclude, each other; a file of settings may hold what the flags lack."""
    if command == "train" and given.get("source", "offline") == "offline" and "reward" in given:
        raise ConfigError("reward has no effect offline", got="source offline", do="Set --source on-policy")
    if (
        command == "train"
        and given.get("source") == "on-policy"
        and not {"reward", "rollout.environment"} & set(given)
    ):
        raise ConfigError(
            "On-policy samples are scored by a reward",
            got="none",
            expected="--reward NAME or module:function",
        )
    if command == "eval" and "model" in given and not {"data", "prompts", "tasks"} & set(given):
        raise ConfigError(
            "eval wants one of preference data, prompts and tasks",
            got="none of them",
            expected="--data FILE, --prompts FILE or --tasks NAMES",
        )
    for name in ("reward", "judge"):
        if re.fullmatch(r"[a-z_]+", value := given.get(name, "")) and value not in (names := _reward_names()):
            near = nearest(value, names, 0.6)
            raise ConfigError(
                f"Unknown {name}",
                got=value,
                expected=f"one of {', '.join(names)}, or module:function",
                do=f"Did you mean {near}?" if near else None,
            )
    for objective in re.findall(r"(?:^|,)([a-z_-]+)(?=,|$)", given.get("objectives", "")):
        if objective.replace("_", "-") not in objective_outlines():
            near = nearest(objective, objective_outlines(), 0.5)
            raise ConfigError(
                f"Unknown objective {shown(objective)}",
                do=f"Did you mean {near}?" if near else "Run `preftune objectives` to see all of them",
            )


def _reward_names() -> list[str]:
    """The built-in rewards, from the source of their table."""
    text = (ROOT / "rewards" / "resolve.py").read_text(encoding="utf-8")
    return re.findall(r'^        "([a-z_.]+)": "[a-z_]+:[A-Za-z]+"', text, re.MULTILINE)


def _check_files(given: Mapping[str, str]) -> None:
    """The file of --config and the folder of --resume."""
    config, resumed = given.get("config"), given.get("resume")
    if config is not None and not Path(config).expanduser().is_file():
        raise ConfigError(f"{config} does not exist", expected="a .yaml file of settings")
    if resumed is not None and not (Path(resumed).expanduser() / "config.yaml").is_file():
        raise ConfigError(
            f"{resumed} is not a run folder", got="no config.yaml in it", expected="what --output made"
        )


def _check_stray(command: str, words: Sequence[str]) -> None:
    """A bare word behind the value of a flag."""
    for before, value, word in zip(words, words[1:], words[2:], strict=False):
        if (
            before.startswith("--")
            and "=" not in before
            and not value.startswith("-")
            and not word.startswith("-")
        ):
            both = before in ("--data", "--prompts", "--eval_data")
            raise ConfigError(
                f"Unexpected argument {shown(word)}",
                got=f"{before} {value} {word}",
                do="Give a folder that holds both files" if both else f"See preftune {command} --help",
            )


def _check_swapped(given: Mapping[str, str]) -> None:
    """A data file as the model, or a model as the data."""
    model, data = given.get("model", ""), given.get("data", "")
    if suffix_of(Path(model)) and Path(model).is_file():
        raise ConfigError("--model names a data file", got=model, do=f"Use --data {model}")
    if data and any((Path(data) / name).is_file() for name in ("config.json", "adapter_config.json")):
        raise ConfigError("--data names a model", got=data, do=f"Use --model {data} and --data FILE")


def _values(words: Sequence[str]) -> Iterator[tuple[str, str]]:
    for place, word in enumerate(words):
        if not word.startswith("--"):
            continue
        flag, equals, value = word[2:].partition("=")
        if equals:
            yield flag, value
        elif place + 1 < len(words) and not words[place + 1].startswith("--"):
            yield flag, words[place + 1]


def check_value(setting: Setting, value: str) -> None:
    """Refuse a value that is not of the setting's kind, none of its choices, or out of its range."""
    kinds = [kind.strip() for kind in re.split(r"\|(?![^\[]*\])", setting.kind)]
    if value.strip().lower() in ("null", "none", "~") or len(set(kinds) - {"None"}) != 1:
        return
    kind = next(one for one in kinds if one != "None")
    if kind.startswith("Literal["):
        choices = ast.literal_eval(f"({kind[len('Literal[') : -1]},)")
        known = {value, value.replace("_", "-")} & set(choices)
        if not known and all(isinstance(one, str) for one in choices):
            raise _invalid(setting, value, ", ".join(choices))
    elif value in SPELLINGS.get(setting.name, {}):
        raise _invalid(setting, value, SPELLINGS[setting.name][value])
    elif (kind in ("int", "float") and not _is_number(value)) or (
        kind == "bool" and value.lower() not in ("true", "false", "yes", "no", "on", "off")
    ):
        raise _invalid(setting, value, EXPECTED[kind])
    elif (
        kind in ("int", "float")
        and setting.interval
        and not _is_inside(float(value.removeprefix(".")), setting.interval)
    ):
        raise ConfigError(f"{setting.name} is out of range", got=value, expected=_in_words(setting.interval))


def _invalid(setting: Setting, value: str, expected: str) -> ConfigError:
    meant = SPELLINGS.get(setting.name, {}).get(value)
    return ConfigError(
        f"Invalid value for {setting.name}",
        got=value,
        expected=expected,
        do=f"Did you mean {meant}?" if meant and meant != expected else None,
    )


def _is_inside(value: float, interval: str) -> bool:
    low, high = (float(end) for end in interval[1:-1].split(","))
    return (value >= low if interval[0] == "[" else value > low) and (
        value <= high if interval[-1] == "]" else value < high
    )


def _in_words(interval: str) -> str:
    low, high = (float(end) for end in interval[1:-1].split(","))
    if high != float("inf"):
        return f"a number in {interval}"
    return f"at least {low:g}" if interval[0] == "[" else f"a number above {low:g}"


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
    is_name = suffix_of(path) or source.startswith((".", "/", "~")) or "/" not in source
    if is_name and not path.exists():
        raise missing_data(source)


def _check_model(name: str) -> None:
    elsewhere = name in BUNDLED_MODELS or not name or Path(name).expanduser().exists()
    if not elsewhere and (name.startswith((".", "/", "~")) or name.count("/") != 1):
        raise missing_model(name)


def check_runs(words: Sequence[str]) -> None:
    """Run folders that are given as bare words."""
    if not words:
        raise ConfigError("Name a run", got="nothing", expected="the output folder of a training run")
    for word in words:
        if word.startswith("-"):
            return
        if not Path(word).exists():
            raise ConfigError(
                "There is no such run folder", got=word, do="Give the output folder of a training run"
            )
