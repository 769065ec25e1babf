"""The words of a command line, before anything heavy is imported: help, short forms, and mistakes.

`prepared` either answers at once (help, a mistake) or returns the words as `parse_settings` takes them.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from preftune.cli.early import check_runs, check_words
from preftune.cli.early_names import check_bare_names
from preftune.cli.names import ALIASES, ELSEWHERE, LOSS_NAMES, SWITCHED, nearest, unknown_setting
from preftune.cli.outline import ROOT, Outline, Setting, objective_outlines, outline_of
from preftune.errors import ConfigError, shown
from preftune.model.names import BUNDLED_MODELS

POSITIONAL = {
    "advise": "diagnosis",
    "annotate": "data",
    "ask": "data",
    "chat": "model",
    "clean": "folder",
    "compare": "data",
    "completion": "shell",
    "diagnose-data": "data",
    "docs": "name",
    "eval": "model",
    "export": "run",
    "import-config": "file",
    "inspect": "data",
    "iterate": "prompts",
    "objectives": "name",
    "reward": "data",
    "sample": "model",
    "select": "data",
    "start": "data",
    "train-reward-model": "data",
}
"""Commands whose first bare word is a setting. (Others read their bare words themselves.)"""

SECOND_WORDS = {
    "chat": "Use: preftune chat {1} --compare {2}",
    "compare": "Use: preftune compare --data FILE --objectives {1},{2} --steps 60 --output FOLDER",
    "eval": "Use: preftune eval {1} --data {2}",
    "export": "Use: preftune export {1} --to {2}",
    "inspect": "Inspect one file at a time, or a folder with both",
    "sample": "Use: preftune sample {1} --prompt {2!r}, or --prompts FILE",
}
"""Command -> what to type instead of a second bare word."""

SHORT_FLAGS = {"-o": "output", "-d": "data", "-m": "model", "-c": "config"}

SINGLE_LETTERS = {
    "n": "num_completions",
    "e": "epochs",
    "b": "batch_size",
    "p": "prompt",
    "r": "reward",
    "s": "seed",
}

DEFAULT_RANK = "16"  # of `--lora` without a number
QUANTIZED = {"load_in_4bit": "nf4", "qlora": "nf4", "load_in_8bit": "bnb-int8"}
LORA_SWITCHES = ("lora", "use_lora", "use_peft")


def module_of(command: str) -> str:
    return command.replace("-", "_")


def prepared(command: str, words: Sequence[str]) -> list[str]:
    """The words with short forms spelled out; a ConfigError for a mistake that shows without importing."""
    outline = outline_of(module_of(command))
    if outline is None:
        return list(words)
    known = names_of(outline)
    own = _own_flags(module_of(command))
    if command in ("report", "diagnose-run"):
        check_runs(words)
    words = [_spelled_flag(word, known) for word in words]
    _refuse_short_flags(words, known)
    words = _bare_words(command, words)
    objective = _objective(words, known) if outline.has_objective else None
    parameters = objective_outlines().get(objective or "", ())
    settings = {one.name: one for one in (*outline.settings, *parameters)}
    done: list[str] = []
    skip = False  # the value of a flag that was replaced
    for place, word in enumerate(words):
        if skip:
            skip = False
            continue
        if not word.startswith("--") or word == "--":
            done.append(word)
            continue
        flag, equals, value = word[2:].partition("=")
        key = flag.replace("-", "_")
        following = words[place + 1] if place + 1 < len(words) else None
        bare = not equals and (following is None or following.startswith("--"))
        if switched := _switched(key, equals, value, bare, known):
            done += switched
            continue
        on = bare or (value or following or "").lower() in ("true", "yes", "1")
        if key in SWITCHED and on and "precision" in known:
            done += ["--precision", SWITCHED[key]]
            skip = not bare and not equals
            continue
        full = _full_name(key, known, parameters)
        if full is None and ":" in (objective or "") and key.startswith("objective."):
            full = key  # a hyperparameter of a class that the source does not show
        if full is None:
            if key in own or flag in own:
                done.append(word)
                continue
            raise _unknown(flag, known, objective)
        if key == "optim" and "optim.name" in known:
            full = "optim.name"
        if full in ("objective", "objective.name"):
            full = "objective"
            if value:
                value = spelled_objective(value)
        done.append(f"--{full}{equals}{value}")
        setting = settings.get(full)
        if bare and setting is not None and setting.works_bare:
            done.append("true")
        elif bare and setting is not None:
            raise ConfigError(f"--{flag} has no value", expected=f"--{flag} VALUE")
    done = _named_best(_objective_values(command, done))
    return done + _implied(done, known)


def _switched(key: str, equals: str, value: str, bare: bool, known: Mapping[str, str]) -> list[str]:
    """What the switches of other tools for adapters and quantized weights mean; [] for another flag."""
    if key in LORA_SWITCHES and "lora.rank" in known and (key == "lora" or bare):
        return [f"--lora.rank{equals}{value}", *([DEFAULT_RANK] if bare else [])]
    if key in QUANTIZED and bare and "lora.quantization" in known:
        return ["--lora.quantization", QUANTIZED[key]]
    return []


def check_early(command: str, words: Sequence[str]) -> None:
    """Raises for a mistake in a value that shows without importing; `words` are those of `prepared`."""
    outline = outline_of(module_of(command))
    if outline is None:
        check_bare_names(command, words)
    else:
        check_words(command, words, outline)


def _named_best(words: Sequence[str]) -> list[str]:
    """Without `keep_best true` where another flag names the metric: load_best_model_at_end with
    metric_for_best_model.
    """
    flags = [place for place, word in enumerate(words) if word.partition("=")[0] == "--keep_best"]
    dropped: set[int] = set()
    for place in flags if len(flags) > 1 else []:
        if words[place].lower() == "--keep_best=true":
            dropped.add(place)
        elif words[place] == "--keep_best" and words[place + 1 : place + 2] in (["true"], ["True"]):
            dropped |= {place, place + 1}
    return [word for place, word in enumerate(words) if place not in dropped]


def _implied(words: Sequence[str], known: Mapping[str, str]) -> list[str]:
    """What a flag states about another: LoRA's settings that there is an adapter, patience that a metric is watched."""
    flags = {word[2:].partition("=")[0] for word in words if word.startswith("--")}
    if flags & {"config", "resume"}:
        return []
    implied = []
    if "early_stopping_patience" in flags and "keep_best" not in flags:
        implied += ["--keep_best", "true"]  # the held-out loss, on-policy the held-out reward
    if "lora.rank" in known and "lora.rank" not in flags and any(flag.startswith("lora.") for flag in flags):
        implied += ["--lora.rank", DEFAULT_RANK]
    return implied


