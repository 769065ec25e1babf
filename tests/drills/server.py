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


def run_command(job: dict, out: int) -> None:
    """In the forked process: never returns. What it prints goes into a pipe, which no limit on files holds up."""
    for number in (1, 2):
        os.dup2(out, number)
    os.close(out)
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
    buffer, running = b"", {}
    while True:
        pipes = dict(running.values())
        for ready in select.select([0, *pipes], [], [], 0.005)[0]:
            more = os.read(ready, 1 << 16)
            if ready:
                with open(pipes[ready], "ab") as file:
                    file.write(more)
            elif not more:
                return
            else:
                *lines, buffer = (buffer + more).split(b"\n")
                for line in lines:
                    start(json.loads(line), running)
        for process, (pipe, out) in list(running.items()):
            done, status = os.waitpid(process, os.WNOHANG)
            if done:
                with open(out, "ab") as file:
                    while more := os.read(pipe, 1 << 16):
                        file.write(more)
                os.close(pipe)
                del running[process]
                answer({"process": process, "status": os.waitstatus_to_exitcode(status)})


def start(job: dict, running: dict) -> None:
    open(job["out"], "wb").close()
    pipe, end = os.pipe()
    process = os.fork()
    if not process:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        os.close(pipe)
        for other, _ in running.values():
            os.close(other)
        run_command(job, end)
    os.close(end)
    running[process] = pipe, job["out"]
    answer({"process": process})


def answer(content: dict) -> None:
    os.write(1, json.dumps(content).encode() + b"\n")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is for the tests, not for this process
    serve()
