"""Does bnf move likelihood least and spread its logit shifts most evenly? bnf, dpo, ipo and simpo on the same
HH pairs, one page.

    python runs/bnf_figures.py hh_harmless_base_test.jsonl.gz OUTPUT [--seeds 0 1 2] [--learning_rates 1e-6
    2e-6 5e-6] [--workers 2]

Each method trains from SmolLM2-135M-Instruct for the same number of steps, on the same pairs for each seed:
480 of a pool of 800 that the seed draws. Its learning rate is tuned on one grid for all: a shift can be made
as small as one likes by learning nothing, so every method gets the rate at which it learns the preference
best, by its own accuracy on a second set of pairs and a seed that no other run has (ties: the smaller rate).
`--learning_rates 2e-6` gives all the same one. Then `preftune diagnose run` measures the runs of each seed on
a third set of pairs. A prompt is in one set only.

Writes OUTPUT/seed-N/diagnosis.html for each seed and OUTPUT/verdict.json, and prints the verdict. Resumable:
finished runs are read, a run that was cut off is done again, further seeds may be added. A worker is a
process of one thread.
"""

import argparse
import gzip
import itertools
import json
import multiprocessing
import shutil
import statistics
import time
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

import torch

from preftune.cli.main import main as preftune
from preftune.data.options import DataOptions
from preftune.model.load import quiet_transformers
from preftune.objectives import OBJECTIVES
from preftune.stats import Interval, json_numbers, mean_interval
from preftune.train.loop import train
from preftune.train.options import OptimOptions, TrainConfig

METHODS = ("bnf", "dpo", "ipo", "simpo")
TUNING_SEED = 100
CLAIMS = {
    "abs_mean_log_ratio": "smallest log-likelihood shift (size, nats per token)",
    "gini": "lowest Gini coefficient of logit shifts",
    "gini_centred": "lowest Gini coefficient of centred logit shifts",
}


def check_same(options: argparse.Namespace) -> None:
    """What was measured under other settings must not be taken for this."""
    settings = {
        name: value for name, value in vars(options).items() if name not in ("output", "seeds", "workers")
    }
    file = Path(options.output) / "options.json"
    if file.exists() and json.loads(file.read_text()) != settings:
        raise SystemExit(f"{options.output} was made with other settings, see {file}; choose another OUTPUT")
    file.write_text(json.dumps(settings, indent=2) + "\n")


def split(options: argparse.Namespace) -> None:
    """train.jsonl, tuning.jsonl and held_out.jsonl in OUTPUT, each with prompts of its own, in the order of
    the file.
    """
    sizes = {"train": options.train_pairs, "tuning": options.tuning_pairs, "held_out": options.held_out_pairs}
    opened = gzip.open if options.data.endswith(".gz") else open
    with opened(options.data, "rt", encoding="utf-8") as file:
        rows = list(itertools.islice(file, 4 * sum(sizes.values())))
    by_prompt: dict[str, list[str]] = {}
    for row in rows:
        dialogue = json.loads(row)["chosen"]
        by_prompt.setdefault(dialogue[: dialogue.rfind("\n\nAssistant:")], []).append(row)
    firsts = iter([same[0] for same in by_prompt.values()])
    for name, size in sizes.items():
        found = list(itertools.islice(firsts, size))
        if len(found) < size:
            raise SystemExit(
                f"{options.data} has too few prompts: {len(found)} left for {name}, which takes {size}"
            )
        (Path(options.output) / f"{name}.jsonl").write_text("".join(found), encoding="utf-8")


def run_once(options: argparse.Namespace, task: tuple[str, float, int]) -> Path:
    """A finished run folder."""
    method, rate, seed = task
    folder = Path(options.output) / "runs" / f"{method}-{rate:g}-{seed}"
    if (folder / "final").exists():
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    train(
        TrainConfig(
            data=str(Path(options.output) / "train.jsonl"),
            eval_data=str(Path(options.output) / "tuning.jsonl"),
            output=str(folder),
            model=options.model,
            objective=OBJECTIVES[method](),
            seed=seed,
            batch_size=8,
            epochs=1e6,
            max_steps=options.steps,
            eval_every=options.steps,
            precision=options.precision,
            rows=DataOptions(max_length=options.max_length),
            optim=OptimOptions(learning_rate=rate),
        ),
        quiet=True,
    )
    if not (folder / "final").exists():
        raise SystemExit(f"{folder} was interrupted; run this again")
    return folder


