"""The command `diagnose`: what a run did to its model, or what a data set can teach a model."""

import importlib
import sys
from collections.abc import Sequence

from preftune.terminal import clean_terminal

DIAGNOSE_USAGE = """\
usage: preftune diagnose ACTION [settings]

actions:
  run RUN [RUN ...]   where a run moved probability, drawn side by side       preftune diagnose run runs/bnf runs/dpo
  data DATA           what a data set can teach a model, before training      preftune diagnose data pairs.jsonl --model M

preftune diagnose ACTION --help lists its settings.
"""

DIAGNOSE_ACTIONS = ("run", "data")
"""The actions; the module of one is `preftune.commands.diagnose_ACTION`."""


def run(arguments: Sequence[str]) -> int:
    """Hand the settings to an action."""
    words = list(arguments)
    if not words or words[0] in ("-h", "--help"):
        print(DIAGNOSE_USAGE, end="")
        return 0
    if words[0] not in DIAGNOSE_ACTIONS:
        got = clean_terminal(words[0])
        print(
            f"preftune diagnose: there is no action {got!r}; expected one of {', '.join(DIAGNOSE_ACTIONS)}.",
            file=sys.stderr,
        )
        return 2
    return importlib.import_module(f"preftune.commands.diagnose_{words[0]}").run(words[1:])
