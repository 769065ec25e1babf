"""A process that has imported everything once and forks itself for each command: a start costs milliseconds.

It reads lines of JSON from standard input: {words, out, environment, limits}, and answers {process: number}; when the
command has ended, {process, status}. The tests send signals to the command's process number themselves.
"""

import contextlib
import importlib
import json
import os
import resource
import select
import signal
import sys

COMMANDS = (
    "train",
    "sample",
    "reward",
    "select",
    "iterate",
    "compare",
    "lab",
    "report",
    "train_reward_model",
)


def run_command(job: dict) -> None:
    """In the forked process: never returns."""
    file = os.open(job["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.environ.update(job["environment"])
    for name, value in job["limits"].items():
        limit = getattr(resource, name)
        resource.setrlimit(limit, (value, resource.getrlimit(limit)[1]))
    for name in job["ignored"]:
        signal.signal(getattr(signal, name), signal.SIG_IGN)
    status = 1
    try:
        from preftune.cli.main import main

        status = main(job["words"])
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        with contextlib.suppress(OSError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(status)


def serve() -> None:
    import torch

    torch.set_num_threads(1)
    for name in COMMANDS:
        importlib.import_module(f"preftune.commands.{name}")
    for name in ("preftune.train.loop", "peft", "transformers.models.llama.modeling_llama"):
        importlib.import_module(name)
    answer({"ready": True})
    buffer, running = b"", set()
    while True:
        ready, _, _ = select.select([0], [], [], 0.005)
        if ready:
            more = os.read(0, 1 << 16)
            if not more:
                return
            buffer += more
            *lines, buffer = buffer.split(b"\n")
            for line in lines:
                process = os.fork()
                if not process:
                    signal.signal(signal.SIGINT, signal.default_int_handler)
                    run_command(json.loads(line))
                running.add(process)
                answer({"process": process})
        for process in list(running):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                running.discard(process)
                answer({"process": process, "status": os.waitstatus_to_exitcode(status)})


def answer(content: dict) -> None:
    os.write(1, json.dumps(content).encode() + b"\n")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the tests, not for this process
    serve()
