"""How well a dry run foretells: predicted against real peak memory, time per step and total time of `preftune
train`.

    python benchmarks/dry_run.py --data FILE [--steps 6] [--model NAME] [--cases NAME ...] [--json]

For each case the dry run and then the run, each in a fresh process, with the same settings. Real memory is
the peak of the process, real seconds are those of its log (steps) and of the clock (total). A reference cache
of its own, empty, for every run.
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

CASES = {
    "dpo": ["--objective", "dpo"],
    "dpo, live reference": ["--objective", "dpo", "--reference.mode", "live"],
    "bnf, small micro-batches": ["--objective", "bnf", "--micro_batch_tokens", "192"],
    "dpo, checkpointed": ["--objective", "dpo", "--gradient_checkpointing", "true"],
    "dpo, adapter": ["--objective", "dpo", "--lora.rank", "16"],
    "sft, bf16": ["--objective", "sft", "--precision", "bf16"],
}


def run(words: list[str], cache: str) -> tuple[str, float, float]:
    """Standard output, peak MiB, seconds."""
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "preftune", "train", *words],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PREFTUNE_CACHE": cache},
    )
    assert process.stdout is not None
    told = process.stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"{' '.join(words)} ended with {os.waitstatus_to_exitcode(status)}")
    return told, used.ru_maxrss / 1024, time.perf_counter() - started


def compare(settings: argparse.Namespace, case: str) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        words = [
            "--data",
            settings.data,
            "--model",
            resolve_model(settings.model),
            "--max_steps",
            str(settings.steps),
            "--max_length",
            "512",
            "--batch_size",
            "8",
            "--eval_fraction",
            "0.02",
            "--output",
            f"{folder}/run",
            "--json",
            *CASES[case],
        ]
        told, _, _ = run([*words, "--dry-run"], f"{folder}/first")
        predicted = json.loads(told)
        _, peak, seconds = run(words, f"{folder}/second")
        rows = [json.loads(line) for line in Path(folder, "run", "metrics.jsonl").read_text().splitlines()]
    steps = [row["step_time"] for row in rows if row["phase"] == "train"]
    found = {
        "peak_mib": (predicted["peak_bytes"] / 2**20, peak),
        "step_seconds": (predicted["step_seconds"], statistics.mean(steps)),
        "total_seconds": (predicted["total_seconds"], seconds),
    }
    mfu = statistics.median(row["mfu"] for row in rows if row["phase"] == "train")
    return {"case": case, "mfu": mfu} | {
        name: {"predicted": ours, "real": real, "ratio": ours / real} for name, (ours, real) in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--data", required=True)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    for case in settings.cases:
        found = compare(settings, case)
        if settings.json:
            print(json.dumps(found), flush=True)
            continue
        told = [
            f"{name} {one['predicted']:.1f} foretold, {one['real']:.1f} real ({one['ratio']:.2f})"
            for name, one in found.items()
            if isinstance(one, dict)
        ]
        print(
            f"{case}: " + "; ".join(told) + f"; an update at {found['mfu']:.0%} of matrix products",
            flush=True,
        )


if __name__ == "__main__":
    main()
