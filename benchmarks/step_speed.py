"""Time of a training step with default settings, here and in another checkout.

    python benchmarks/step_speed.py --base FOLDER [--objectives dpo bnf sft] [--turns 4] [--steps 8] [--json]

`git worktree add FOLDER COMMIT` makes the other checkout. Both train the bundled model on the same pairs with their
command line and their defaults, in turn, the order turned round each time, in fresh processes of one thread. A run
counts with the median of its step times, without the first two. Printed for each objective: the ratio here / base,
its geometric mean over turns with a 95% interval. Above 1 is slower than the base.
"""

import argparse
import json
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
from importlib import resources
from pathlib import Path

from preftune.stats import mean_interval

HERE = Path(__file__).parents[1]
WARM_UP = 2


def write_pairs(path: Path, count: int, seed: int = 0) -> None:
    """Made-up dialogues: prompts that the package ships, answers of their words, 20 to 120 words long."""
    lines = resources.files("preftune.commands").joinpath("demo_prompts.jsonl").read_text(encoding="utf-8")
    prompts = [json.loads(line)["prompt"] for line in lines.splitlines()]
    words, draw = " ".join(prompts).split(), random.Random(seed)

    def answer() -> str:
        return " ".join(draw.choices(words, k=draw.randint(20, 120)))

    rows = [{"prompt": draw.choice(prompts), "chosen": answer(), "rejected": answer()} for _ in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def median_step(root: Path, objective: str, folder: Path, settings: argparse.Namespace, turn: int) -> float:
    """Seconds of a step of the checkout at `root`, from the metrics of a run."""
    output = folder / f"{'here' if root == HERE else 'base'}-{objective}-{turn}"
    threads = {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(root / "src")}
    command = [sys.executable, "-m", "preftune", "train", "--data", str(folder / "pairs.jsonl")]
    command += ["--objective", objective, "--output", str(output), "--eval_fraction", "0"]
    command += ["--max_steps", str(settings.steps + WARM_UP), "--learning_rate", "1e-6"]
    done = subprocess.run(
        [*command, "--model", settings.model], env=os.environ | threads, capture_output=True, text=True
    )
    if done.returncode:
        raise SystemExit(f"{root}: {done.stderr[-2000:]}")
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    times = [row["step_time"] for row in rows if row["phase"] == "train"]
    return statistics.median(times[WARM_UP:])


def ratios(objective: str, base: Path, folder: Path, settings: argparse.Namespace) -> list[float]:
    """Time here over time in the base, for each turn."""
    found = []
    for turn in range(settings.turns):
        roots = (HERE, base) if turn % 2 == 0 else (base, HERE)
        times = {root: median_step(root, objective, folder, settings, turn) for root in roots}
        found.append(times[HERE] / times[base])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--base", required=True, help="another checkout")
    parser.add_argument("--objectives", nargs="+", default=["dpo", "bnf", "sft"])
    parser.add_argument("--turns", type=int, default=4)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--rows", type=int, default=120)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    result = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_pairs(folder / "pairs.jsonl", settings.rows)
        for objective in settings.objectives:
            found = ratios(objective, Path(settings.base).resolve(), folder, settings)
            logs = mean_interval([math.log(ratio) for ratio in found])
            interval = [math.exp(value) for value in (logs.mean, logs.low, logs.high)]
            result[objective] = {"ratios": found, "mean": interval[0], "interval": interval[1:]}
            if not settings.json:
                print(
                    f"{objective:20} step here / base {interval[0]:.3f} "
                    f"(95% {interval[1]:.3f} to {interval[2]:.3f}), {settings.turns} turns",
                    flush=True,
                )
    if settings.json:
        print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
