"""`preftune <verb>`: the command line. Nothing heavy is imported before a verb is known."""

import gc
import importlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType

from preftune import __version__
from preftune.errors import ConfigError, DataError, ElsewhereError, ModelError, PreftuneError
from preftune.terminal import clean_terminal

HELP = """\
preftune: fine-tune language models on preferences

usage: preftune VERB [settings]

verbs:
  demo        the whole way in small, on a bundled model: sample, judge, tune with BNF, compare
  inspect     what is in a data file, as a model sees it      preftune inspect DATA --model M
  train       tune a model                                    preftune train --model M --data FILE --objective bnf --output RUN
  sample      completions of a model, or a chat               preftune sample --model RUN/final --prompt TEXT
  reward      add rewards to the completions in a file        preftune reward FILE --reward brief --output OUT
  select      completions with rewards -> pairs or labels     preftune select FILE --selection best-vs-worst --output PAIRS.jsonl
  iterate     rounds of sample, reward, select, train         preftune iterate --prompts FILE --reward brief --output FOLDER
  compare     methods under an equal budget, several seeds    preftune compare --data D --objectives bnf,dpo --steps 60 --output OUT
  eval        log-ratios on preference data, or rewards       preftune eval --model RUN/final --data FILE
  train-reward-model  Bradley-Terry on pairs, calibrated      preftune train-reward-model --data PAIRS --model M --output RUN
  merge       one model out of several, or of an adapter      preftune merge MODEL MODEL --base START --method slerp --output NEW
  diagnose    what a run did, what a data set can teach       preftune diagnose run RUN
  advise      which source and objective suit this data       preftune advise DIAGNOSIS.json
  report      draw a run's page again, or compare runs        preftune report RUN [RUN ...]
  objectives  the losses to choose from, or the page of one   preftune objectives [NAME]
  curves      how hard they push a token, as a figure         preftune curves [NAME ...]
  lab         bandits and lengths: findings, own problems     preftune lab list

settings are flags (--learning_rate 1e-6) or YAML (--config run.yaml), the same names in both.
preftune VERB --help lists them; preftune VERB ... --print_config shows what they come to.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit status: 0 done, 1 our bug, 2 a mistake in what was asked, 3 training
    stopped, 4 a file could not be written or read, 5 a server refused or did not answer, 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        with _stopping_signals():
            status = _run(words)
        sys.stdout.flush()
        return status
    except PreftuneError as error:
        if not _is_told_elsewhere(error):
            print(f"preftune {words[0]}: {' '.join(clean_terminal(str(error)).split())}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        with suppress(OSError):  # the terminal may be closed
            print(f"\npreftune {words[0]}: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


@contextmanager
def _stopping_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP end a command as Ctrl-C does, with temporary files removed. Signals that arrive
    within two seconds of the first, as a scheduler sends them to a process group, count as one.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    last = -float("inf")

    def stop(number: int, frame: object) -> None:
        nonlocal last
        before, last = last, time.monotonic()
        if last - before > 2:
            raise KeyboardInterrupt

    names = {"SIGINT": signal.default_int_handler, "SIGTERM": signal.SIG_DFL, "SIGHUP": signal.SIG_DFL}
    usual = {getattr(signal, name): way for name, way in names.items() if hasattr(signal, name)}
    numbers = [number for number, way in usual.items() if signal.getsignal(number) == way]  # not if ignored
    for number in numbers:
        signal.signal(number, stop)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, usual[number])


def _is_told_elsewhere(error: PreftuneError) -> bool:
    """Of several processes of one run, the one where an error arose tells it; a mistake in what was asked,
    the first.
    """
    asked = isinstance(error, ConfigError | DataError | ModelError)
    return isinstance(error, ElsewhereError) or (asked and os.environ.get("RANK", "0") != "0")


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(HELP, end="")
        return 0
    if words[0] in ("-V", "--version", "version"):
        print(f"preftune {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if verb not in VERBS:
        print(
            f"preftune: there is no verb {clean_terminal(verb)!r}; expected one of {', '.join(VERBS)}.",
            file=sys.stderr,
        )
        return 2
    return _module_of(verb).run(rest)


def _module_of(verb: str) -> ModuleType:
    """The module that holds a verb. Libraries make a million objects that stay as long as the process:
    looking for garbage among them, while they are imported and ever again after that, would take a seventh of
    the time.
    """
    name = f"preftune.commands.{verb.replace('-', '_')}"
    if name in sys.modules or not gc.isenabled():
        return importlib.import_module(name)
    gc.disable()
    try:
        module = importlib.import_module(name)
        gc.freeze()
    finally:
        gc.enable()
    return module


VERBS = (
    "demo",
    "inspect",
    "train",
    "sample",
    "reward",
    "select",
    "iterate",
    "compare",
    "eval",
    "train-reward-model",
    "merge",
    "diagnose",
    "advise",
    "report",
    "objectives",
    "curves",
    "lab",
)
"""The commands; the module of one is `preftune.commands.NAME`, with `_` for `-`."""


if __name__ == "__main__":
    sys.exit(main())