def _spelled_flag(word: str, known: Mapping[str, str]) -> str:
    """`-o` as `--output`, for the few short flags that every tool has."""
    full = SHORT_FLAGS.get(word)
    return f"--{full}" if full is not None and full in known else word


def _refuse_short_flags(words: Sequence[str], known: Mapping[str, str]) -> None:
    """`-lr 1e-4` and `-n 4`: names with one dash."""
    for word in words:
        if re.fullmatch(r"-[a-z]\w*", word) and word not in SHORT_FLAGS and word != "-h":
            name = word[1:]
            full = name if name in known else SINGLE_LETTERS.get(name) or nearest(name, known)
            do = f"Use --{full}" if full in known else "Options have two dashes; give --help to see them"
            raise ConfigError(f"Unknown option {word}", do=do)


def names_of(outline: Outline) -> dict[str, str]:
    """Every name that works -> the full name; a name at the top wins over the same name in a section."""
    full = [one.name for one in outline.settings] + ["config", "print_config"]
    full += [f"{section}" for section in outline.sections]
    if outline.has_objective:
        full += ["objective.name"]
        full += {one.name for many in objective_outlines().values() for one in many}
    leaves = [name.rpartition(".")[2] for name in full if not name.startswith("objective.")]
    short = {
        name.rpartition(".")[2]: name
        for name in full
        if leaves.count(name.rpartition(".")[2]) == 1 and not name.startswith("objective.")
    }
    names = short | {name: name for name in full}
    return names | {
        alias: name for alias, name in ALIASES.items() if name in set(full) and alias not in names
    }


def spelled_objective(text: str) -> str:
    """A name of the table in any spelling; what is no plain name (a mixture, module:Class) stays as it is."""
    table = objective_outlines()
    plain = text.strip().lower().replace("_", "-")
    plain = LOSS_NAMES.get(plain, plain)
    if plain in table or not table:
        return plain
    if re.search(r"[:+*(./]", text):
        return text
    near = nearest(plain, table, 0.5)
    raise ConfigError(
        f"Unknown objective {shown(text)}",
        do=f"Did you mean {near}?" if near else "Run `preftune objectives` to see all of them",
    )


def _unknown(flag: str, known: Mapping[str, str], objective: str | None) -> ConfigError:
    owners = [
        name
        for name, many in objective_outlines().items()
        if flag.replace("-", "_") in {s.leaf for s in many}
    ]
    if objective is not None and owners and flag not in ELSEWHERE:
        return ConfigError(
            f"Unknown option --{flag}",
            got=f"objective {objective}, which has no {flag}",
            expected=f"an objective that has it: {', '.join(owners[:6])}",
        )
    return unknown_setting(flag, known, flag=True)


