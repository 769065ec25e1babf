"""Methods on their own samples, at an equal number of samples: a short answer is a good one (reward
length.min).

    python runs/on_policy_length.py OUTPUT [--seeds 0 1 2] [--learning_rates 5e-6 2e-5] [--steps 16]
    [--evaluations 4] [--workers 2]

For each method: the learning rate that ends with the highest held-out reward on a seed of its own (the same
grid for all), then one run per seed at that rate. A worker is a process of one thread, so a run's processor
seconds are its time without neighbors. Prints one table and writes OUTPUT/table.json. Resumable: finished
runs are read.
"""

import argparse
import json
import multiprocessing
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from importlib import resources
from pathlib import Path

import torch

from preftune.model.load import quiet_transformers
from preftune.objectives import OBJECTIVES
from preftune.sampling.sample import SampleOptions
from preftune.train.loop import train
from preftune.train.onpolicy.collect import CollectOptions
from preftune.train.options import OptimOptions, TrainConfig

METHODS = {  # name -> (objective, selection, does it push completions down)
    "bnf": ("bnf", None, True),
    "dpo": ("dpo", None, True),
    "ipo": ("ipo", None, True),
    "rloo": ("rloo", None, True),
    "ppo": ("ppo", None, True),
    "rwr": ("rwr", None, False),
    "best-of-N": ("sft", "best-of-n", False),
}
TUNING_SEED = 100


def run_once(options: argparse.Namespace, method: str, rate: float, seed: int) -> Path:
    """A finished run folder."""
    objective, selection, _ = METHODS[method]
    folder = Path(options.output) / f"{method}-{rate:g}-{seed}"
    if (folder / "final").exists():
        return folder
    started = time.process_time()
    run = train(
        TrainConfig(
            source="on-policy",
            data=str(Path(options.output) / "prompts.jsonl"),
            reward="length.min",
            output=str(folder),
            model=options.model,
            objective=OBJECTIVES[objective](),
            batch_size=options.prompts,
            max_steps=options.steps,
            epochs=1e6,
            eval_fraction=0.25,
            eval_every=max(1, options.steps // options.evaluations),
            precision=options.precision,
            seed=seed,
            sampling=SampleOptions(num_completions=4, max_new_tokens=options.max_new_tokens),
            collect=CollectOptions(selection=selection),
            optim=OptimOptions(learning_rate=rate, schedule="constant", warmup_ratio=0.0),
        ),
        quiet=True,
    )
    if run.state != "finished":
        raise SystemExit(f"{folder} was interrupted; remove it, then run this again")
    (folder / "seconds.json").write_text(json.dumps(time.process_time() - started))
    return folder


def measured(folder: Path) -> dict[str, float]:
    """Where the run ended on held-out prompts, and what it took."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    last = [row for row in rows if row["phase"] == "eval"][-1]
    trained = [row for row in rows if row["phase"] == "train"]
    return {
        "reward": last["eval_reward"],
        "kl": last["eval_kl"],
        "entropy": last["eval_entropy"],
        "length": last["eval_completions/length"],
        "samples": trained[-1]["samples_drawn"],
        "seconds": json.loads((folder / "seconds.json").read_text()),
    }


def samples_to(folder: Path, reward: float) -> float:
    """Samples drawn when the held-out reward first was at least this; infinite if it never was."""
    drawn = 0.0
    for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines()):
        if row["phase"] == "train":
            drawn = row["samples_drawn"]
        elif row["eval_reward"] >= reward:
            return drawn
    return float("inf")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[5e-6, 2e-5])
    parser.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    parser.add_argument("--steps", type=int, default=16)
    parser.add_argument("--prompts", type=int, default=4, help="prompts per step; each gets 4 completions")
    parser.add_argument(
        "--evaluations", type=int, default=4, help="held-out evaluations after the one before training"
    )
    parser.add_argument("--max_new_tokens", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--precision", default="bf16")
    options = parser.parse_args()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    lines = (
        resources.files("preftune.commands")
        .joinpath("demo_prompts.jsonl")
        .read_text(encoding="utf-8")
        .splitlines()
    )
    rows = [{"prompt": json.loads(line)["prompt"]} for line in lines[:128]]
    (Path(options.output) / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    started = time.perf_counter()
    with ProcessPoolExecutor(
        options.workers, multiprocessing.get_context("spawn"), initializer=_one_thread
    ) as pool:
        done = dict(
            zip(options.methods, pool.map(partial(run_method, options), options.methods), strict=True)
        )
    report(
        options,
        {method: rate for method, (rate, _) in done.items()},
        {method: of for method, (_, of) in done.items()},
    )
    print(f"{time.perf_counter() - started:.0f} s in all, {options.workers} at once")


def _one_thread() -> None:
    torch.set_num_threads(1)
    quiet_transformers()


def run_method(options: argparse.Namespace, method: str) -> tuple[float, list[Path]]:
    """The learning rate that was best on the tuning seed (one alone needs no tuning), and the run folders of the
    seeds at that rate.
    """
    best, *others = options.learning_rates
    if others:
        tuned = {
            rate: measured(run_once(options, method, rate, TUNING_SEED))["reward"]
            for rate in options.learning_rates
        }
        best = max(tuned, key=lambda rate: tuned[rate])
    return best, [run_once(options, method, best, seed) for seed in options.seeds]


def report(options: argparse.Namespace, chosen: dict[str, float], folders: dict[str, list[Path]]) -> None:
    """The table, and the samples that each method needed to reach the best reward of the methods that push
    nothing down.
    """
    table = {method: [measured(folder) for folder in ones] for method, ones in folders.items()}
    pulling = [statistics.mean(one["reward"] for one in table[m]) for m in table if not METHODS[m][2]]
    goal = max(pulling) if pulling else 0.0
    headings = {
        "method": -10,
        "rate": 7,
        "reward": 15,
        "KL": 7,
        "entropy": 8,
        "length": 7,
        "samples": 8,
        "cpu s": 6,
        f"to {goal:.2f}": 12,
    }
    print(
        " ".join(f"{heading:{'<' if width < 0 else '>'}{abs(width)}}" for heading, width in headings.items())
    )
    for method, ones in table.items():
        means = {name: statistics.mean(one[name] for one in ones) for name in ones[0]}
        spread = statistics.stdev(one["reward"] for one in ones) if len(ones) > 1 else 0.0
        needed = [samples_to(folder, goal) for folder in folders[method]]
        print(
            f"{method:10} {chosen[method]:7.0e} {means['reward']:7.3f} ± {spread:5.3f} {means['kl']:7.2f} "
            f"{means['entropy']:8.3f} {means['length']:7.1f} {means['samples']:8.0f} {means['seconds']:6.0f} "
            f"{statistics.median(needed):12.0f}"
        )
    content = {
        "learning_rates": chosen,
        "runs": table,
        "goal": goal,
        "options": {name: value for name, value in vars(options).items() if name != "output"},
        "sampling": asdict(SampleOptions(num_completions=4, max_new_tokens=options.max_new_tokens)),
    }
    (Path(options.output) / "table.json").write_text(json.dumps(content, indent=2) + "\n")


if __name__ == "__main__":
    main()
