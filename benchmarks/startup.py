"""From the start of a process: seconds until `preftune --help` is done, and until `preftune train` begins its
first step.

    python benchmarks/startup.py [--model smollm2-135m-instruct] [--method dpo] [--pairs 64] [--turns 5]
    [--json]

Rows are made up, short, and the same for every turn. The first turn of `train` prepares them and, where there
is a reference, has that computed; later ones find both in the cache, which is a new one for every call of
this script. A step begins when its line in the log is written, less the time that the line says it took.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from preftune.model.load import resolve_model


def seconds_of(command: list[str]) -> float:
    started = time.perf_counter()
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - started


def until_first_step(command: list[str], log: Path, environment: dict[str, str]) -> float:
    started = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    while True:
        lines = log.read_text().splitlines() if log.exists() else []
        for row in (json.loads(line) for line in lines if line.endswith("}")):
            if row["phase"] == "train":
                begun = time.perf_counter() - started - row["step_time"]
                process.communicate()
                return begun
        if process.poll() not in (None, 0):
            sys.exit(process.communicate()[1])
        time.sleep(0.01)


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    preftune = [sys.executable, "-m", "preftune"]
    helped = [seconds_of([*preftune, "--help"]) for _ in range(settings.turns)]
    begun = []
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder) / "pairs.jsonl"
        data.write_text(
            "".join(
                json.dumps(
                    {
                        "prompt": f"What is {i} plus {i}?",
                        "chosen": f"It is {2 * i}.",
                        "rejected": "I do not know.",
                    }
                )
                + "\n"
                for i in range(settings.pairs)
            )
        )
        cache = Path(folder) / "cache"
        environment = os.environ | {"PREFTUNE_CACHE": str(cache)}
        model = str(Path(resolve_model(settings.model)).resolve())
        for turn in range(settings.turns):
            output = Path(folder) / f"run{turn}"
            command = [
                *preftune,
                "train",
                "--objective",
                settings.method,
                "--data",
                str(data),
                "--model",
                model,
                "--output",
                str(output),
                "--max_steps",
                "1",
                "--eval_fraction",
                "0",
            ]
            begun.append(until_first_step(command, output / "metrics.jsonl", environment))
    return {"help": helped, "first_step": begun}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--method", default="dpo")
    parser.add_argument("--pairs", type=int, default=64)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    found = measure(settings)
    if settings.json:
        print(json.dumps(found))
        return
    print(
        f"--help: {statistics.median(found['help']):.2f} s ({min(found['help']):.2f} to {max(found['help']):.2f})"
    )
    first, *later = found["first_step"]
    print(
        f"first step of {settings.method}: {first:.1f} s with nothing prepared"
        + (
            f", {statistics.median(later):.1f} s ({min(later):.1f} to {max(later):.1f}) again"
            if later
            else ""
        )
    )


if __name__ == "__main__":
    main()
