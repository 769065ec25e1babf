"""`--help` in layers: what most people set, a section, or everything."""

import textwrap
from collections.abc import Sequence

from preftune.cli.names import nearest
from preftune.cli.outline import Outline, Setting, objective_outlines, outline_of
from preftune.cli.words import module_of, spelled_objective
from preftune.errors import ConfigError

WIDTH = 100
COMMON = {
    "train": (
        "model",
        "data",
        "objective",
        "output",
        "optim.learning_rate",
        "epochs",
        "max_steps",
        "batch_size",
        "rows.max_length",
        "lora.rank",
        "eval_fraction",
        "precision",
        "source",
        "reward",
        "save_every",
        "seed",
    ),
    "sample": (
        "model",
        "prompt",
        "prompts",
        "output",
        "sampling.num_completions",
        "sampling.max_new_tokens",
        "sampling.temperature",
        "server.url",
        "seed",
    ),
    "eval": ("model", "data", "prompts", "tasks", "reference", "reward", "judge", "against", "beta", "json"),
    "compare": (
        "objectives",
        "data",
        "problem",
        "output",
        "budget.steps",
        "rates",
        "seeds",
        "model",
        "source",
        "reward",
        "batch_size",
        "lora.rank",
    ),
    "iterate": ("prompts", "reward", "objective", "rounds", "output", "model", "optim.learning_rate"),
    "train-reward-model": (
        "data",
        "model",
        "output",
        "optim.learning_rate",
        "epochs",
        "batch_size",
        "rows.max_length",
        "lora.rank",
    ),
}
"""The settings that most people need; a command without an entry shows those outside of sections."""

EXAMPLES = {
    "train": (
        "preftune train --data pairs.jsonl --objective dpo --beta 0.1 --output runs/dpo",
        "preftune train dpo pairs.jsonl --lora 16 --learning_rate 1e-5 --output runs/lora",
        "preftune train --source on-policy --data prompts.jsonl --reward length.min --output runs/short",
        "preftune train --config run.yaml --learning_rate 1e-6       # flags win over the file",
        "preftune train --resume runs/dpo",
        "preftune train --data pairs.jsonl --output runs/x --dry-run  # memory and time, without training",
    ),
    "sample": (
        "preftune sample runs/dpo/final --prompt 'Why is the sky blue?'",
        "preftune sample --model MODEL --prompts prompts.jsonl --num_completions 4 --output samples.jsonl",
    ),
    "eval": (
        "preftune eval runs/dpo/final --data held_out.jsonl",
        "preftune eval runs/dpo --prompts held_out.jsonl --judge 'judge(url=http://localhost:8000/v1, model=NAME)'",
        "preftune eval runs/dpo --prompts held_out.jsonl --judge model:REWARD_MODEL --against chosen",
        "preftune eval runs/dpo --tasks gsm8k,ifeval",
    ),
    "compare": (
        "preftune compare --data pairs.jsonl --objectives 'bnf,dpo(beta=0.5),ipo' --steps 60 --output race",
        "preftune compare --problem overlap --objectives bnf,dpo --steps 40 --output race",
    ),
}


def help_text(command: str, words: Sequence[str]) -> str | None:
    """What `preftune COMMAND --help [all | SECTION]` prints; None for a command with other kinds of settings."""
    outline = outline_of(module_of(command))
    if outline is None:
        return None
    name = command.replace("diagnose-", "diagnose ")
    topic = _topic(words)
    lines = [f"usage: preftune {name} [settings]", "", *_wrapped(outline.summary, "")]
    if topic is None:
        lines += _examples(command) + _settings("settings that most people need", _common(command, outline))
    elif topic == "all":
        lines += _settings("settings", [one for one in outline.settings if not one.section])
        for section, text in outline.sections.items():
            inner = [one for one in outline.settings if one.section == section]
            lines += _settings(f"{section}: {text}", inner)
    else:
        lines += _section(topic, outline)
    if outline.has_objective and topic in (None, "all"):
        chosen = _chosen_objective(words)
        lines += _settings(f"hyperparameters of {chosen}", objective_outlines().get(chosen, ()))
    return "\n".join([*lines, "", *_footer(name, outline), ""])


def _topic(words: Sequence[str]) -> str | None:
    place = next(i for i, word in enumerate(words) if word in ("--help", "-h"))
    following = words[place + 1] if place + 1 < len(words) else None
    return None if following is None or following.startswith("-") else following


def _common(command: str, outline: Outline) -> list[Setting]:
    if command not in COMMON:
        return [one for one in outline.settings if not one.section]
    settings = {one.name: one for one in outline.settings}
    return [settings[name] for name in COMMON[command] if name in settings]


def _section(topic: str, outline: Outline) -> list[str]:
    inner = [one for one in outline.settings if one.section == topic]
    if inner:
        return _settings(f"{topic}: {outline.sections[topic]}", inner)
    single = [one for one in outline.settings if topic in (one.name, one.leaf)]
    if single:
        return _settings(topic, single)
    names = [*outline.sections, *(one.leaf for one in outline.settings)]
    near = nearest(topic, names, 0.6)
    raise ConfigError(
        f"There is no section or setting {topic!r}",
        expected=f"all, or one of {', '.join(outline.sections)}" if outline.sections else "all",
        do=f"Did you mean {near}?" if near else None,
    )


def _chosen_objective(words: Sequence[str]) -> str:
    named = [words[i + 1] for i, word in enumerate(words[:-1]) if word in ("--objective", "--objective.name")]
    return spelled_objective(named[-1]) if named else "bnf"


def _examples(command: str) -> list[str]:
    return ["", "examples:", *(f"  {line}" for line in EXAMPLES[command])] if command in EXAMPLES else []


def _settings(title: str, settings: Sequence[Setting]) -> list[str]:
    if not settings:
        return []
    lines = ["", *_wrapped(f"{title.rstrip('.')}:", "")]
    for one in settings:
        shown = "required" if one.default is None else f"default {one.default}" if one.default else ""
        kind = one.kind.removeprefix("Literal").replace(" | None", "")
        lines.append(f"  --{one.name}  {kind}{', ' * bool(shown)}{shown}")
        lines += _wrapped(one.help, "      ")
    return lines


def _footer(name: str, outline: Outline) -> list[str]:
    rest = [f"preftune {name} --help all        every setting"]
    if outline.sections:
        rest.append(f"preftune {name} --help SECTION    one of {', '.join(outline.sections)}")
    rest.append(
        f"preftune {name} ... --print_config  the resolved configuration; --config FILE.yaml reads one"
    )
    return [line for text in rest for line in _wrapped(text, "")]


def _wrapped(text: str, indent: str) -> list[str]:
    return textwrap.wrap(text, WIDTH, initial_indent=indent, subsequent_indent=indent) if text else []
