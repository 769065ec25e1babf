"""Which learning rate suits an objective: SmolLM2 on pairs, the same grid for every objective.

    python runs/rates.py OUTPUT --data hh.jsonl [--objectives bnf dpo] [--rates 3e-7 1e-6 3e-6 1e-5 3e-5]
    [--seeds 0 1] [--rows 500] [--shortest] [--held_out 0.1] [--batch_size 8] [--lora_rank 0]

One epoch over the rows, a share of their prompts held out. The rows are the first of the file, or with --shortest the
shortest of it by characters, in the file's order. Prints for each objective and rate the held-out accuracy
(the share of pairs that the objective's own score orders rightly), margin and log-ratio of the chosen answers in
nats, means over the seeds, and the rate with the highest accuracy (between equal ones, the highest margin).
Adapters take rates that are ten times as large: --lora_rank 16 multiplies the grid by 10. Resumable: finished runs
are read. Writes OUTPUT/table.json.
"""

import argparse
import gzip
import json
import statistics
from functools import partial
from itertools import product
from pathlib import Path

import torch

from preftune.model.adapters import LoraOptions
from preftune.model.load import quiet_transformers
from preftune.objectives import OBJECTIVES
from preftune.train.loop import train
from preftune.train.optim import OptimOptions
from preftune.train.options import TrainConfig

RATES = [3e-7, 1e-6, 3e-6, 1e-5, 3e-5]
WATCHED = {
    "accuracy": "eval_rewards/accuracies",
    "margin": "eval_rewards/margins",
    "chosen": "eval_log_ratios/chosen",
    "loss": "eval_loss",
}


def selected(lines: list[str], count: int, shortest: bool) -> list[str]:
    """The first lines, or the shortest ones in the order of the file."""
    if not shortest:
        return lines[:count]
    kept = sorted(sorted(range(len(lines)), key=lambda place: len(lines[place]))[:count])
    return [lines[place] for place in kept]


def finished(options: argparse.Namespace, objective: str, rate: float, seed: int) -> Path:
    """The folder of a run, trained if it is not there."""
    folder = Path(options.output) / f"{objective}-{rate:g}-{seed}"
    if (folder / "final").exists():
        return folder
    run = train(
        TrainConfig(
            data=str(Path(options.output) / "rows.jsonl"),
            output=str(folder),
            model=options.model,
            objective=OBJECTIVES[objective](),
            batch_size=options.batch_size,
            eval_fraction=options.held_out,
            eval_every=options.rows,
            precision=options.precision,
            seed=seed,
            lora=LoraOptions(rank=options.lora_rank),
            optim=OptimOptions(learning_rate=rate),
        ),
        quiet=True,
    )
    if run.state != "finished":
        raise SystemExit(f"{folder} was interrupted; remove it, then run this again")
    return folder


def measured(folder: Path) -> dict[str, float]:
    """The last held-out evaluation; log-ratios are left out where the objective has no reference."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["phase"] == "eval"][-1]
    return {name: last[key] for name, key in WATCHED.items() if key in last}


def standing(rows: dict[str, dict[str, float]], rate: str) -> tuple[float, float]:
    """What orders rates: held-out accuracy, and the margin between equal accuracies."""
    return rows[rate].get("accuracy", 0.0), rows[rate].get("margin", 0.0)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output")
    parser.add_argument("--data", required=True, help="pairs, JSON lines, packed or not")
    parser.add_argument("--objectives", nargs="+", default=["bnf", "dpo"], choices=list(OBJECTIVES))
    parser.add_argument("--rates", type=float, nargs="+", default=RATES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--shortest", action="store_true", help="train on the shortest rows of the file")
    parser.add_argument("--held_out", type=float, default=0.1, help="share of the prompts")
    parser.add_argument("--batch_size", type=int, default=8)
    parser.add_argument("--lora_rank", type=int, default=0)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--precision", default="bf16")
    options = parser.parse_args()
    torch.set_num_threads(1)
    quiet_transformers()
    output = Path(options.output)
    output.mkdir(parents=True, exist_ok=True)
    opened = gzip.open if options.data.endswith(".gz") else open
    with opened(options.data, "rt", encoding="utf-8") as rows:
        lines = selected(list(rows), options.rows, options.shortest)
    (output / "rows.jsonl").write_text("".join(lines), encoding="utf-8")
    table: dict[str, dict[str, dict[str, float]]] = {}
    rates = [rate * (10 if options.lora_rank else 1) for rate in options.rates]
    for seed in options.seeds:  # all rates of one seed come before the next seed
        for objective, rate in product(options.objectives, rates):
            finished(options, objective, rate, seed)
    for objective in options.objectives:
        for rate in rates:
            runs = [measured(finished(options, objective, rate, seed)) for seed in options.seeds]
            means = {name: statistics.mean(run[name] for run in runs) for name in runs[0]}
            table.setdefault(objective, {})[f"{rate:g}"] = means
            numbers = "  ".join(f"{name} {value:9.4f}" for name, value in means.items())
            print(f"{objective:20} {rate:8.0e}  {numbers}", flush=True)
        best = max(table[objective], key=partial(standing, table[objective]))
        print(f"{objective:20} best at {best}", flush=True)
    (output / "table.json").write_text(json.dumps(table, indent=2) + "\n")


if __name__ == "__main__":
    main()
