"""Whether a cost grows faster than the work: exponents of processor time over sizes of three decades.

    python benchmarks/growth.py [--only NAME] [--json]

For each case, processor time of this process at sizes n, 10 n, 100 n and 1,000 n (the least of three measurements), and
the exponent e of time = c * n^e by least squares over the sizes that take 5 ms or more. Exit status 1 if an exponent
exceeds 1.15. Processor time bears a loaded machine better than a clock does.
"""

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from preftune.commands.select import SelectConfig, select
from preftune.data.options import DataOptions
from preftune.data.records import load_records
from preftune.data.signals import derive
from preftune.measures.duplicates import repeats
from preftune.progress import Reporter
from preftune.train.health_monitor import Watch, common_ends
from preftune.train.runlog import RunFolder
from preftune.train.sources import OfflineSource
from preftune.types import Group, Record

LIMIT = 1.15
LEAST_S = 0.005  # a shorter time is mostly constant cost
REPEATS = 3

Work = Callable[[], object]


def templated_rows(n: int, folder: Path) -> Work:
    """Near-duplicates among rows that share a template."""
    random = np.random.default_rng(0)
    words = [f"word{k}" for k in range(5000)]

    def text(start: str, own: int) -> str:
        return start + " ".join(words[k] for k in random.integers(0, len(words), own))

    prompt = "You are a helpful assistant. Answer the question of the user in one sentence. Question: "
    rows = [
        (text(prompt, 8), text("Certainly! Here is the answer: ", 9), text("Sorry, but ", 6))
        for _ in range(n)
    ]
    return lambda: repeats(rows)


def step_order(n: int, folder: Path) -> Work:
    """The groups of a hundred steps and of an epoch's beginning, among n groups."""
    group = Group(prompt=np.zeros(1, np.int32), completions=(np.zeros(1, np.int32),), origin="r:1")
    groups = [group] * n

    def take() -> None:
        source = OfflineSource(groups=groups, batch_size=8, seed=time.perf_counter_ns())
        for step in range(1, 101):
            source.take(step)

    return take


def pairs_of_labels(n: int, folder: Path) -> Work:
    """Pairs from n labeled completions, ten of each prompt."""
    records = [
        Record(
            prompt=f"p{k // 10}", completions=(f"text {k}",), labels=(1 if k % 2 else -1,), origin=f"r:{k}"
        )
        for k in range(n)
    ]
    return lambda: derive(records, "pairs")


def all_pairs(n: int, folder: Path) -> Work:
    """`select --selection all-pairs`, by the pairs that are written."""
    size = math.ceil((1 + math.sqrt(1 + 8 * n)) / 2)
    row = {"prompt": "p", "completions": [f"t {k}" for k in range(size)], "rewards": list(range(size))}
    data = folder / f"scored-{n}.jsonl"
    data.write_text(json.dumps(row) + "\n")
    settings = SelectConfig(
        data=str(data), selection="all-pairs", output=str(folder / "out.jsonl"), overwrite=True
    )
    return lambda: select(settings)


def ends_of_pairs(n: int, folder: Path) -> Work:
    """The metric of common ends for the pairs of a step."""
    random = np.random.default_rng(0)
    completions = tuple(random.integers(0, 9, 20).astype(np.int32) for _ in range(64))
    pairs = tuple((k % 64, (k + 1 + k // 64) % 64) for k in range(n))
    group = Group(prompt=np.zeros(1, np.int32), completions=completions, pairs=pairs, origin="r:1")
    return lambda: common_ends([group])


def health_checks(n: int, folder: Path) -> Work:
    """The health of a run of n steps, evaluated a hundred times."""
    run = RunFolder(path=folder / f"run-{n}")
    run.path.mkdir(exist_ok=True)
    lines = [
        json.dumps({"step": s, "loss": 1 / s, "grad_norm": 1.0, "step_time": 0.1}) for s in range(1, n + 1)
    ]

    def watch() -> None:
        log = run.path / "metrics.jsonl"
        log.write_text("")
        monitor = Watch(run=run, config={"objective": {"name": "dpo"}}, report=Reporter(quiet=True))
        part = max(1, n // 100)
        for start in range(0, n, part):
            with log.open("a") as file:
                file.write("".join(line + "\n" for line in lines[start : start + part]))
            monitor.findings()

    return watch


def reading(n: int, folder: Path) -> Work:
    """Records of a file of pairs."""
    data = folder / f"pairs-{n}.jsonl"
    rows = ({"prompt": f"p {k}", "chosen": "yes", "rejected": "no"} for k in range(n))
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return lambda: load_records(str(data), DataOptions())


CASES: dict[str, tuple[Callable[[int, Path], Work], int]] = {
    "near-duplicates of templated rows": (templated_rows, 20),
    "order of the steps": (step_order, 1000),
    "pairs made of labels": (pairs_of_labels, 30),
    "select all-pairs": (all_pairs, 100),
    "common ends of pairs": (ends_of_pairs, 100),
    "health checks": (health_checks, 100),
    "reading rows": (reading, 30),
}
"""Name -> (what makes the work of a size, the smallest size)."""


def seconds_of(work: Work) -> float:
    times = []
    for _ in range(REPEATS):
        start = time.process_time()
        work()
        times.append(time.process_time() - start)
        if times[-1] > 5:  # noise is small against this
            break
    return min(times)


def exponent(sizes: list[int], seconds: list[float]) -> float:
    """Slope of log time over log size; 0 if fewer than two sizes take long enough to measure."""
    kept = [(math.log(n), math.log(s)) for n, s in zip(sizes, seconds, strict=True) if s >= LEAST_S]
    if len(kept) < 2:
        return 0.0
    x, y = np.array(kept).T
    return float(np.polyfit(x, y, 1)[0])


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", choices=CASES, help="one case")
    parser.add_argument("--decades", type=int, default=3)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    too_steep = False
    for name in [options.only] if options.only else CASES:
        make, least = CASES[name]
        sizes = [least * 10**power for power in range(options.decades + 1)]
        with tempfile.TemporaryDirectory() as folder:
            seconds = [seconds_of(make(n, Path(folder))) for n in sizes]
        slope = exponent(sizes, seconds)
        too_steep |= slope > LIMIT
        if options.json:
            row = {"case": name, "sizes": sizes, "seconds": seconds, "exponent": slope}
            print(json.dumps(row), flush=True)
        else:
            times = "  ".join(f"{n:,}: {s:.4f} s" for n, s in zip(sizes, seconds, strict=True))
            print(f"{name:36} exponent {slope:5.2f}   {times}", flush=True)
    return int(too_steep)


if __name__ == "__main__":
    sys.exit(main())
