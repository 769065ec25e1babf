"""The demo over several seeds, one row of results each.

    python runs/demo_seeds.py OUTPUT [--seeds 0 1 2 3 4]

Runs `preftune demo` once per seed and writes OUTPUT/table.json. Resumable: finished seeds are read.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any


def run_seed(output: Path, seed: int) -> dict[str, Any]:
    """What `preftune demo --json` printed, and its processor seconds."""
    kept = output / f"seed-{seed}.json"
    if not kept.exists():
        used = resource.getrusage(resource.RUSAGE_CHILDREN)
        command = [sys.executable, "-m", "preftune", "demo", "--seed", str(seed), "--json"]
        command += ["--output", str(output / f"seed-{seed}"), "--overwrite"]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        now = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds = now.ru_utime + now.ru_stime - used.ru_utime - used.ru_stime
        kept.write_text(json.dumps(json.loads(done.stdout) | {"processor_seconds": round(seconds)}))
    return json.loads(kept.read_text())


def row_of(seed: int, result: dict[str, Any]) -> dict[str, Any]:
    """One line of the table: before and after, and the interval of the difference."""
    good = result["good"]
    stages = {
        stage: {
            "good": good[stage]["reward"]["mean"],
            "complete": good[stage]["ended"],
            "tokens": good[stage]["num_tokens"],
            **result["degeneration"][stage],
        }
        for stage in ("before", "after")
    }
    change = good["difference"]
    return {
        "seed": seed,
        "prompts": good["num_prompts"],
        **{key: {k: round(v, 3) for k, v in values.items()} for key, values in stages.items()},
        "difference": [round(change[key], 3) for key in ("mean", "low", "high")],
        "processor_seconds": result["processor_seconds"],
        "capability": os.environ.get("ATEN_CPU_CAPABILITY", "default"),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description="The demo over several seeds.")
    parser.add_argument("output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4])
    options = parser.parse_args()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    rows = [row_of(seed, run_seed(output, seed)) for seed in options.seeds]
    (output / "table.json").write_text("[\n" + ",\n".join(map(json.dumps, rows)) + "\n]\n")
    print((output / "table.json").read_text())


if __name__ == "__main__":
    main()