def accuracy(folder: Path) -> float:
    """Of the last evaluation, as the method itself scores."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["phase"] == "eval"][-1]["eval_rewards/accuracies"]


def diagnose(options: argparse.Namespace, seed: int, folders: Iterable[Path]) -> dict:
    """The numbers of one seed's runs; on the held-out pairs in fp32, whatever the training's precision."""
    target = Path(options.output) / f"seed-{seed}"
    if not (target / "diagnosis.json").exists():
        status = preftune(
            [
                "diagnose",
                "run",
                *map(str, folders),
                "--data",
                str(Path(options.output) / "held_out.jsonl"),
                "--output",
                str(target),
                "--samples",
                str(options.samples),
                "--max_length",
                str(options.max_length),
            ]
        )
        if status:
            raise SystemExit(f"the diagnosis of seed {seed} failed")
    return json.loads((target / "diagnosis.json").read_text(encoding="utf-8"))


def both_sides(run: dict, quantity: str) -> float:
    """Chosen and rejected completions count the same."""
    return statistics.mean(
        run["sides"][side]["intervals"][quantity]["mean"] for side in ("chosen", "rejected")
    )


def verdict(differences: Iterable[Interval]) -> str:
    """Of a claim that the first method is least: differences are the others minus it, over seeds."""
    found = list(differences)
    if all(one.num > 1 and one.low > 0 for one in found):
        return "yes"
    return "no" if any(one.num > 1 and one.high < 0 for one in found) else "not shown"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("data")
    parser.add_argument("output")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--learning_rates", type=float, nargs="+", default=[1e-6, 2e-6, 5e-6])
    parser.add_argument(
        "--methods", nargs="+", default=list(METHODS), help="the first is the one that the verdict is about"
    )
    parser.add_argument("--steps", type=int, default=60, help="of 8 pairs")
    parser.add_argument(
        "--train_pairs", type=int, default=800, help="of which a run sees as many as its steps take"
    )
    parser.add_argument("--tuning_pairs", type=int, default=96)
    parser.add_argument("--held_out_pairs", type=int, default=96)
    parser.add_argument(
        "--samples", type=int, default=1, help="drawn of each held-out prompt from each model"
    )
    parser.add_argument("--max_length", type=int, default=512)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--precision", default="bf16")
    options = parser.parse_args()
    started = time.perf_counter()
    Path(options.output).mkdir(parents=True, exist_ok=True)
    check_same(options)
    split(options)
    with ProcessPoolExecutor(
        options.workers, multiprocessing.get_context("spawn"), initializer=_one_thread
    ) as pool:
        rates = sorted(options.learning_rates)
        grid = [(method, rate, TUNING_SEED) for method in options.methods for rate in rates if len(rates) > 1]
        tuned = dict(zip(grid, map(accuracy, pool.map(partial(run_once, options), grid)), strict=True))
        best = {
            m: max(rates, key=lambda rate, m=m: tuned.get((m, rate, TUNING_SEED), 0.0))
            for m in options.methods
        }
        tasks = [(method, best[method], seed) for seed in options.seeds for method in options.methods]
        folders = dict(zip(tasks, pool.map(partial(run_once, options), tasks), strict=True))
    quiet_transformers()
    found = {
        seed: diagnose(options, seed, [folders[task] for task in tasks if task[2] == seed])
        for seed in options.seeds
    }
    report(options, best, {f"{m} {rate:g}": value for (m, rate, _), value in tuned.items()}, found)
    print(f"{time.perf_counter() - started:.0f} s in all, {options.workers} at once")


def _one_thread() -> None:
    torch.set_num_threads(1)
    quiet_transformers()


def report(
    options: argparse.Namespace, best: dict[str, float], tuned: dict[str, float], found: dict[int, dict]
) -> None:
    """The means over seeds, the verdicts, and both in OUTPUT/verdict.json."""
    runs = {
        method: [one["runs"][place] for one in found.values()] for place, method in enumerate(options.methods)
    }
    first, *others = options.methods
    print(f"{'method':8} {'rate':>7} {'accuracy':>8} {'margin':>8}  " + "  ".join(CLAIMS))
    for method, ones in runs.items():
        shown = [statistics.mean(both_sides(run, quantity) for run in ones) for quantity in CLAIMS]
        right, margin = (
            statistics.mean(run[name]["mean"] for run in ones) for name in ("accuracy", "margin")
        )
        print(
            f"{method:8} {best[method]:7.0e} {right:8.1%} {margin:8.3f}  "
            + "  ".join(f"{value:{len(name)}.4f}" for name, value in zip(CLAIMS, shown, strict=True))
        )
    claims = {}
    for quantity, words in CLAIMS.items():
        differences = {
            other: mean_interval(
                [
                    both_sides(theirs, quantity) - both_sides(mine, quantity)
                    for mine, theirs in zip(runs[first], runs[other], strict=True)
                ]
            )
            for other in others
        }
        told = verdict(differences.values())
        spread = "; ".join(
            f"{o} {d.mean:+.4f} ({d.low:+.4f} to {d.high:+.4f})" for o, d in differences.items()
        )
        print(
            f"{first} has the {words}: {told}. Others minus {first}, 95% over {len(options.seeds)} seeds: {spread}"
        )
        claims[quantity] = {"claim": words, "verdict": told, "others_minus_first": json_numbers(differences)}
    values = {m: {q: [both_sides(run, q) for run in ones] for q in CLAIMS} for m, ones in runs.items()}
    content = {
        "options": vars(options),
        "learning_rates": best,
        "tuning_accuracy": tuned,
        "values": values,
        "claims": claims,
    }
    (Path(options.output) / "verdict.json").write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
