"""The command `completion`: a script that completes commands, options and names of objectives in a shell."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from preftune.cli.main import VERBS
from preftune.cli.outline import objective_outlines, outline_of
from preftune.cli.settings import parse_settings

BASH = """\
_preftune() {{
    local current="${{COMP_WORDS[COMP_CWORD]}}" previous="${{COMP_WORDS[COMP_CWORD-1]}}" words=""
    COMPREPLY=()
    if [ "$COMP_CWORD" -eq 1 ]; then
        COMPREPLY=($(compgen -W "{commands}" -- "$current"))
        return
    fi
    case "$previous" in
        --objective|--objectives) COMPREPLY=($(compgen -W "{objectives}" -- "$current")); return ;;
    esac
    case "$current" in
        --*) ;;
        *) COMPREPLY=($(compgen -f -- "$current")); return ;;
    esac
    case "${{COMP_WORDS[1]}}" in
{cases}
    esac
    COMPREPLY=($(compgen -W "$words --help" -- "$current"))
}}
complete -o filenames -F _preftune preftune
"""

FISH = """\
complete -c preftune -n __fish_use_subcommand -f -a "{commands}"
{flags}
complete -c preftune -n "__fish_seen_subcommand_from train" -l objective -x -a "{objectives}"
"""


@dataclass(frozen=True, kw_only=True)
class CompletionConfig:
    """Print a completion script for a shell. For bash: eval "$(preftune completion bash)".

    Args:
        shell: "bash", "zsh" or "fish".
    """

    shell: Literal["bash", "zsh", "fish"] = "bash"


def completion_script(shell: str) -> str:
    """The script; everything in it is known when it is printed, so completing starts no Python."""
    flags = {verb: _flags(verb) for verb in VERBS}
    names = {"commands": " ".join(VERBS), "objectives": " ".join(objective_outlines())}
    if shell == "fish":
        lines = [
            f'complete -c preftune -n "__fish_seen_subcommand_from {verb}" -l {flag}'
            for verb, many in flags.items()
            for flag in many
        ]
        return FISH.format(flags="\n".join(lines), **names)
    cases = "\n".join(
        f'        {verb}) words="{" ".join(f"--{flag}" for flag in many)}" ;;'
        for verb, many in flags.items()
        if many
    )
    script = BASH.format(cases=cases, **names)
    return f"autoload -U +X bashcompinit && bashcompinit\n{script}" if shell == "zsh" else script


def _flags(verb: str) -> list[str]:
    """Full names, and unambiguous short names."""
    outline = outline_of(verb.replace("-", "_"))
    if outline is None:
        return []
    leaves = [one.leaf for one in outline.settings]
    short = [one.leaf for one in outline.settings if one.section and leaves.count(one.leaf) == 1]
    return list(dict.fromkeys([*(one.name for one in outline.settings), *short]))


def run(arguments: Sequence[str]) -> int:
    settings = parse_settings(CompletionConfig, arguments, "preftune completion", positional="shell")
    print(completion_script(settings.shell), end="")
    return 0