def _full_name(key: str, known: Mapping[str, str], parameters: Sequence[Setting]) -> str | None:
    if key in known:
        return known[key]
    if key in ELSEWHERE:
        return None
    return next((one.name for one in parameters if one.leaf == key), None)


def _bare_words(command: str, words: list[str]) -> list[str]:
    """Leading words without a flag, as settings."""
    bare = []
    while words and not words[0].startswith("-") and (command == "train" or command in POSITIONAL):
        bare.append(words.pop(0))
    if command == "train":
        flags: dict[str, str] = {}
        for flag, word in map(_train_word, bare):
            if flag in flags:
                raise ConfigError(f"{flag} is given twice", got=f"{shown(flags[flag])} and {shown(word)}")
            flags[flag] = word
        return [part for pair in flags.items() for part in pair] + words
    if len(bare) > 1:
        if command == "compare" and all((Path(word) / "config.yaml").is_file() for word in bare):
            do = f"Finished runs are compared by: preftune report {' '.join(bare)} --output compare.html"
        else:
            do = SECOND_WORDS.get(command, "See preftune {} --help").format(command, bare[0], bare[1])
        raise ConfigError(f"Unexpected argument {shown(bare[1])}", do=do)
    return [part for word in bare for part in (f"--{POSITIONAL[command]}", word)] + words


def _train_word(word: str) -> tuple[str, str]:
    """`preftune train dpo MODEL pairs.csv`: an objective, a model, a data file, or a file of settings."""
    if word.strip().lower().replace("_", "-") in objective_outlines() or re.search(r"(\w\(|:\w+$)", word):
        return "--objective", word  # also NAME(setting=value) and module:Class
    is_model = any(
        (Path(word) / name).is_file() for name in ("config.json", "adapter_config.json", "config.yaml")
    )
    if is_model or word in BUNDLED_MODELS or word.endswith(".gguf"):
        return "--model", word
    if (Path(word).exists() and not word.endswith((".yaml", ".yml"))) or re.search(
        r"\.(jsonl?|csv|tsv|parquet|arrow)$", word
    ):
        return "--data", word
    if re.search(r"\.ya?ml$", word):
        return "--config", word
    near = nearest(word.lower(), objective_outlines(), 0.6)
    raise ConfigError(
        f"Unexpected argument {shown(word)}",
        expected="an objective, a model folder, a data file, a .yaml file of settings, or --option VALUE",
        do=f"Did you mean --objective {near}?" if near else "See preftune train --help",
    )


def _objective(words: Sequence[str], known: Mapping[str, str]) -> str | None:
    """The objective that the flags name, the last one winning; bnf without one."""
    named = "bnf"
    for place, word in enumerate(words):
        flag, equals, value = word[2:].partition("=") if word.startswith("--") else ("", "", "")
        if known.get(flag.replace("-", "_")) in ("objective", "objective.name"):
            named = value if equals else words[place + 1] if place + 1 < len(words) else named
    return spelled_objective(named)


def _objective_values(command: str, words: Sequence[str]) -> list[str]:
    """Names of objectives as the table spells them; a weighted sum as the terms of a mixture."""
    done: list[str] = []
    for word in words:
        before = done[-1] if done else ""
        flag, equals, value = word.partition("=")
        if before == "--objective" or (before == "--name" and command == "objectives"):
            value = spelled_objective(word)
            is_sum = before == "--objective" and _is_sum(value)
            done += ["mixture", "--objective.terms", value] if is_sum else [value]
        elif flag == "--objective" and equals and _is_sum(value):
            done += ["--objective=mixture", f"--objective.terms={value}"]
        else:
            done.append(word)
    return done


def _is_sum(text: str) -> bool:
    """Whether it is written as 0.8*dpo+0.2*sft; plus signs and stars inside brackets are of settings."""
    return ":" not in text and bool(re.search(r"[*+]", re.sub(r"\(.*?\)", "", text)))


def _own_flags(module: str) -> frozenset[str]:
    """Flags that the command reads itself, as they are in its source."""
    sources = (ROOT / "commands" / f"{module}.py", ROOT / "cli" / "output.py", ROOT / "cli" / "checks.py")
    text = "".join(path.read_text(encoding="utf-8") for path in sources if path.is_file())
    flags = set(re.findall(r"[\"']--([a-z][a-z_-]*)[\"'=]", text)) | {"help", "json"}
    return frozenset(flags | {flag.replace("-", "_") for flag in flags})
