"""`preftune <verb>`: the command line. Nothing heavy is imported before a verb is known."""

import gc
import importlib
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from types import ModuleType

from preftune import __version__
from preftune.errors import (
    ConfigError,
    DataError,
    ElsewhereError,
    ModelError,
    PreftuneError,
    shown,
    storage_error,
)
from preftune.terminal import clean_terminal

HELP = """\
preftune fine-tunes language models on preference data.

usage: preftune COMMAND [settings]

start here:
  start               from a data file to a verdict, in minutes preftune start FILE --minutes 30
  demo                end-to-end example on a bundled model   preftune demo
  inspect             how a data file is read                 preftune inspect DATA --model M
  train               train a model                           preftune train --data FILE --objective dpo --output RUN
  eval                pairs, rewards, win rates, tasks        preftune eval RUN --data FILE
  report              write a run's page, or compare runs     preftune report RUN [RUN ...]
  clean               remove what killed processes left       preftune clean RUN

data:
  sample              completions of prompts                  preftune sample RUN --prompts FILE --output OUT
  reward              add rewards to the completions          preftune reward FILE --reward brief --output OUT
  select              completions with rewards -> pairs       preftune select FILE --selection best-vs-worst --output PAIRS
  ask                 which completions to label              preftune ask SAMPLES --budget 100 --output FILE
  annotate            judge pairs of completions on a page    preftune annotate SAMPLES --output PAIRS
  iterate             rounds of sample, reward, select, train preftune iterate --prompts FILE --reward brief --output FOLDER

models:
  chat                talk to a model, or to two at once      preftune chat RUN [--compare MODEL]
  train-reward-model  train a Bradley-Terry reward model      preftune train-reward-model --data PAIRS --output RUN
  merge               merge models, or an adapter             preftune merge MODEL MODEL --base START --output NEW
  export              a model for other programs              preftune export RUN --to gguf --output FOLDER

methods:
  objectives          list the losses, or show one            preftune objectives [NAME]
  compare             methods under an equal budget           preftune compare --data D --objectives bnf,dpo --steps 60 --output OUT
  diagnose            what a run changed, what data can teach preftune diagnose RUN | DATA
  advise              which source and objective suit data    preftune advise DIAGNOSIS.json
  curves              derivative of each loss, as a figure    preftune curves [NAME ...]
  lab                 bandit experiments of both papers       preftune lab list
  import-config       settings of TRL, axolotl and others     preftune import-config FILE --output run.yaml
  completion          complete commands in bash, zsh, fish    eval "$(preftune completion bash)"
  env                 versions and hardware, for bug reports  preftune env
  docs                this version's documentation, offline  preftune docs [NAME]

Settings are flags (--learning_rate 1e-6) or YAML (--config run.yaml) with the same names.
preftune COMMAND --help shows the settings that most people need; --help all shows every setting.
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a verb; returns the exit status: 0 done, 1 our bug, 2 a mistake of the user, 3 training
    stopped, 4 a file could not be written or read, 5 a server refused or did not answer, 130 interrupted.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if not words or words[0] in ("-h", "--help") or words == ["help"]:
            print(HELP, end="")
            sys.stdout.flush()
            return 0
        with _stopping_signals():
            status = _run(words)
        sys.stdout.flush()
        return status
    except PreftuneError as error:
        if not _is_told_elsewhere(error):
            print(error_line(words, error), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        if _is_first_of_host():  # torchrun stops the others when one fails, and its error counts
            with suppress(OSError):  # the terminal may be closed
                print(f"\npreftune {words[0]}: interrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output has gone, as with `| head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except OSError as error:  # of the system, wherever a library meets it
        told = storage_error("read or write", shown(error.filename or "a file of this command"), error)
        print(error_line(words, told), file=sys.stderr)
        return told.exit_code


def error_line(words: Sequence[str], error: PreftuneError) -> str:
    """An error of a command as one line."""
    place = f"preftune {words[0]}" if words[0] in VERBS else "preftune"
    return f"{place}: {' '.join(clean_terminal(str(error)).split())}"


@contextmanager
def _stopping_signals() -> Iterator[None]:
    """Within, SIGTERM and SIGHUP end a command as Ctrl-C does, with temporary files removed. Signals that arrive
    within two seconds of the first, as a scheduler sends them to a process group, count as one.
    """
    import signal
    import threading
    import time

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
    """Of several processes of one run, the one where an error arose prints it; a mistake of the user, the
    first of each host, since a file may be missing on one host alone.
    """
    asked = isinstance(error, ConfigError | DataError | ModelError)
    return isinstance(error, ElsewhereError) or (asked and not _is_first_of_host())


def _is_first_of_host() -> bool:
    return os.environ.get("LOCAL_RANK", "0") == "0"


def _run(words: list[str]) -> int:
    if words[0] in ("-V", "--version", "version"):
        print(f"preftune {__version__}")
        return 0
    verb, rest = words[0], words[1:]
    if rest[:1] == ["help"] or (verb == "help" and rest):  # `preftune train help`, `preftune help train`
        verb, rest = (verb, ["--help", *rest[1:]]) if verb != "help" else (rest[0], ["--help", *rest[1:]])
    # imported now: `preftune --help` and `--version` do without
    from preftune.cli.help import help_text
    from preftune.cli.names import nearest
    from preftune.cli.words import check_early, prepared

    if verb.lower() in VERBS:
        verb = verb.lower()
    if verb not in VERBS:
        _refuse_misplaced(words)
        near = verb if verb in ELSEWHERE_VERBS else nearest(verb, (*VERBS, *ELSEWHERE_VERBS), 0.6)
        raise ConfigError(
            f"Unknown command {shown(verb)}",
            expected=None if near else ", ".join(VERBS),
            do=ELSEWHERE_VERBS.get(near or "", f"Did you mean preftune {near}?") if near else None,
        )
    command = verb
    if verb == "diagnose":
        rest = _with_action(rest)
        if rest and rest[0] in ("run", "data"):
            command, rest = f"diagnose-{rest[0]}", rest[1:]
    if {"--help", "-h"} & set(rest) and (text := help_text(command, rest)) is not None:
        print(text, end="")
        return 0
    _refuse_several_processes(command)
    settings = prepared(command, rest)  # mistakes are reported before the libraries are imported
    check_early(command, settings)
    return _module_of(command).run(settings)


def _refuse_misplaced(words: list[str]) -> None:
    """Refuse a setting, a file or a run where the command belongs."""
    from pathlib import Path

    from preftune.data.names import suffix_of

    first = words[0]
    if first.startswith("--") and len(words) > 1:
        do = f"Use: preftune train {' '.join(words)}"
    elif (Path(first) / "config.yaml").is_file():
        do = f"Use: preftune report {first}, chat {first} or eval {first} --data FILE"
    elif suffix_of(Path(first)):
        do = f"Use: preftune start {first}, inspect {first} or train --data {first} --output RUN"
    else:
        return
    raise ConfigError("The first word is a command", got=shown(first), do=do)


def _refuse_several_processes(command: str) -> None:
    """Commands but `train` would do all their work in each process, into one file."""
    size = os.environ.get("WORLD_SIZE", "1")
    if command == "train" or "RANK" not in os.environ or size == "1":
        return
    raise ConfigError(
        f"preftune {command} runs in one process",
        got=f"{shown(size)} processes of torchrun",
        expected="train, which several processes do together",
        do=f"Start it without torchrun: preftune {command}",
    )


def _with_action(words: list[str]) -> list[str]:
    """`preftune diagnose FILE` and `preftune diagnose RUN` without the action."""
    from pathlib import Path

    first = words[0] if words else ""
    if first and not first.startswith("-") and first not in ("run", "data"):
        if (Path(first) / "config.yaml").is_file():
            return ["run", *words]
        if Path(first).exists() or Path(first).suffix:
            return ["data", *words]
    return words


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
    "start",
    "demo",
    "inspect",
    "train",
    "sample",
    "chat",
    "reward",
    "select",
    "iterate",
    "compare",
    "eval",
    "train-reward-model",
    "merge",
    "export",
    "diagnose",
    "advise",
    "report",
    "clean",
    "ask",
    "annotate",
    "import-config",
    "objectives",
    "curves",
    "lab",
    "env",
    "completion",
    "docs",
)
"""The commands; the module of one is `preftune.commands.NAME`, with `_` for `-`."""

ELSEWHERE_VERBS = {
    "generate": "Use: preftune sample --model MODEL --prompt TEXT",
    "predict": "Use: preftune sample --model MODEL --prompts FILE",
    "evaluate": "Use: preftune eval",
    "dpo": "Use: preftune train --objective dpo",
    "sft": "Use: preftune train --objective sft",
    "grpo": "Use: preftune train --source on-policy --objective grpo",
    "label": "Use: preftune annotate FILE --output PAIRS",
    "finetune": "Use: preftune train",
    "fine-tune": "Use: preftune train",
    "tune": "Use: preftune train",
    "fit": "Use: preftune train",
    "orpo": "Use: preftune train --objective orpo",
    "kto": "Use: preftune train --objective kto",
    "ppo": "Use: preftune train --source on-policy --objective ppo",
    "push": "Use: preftune export RUN --to hub",
    "upload": "Use: preftune export RUN --to hub",
    "convert": "Use: preftune export RUN --to gguf",
    "benchmark": "Use: preftune eval RUN --tasks gsm8k",
    "score": "Use: preftune reward FILE --reward NAME, or preftune eval",
    "resume": "Use: preftune train --resume RUN",
    "run": "Use: preftune start FILE, or preftune train",
    "test": "Use: preftune eval RUN --data FILE",
    "diff": "Use: preftune report RUN RUN --output compare.html",
    "plot": "Use: preftune report RUN",
    "show": "Use: preftune report RUN, or preftune objectives NAME",
    "ui": "Use: preftune report RUN for a page, preftune chat RUN to talk to a model",
    "info": "Use: preftune env, or preftune inspect DATA",
    "list": "Use: preftune objectives, or preftune --help for the commands",
    "download": "Name the model or data set where it is used: preftune train --model OWNER/NAME --data OWNER/NAME",
    "quantize": "Use: preftune export RUN --to gguf",
    "inference": "Use: preftune sample RUN --prompt TEXT, or preftune chat RUN",
    "infer": "Use: preftune sample RUN --prompt TEXT, or preftune chat RUN",
    "preview": "Use: preftune inspect DATA",
    "validate": "Use: preftune inspect DATA",
    "check": "Use: preftune inspect DATA",
    "methods": "Use: preftune objectives",
    "losses": "Use: preftune objectives",
    "algorithms": "Use: preftune objectives",
    "init": "Use: preftune start FILE, or preftune train --print_config > run.yaml",
    "quickstart": "Use: preftune start FILE, or preftune docs quickstart",
    "doctor": "Use: preftune env",
    "install": "Use: pip install 'preftune[rewards]' for an extra",
    "login": "Use: hf auth login",
    "train-rm": "Use: preftune train-reward-model --data PAIRS --output RUN",
    "reward-model": "Use: preftune train-reward-model --data PAIRS --output RUN",
    "rm": "Use: preftune train-reward-model --data PAIRS --output RUN",
    "rlhf": "Use: preftune train --source on-policy --reward NAME",
    "rl": "Use: preftune train --source on-policy --reward NAME",
    "web": "Use: preftune annotate FILE for labels, preftune report RUN for a page",
    "rank": "Use: preftune reward FILE --reward NAME, or preftune annotate FILE",
    "fuse": "Use: preftune merge RUN/final --output MODEL",
    "serve": "A vLLM or transformers server serves RUN/final; docs/sampling.md shows how to use one",
}
"""Commands of other tools."""


if __name__ == "__main__":
    sys.exit(main())
