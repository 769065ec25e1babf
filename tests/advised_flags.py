"""Flags that a message advises, held against the flags that the advised command takes."""

import re
from collections.abc import Sequence

from preftune.cli.main import VERBS
from preftune.cli.outline import objective_outlines, outline_of
from preftune.cli.words import _full_name, _own_flags, module_of, names_of

_COMMAND = re.compile(r"(torchrun|preftune ([a-z-]+)(?: (run|data))?)")
_FLAG = re.compile(r"(?<![\w-])--([a-z][\w.-]*\w)")
_RESUME_ONLY = {"allow-changed", "skip-damaged", "allow_changed", "skip_damaged"}
_OF_SERVERS = {
    "enable-lora",
    "max-num-batched-tokens",
    "upgrade",
    "option",
}  # of vLLM and pip; and a placeholder
"""Flags of other programs."""
_ELSEWHERE = {"version", "nproc_per_node", "tier"}
"""Flags of preftune itself, of torchrun, and of `preftune lab`, which has no outline."""


def impossible_flags(words: Sequence[str], advice: str) -> list[str]:
    """The flags in the advice of a message that the command does not take which printed it, or which is named before
    the flag in the same sentence.
    """
    found = []
    for sentence in re.split(r"(?<=[.?;])\s", advice):
        places = list(_COMMAND.finditer(sentence))
        for flag in _FLAG.finditer(sentence):
            before = [place for place in places if place.start() < flag.start()]
            named = before[-1] if before else None
            if (named is not None and named[1] == "torchrun") or flag[1] in _OF_SERVERS:
                continue
            command = _command(words) if named is None else _command(named[0].split()[1:])
            resumes = "--resume" in (sentence[: flag.start()] if named is not None else words)
            if command is not None and not _takes(command, flag[1], resumes):
                found.append(f"--{flag[1]} of {command}")
    return found


def flags_of_no_command(text: str) -> list[str]:
    """The flags in a text that no command takes."""
    commands = [verb for verb in VERBS if verb not in ("lab", "diagnose")] + ["diagnose-run", "diagnose-data"]
    named = {flag[1] for flag in _FLAG.finditer(text)} - _OF_SERVERS - _ELSEWHERE
    return sorted(f for f in named if not any(_takes(command, f, True) for command in commands))


def _command(words: Sequence[str]) -> str | None:
    """None for the laboratory, whose actions have settings of their own."""
    verb, *rest = words
    if verb == "diagnose":
        return f"diagnose-{rest[0]}" if rest and rest[0] in ("run", "data") else None
    return verb if verb in VERBS and verb != "lab" else None


def _takes(command: str, flag: str, resumes: bool) -> bool:
    outline = outline_of(module_of(command))
    if outline is None:
        return True
    if flag in _RESUME_ONLY:
        return command == "train" and resumes
    key = flag.replace("-", "_")
    hyperparameters = [one for many in objective_outlines().values() for one in many]
    parameters = hyperparameters if outline.has_objective else []
    own = _own_flags(module_of(command))
    return _full_name(key, names_of(outline), parameters) is not None or flag in own or key in own
