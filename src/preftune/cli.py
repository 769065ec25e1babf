"""`preftune <verb>`: the command line. Nothing heavy is imported before a verb is known."""

import json
import os
import sys
from collections.abc import Callable, Sequence

from preftune import __version__
from preftune.errors import PreftuneError
from preftune.terminal import clean_terminal

HELP = """\
preftune: fine-tune language models on preferences

usage: preftune VERB [settings]

verbs:
  demo        the whole way in small, on a bundled model: sample, judge, tune with BNF, compare
  inspect     what is in a data file, as a model sees it      preftune inspect DATA --model M
  train       tune a model                                    preftune train --model M --data FILE --objective bnf --output RUN
  sample      completions of a model, or a chat               preftune sample --model RUN/final --prompt TEXT
  select      completions with rewards -> pairs or labels     preftune select FILE --selection best-vs-worst --output PAIRS.jsonl
  eval        log-ratios on preference data, or rewards       preftune eval --model RUN/final --data FILE
  train-reward-model  Bradley-Terry on pairs, calibrated      preftune train-reward-model --data PAIRS --model M --output RUN
  merge       one model out of several, or of an adapter      preftune merge MODEL MODEL --base START --method slerp --output NEW
  report      draw a run's page again, or compare runs        preftune report RUN [RUN ...]
  objectives  the losses to choose from, or the page of one   preftune objectives [NAME]
  curves      how hard they push a token, as a figure         preftune curves [NAME ...]

settings are flags (--learning_rate 1e-6) or YAML (--config run.yaml), the same names in both.
preftune VERB --help lists them; preftune VERB ... --print_config shows what they come to.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit status: 0 done, 1 our bug, 2 a mistake in what was asked, 3 training stopped,
    4 a file could not be written or read, 130 interrupted."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        status = _run(words)
        sys.stdout.flush()
        return status
    except PreftuneError as error:
        print(f"preftune {words[0]}: {' '.join(clean_terminal(str(error)).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"\npreftune {words[0]}: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"preftune {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        print(f"preftune: there is no verb {clean_terminal(verb)!r}; expected one of {', '.join(VERBS)}.", file=sys.stderr)
        return 2
    return VERBS[verb](rest)


def _verb(name: str) -> Callable[[Sequence[str]], int]:
    def run(rest: Sequence[str]) -> int:
        from preftune import commands

        return commands.COMMANDS[name](rest)

    return run


def _light_verb(name: str) -> Callable[[Sequence[str]], int]:
    """One that does not wait for the model libraries."""
    def run(rest: Sequence[str]) -> int:
        from preftune import handbook

        return handbook.COMMANDS[name](rest)

    return run


def _file_verb(name: str) -> Callable[[Sequence[str]], int]:
    """One that makes what `train` needs, or something of what it made: data, a reward model, a merged model."""
    def run(rest: Sequence[str]) -> int:
        from preftune import merging, reward_training, selecting

        return (selecting.COMMANDS | reward_training.COMMANDS | merging.COMMANDS)[name](rest)

    return run


VERBS = {name: _verb(name) for name in ("demo", "inspect", "train", "sample", "eval", "report")}
VERBS |= {name: _light_verb(name) for name in ("objectives", "curves")}
VERBS |= {name: _file_verb(name) for name in ("select", "train-reward-model", "merge")}


def print_json(content: object) -> None:
    print(json.dumps(content, indent=2))  # ASCII: what would command a terminal stays an escape


if __name__ == "__main__":
    sys.exit(main())
