"""Speed of a step of DPO in this work tree against another one, such as an older commit, in one alternating run.

    git worktree add /tmp/base COMMIT
    python benchmarks/pair_training_against.py /tmp/base [--turns 5] [--steps 4] [--pairs 8] [--variants NAME ...]

Both trees run the child processes of their own `benchmarks/pair_training.py` on the same random rows (its
`--mix mixed`), with the Python of this command, in turns; the order is turned round each time. The ratio of a
turn is the median rate here over the median rate there. The losses of all steps must agree to 1e-4. The exit
status is 1 if the median ratio of a variant is below `--least`.
"""

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from preftune.model.load import resolve_model

HERE = Path(__file__).resolve().parent.parent
MIXES = (((400, 700), (10, 60)), ((10, 60), (200, 400)))  # those of pair_training.py: prompts, answers
AGREEMENT = 1e-4


def random_rows(count: int, vocabulary: int) -> list[tuple[list[int], ...]]:
    random = np.random.default_rng(0)

    def ids(span: tuple[int, int]) -> list[int]:
        return random.integers(5, vocabulary, int(random.integers(*span))).tolist()

    spans = [MIXES[number % 2] for number in range(count)]
    return [(ids(prompt), ids(answer), ids(answer)) for prompt, answer in spans]


def run_in(tree: Path, variant: str, rows: Path, settings: argparse.Namespace) -> dict[str, Any]:
    words = ["--child", variant, "--rows", str(rows), "--model", settings.model]
    words += ["--pairs", str(settings.pairs), "--steps", str(settings.steps)]
    words += ["--micro_batch_tokens", str(settings.micro_batch_tokens)]
    command = [sys.executable, str(tree / "benchmarks" / "pair_training.py"), *words]
    environment = os.environ | {"PYTHONPATH": f"{tree}/src{os.pathsep}{tree}"}
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=tree)
    if done.returncode:
        sys.exit(f"{variant} failed in {tree}")
    return json.loads(done.stdout.splitlines()[-1])


def compare(variant: str, rows: Path, settings: argparse.Namespace) -> bool:
    """Print the ratio of a variant; whether it is high enough."""
    trees = {"here": HERE, "there": settings.tree.resolve()}
    rates: dict[str, list[float]] = {name: [] for name in trees}
    used: dict[str, list[float]] = {name: [] for name in trees}
    losses, peaks = [], dict[str, float]()
    for turn in range(settings.turns):
        for name in sorted(trees, reverse=turn % 2 == 1):
            found = run_in(trees[name], variant, rows, settings)
            clock, processor = np.median(found["seconds"], axis=0)
            rates[name].append(settings.pairs / clock)
            used[name].append(settings.pairs / processor)
            peaks[name] = max(peaks.get(name, 0.0), found["peak_mib"])
            losses.append(found["losses"])
    apart = float(np.ptp(np.array(losses), axis=0).max())
    if not apart <= AGREEMENT:
        sys.exit(f"{variant}: the losses of the two trees differ by {apart:.2g}")
    ratios = np.divide(rates["here"], rates["there"])
    by_processor = np.divide(used["here"], used["there"])
    print(
        f"{variant}: {np.median(ratios):.3f} times the pairs/s by the clock (turns {ratios.min():.3f} to "
        f"{ratios.max():.3f}), {np.median(by_processor):.3f} by processor time ({by_processor.min():.3f} to "
        f"{by_processor.max():.3f}); peak {peaks['here']:.0f} against {peaks['there']:.0f} MiB; losses differ by "
        f"at most {apart:.1e}",
        flush=True,
    )
    return bool(np.median(ratios) >= settings.least)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("tree", type=Path, help="the other work tree")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--pairs", type=int, default=8)
    parser.add_argument("--steps", type=int, default=4, help="that are timed, after one that warms up")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--micro_batch_tokens", type=int, default=384)
    parser.add_argument("--variants", nargs="+", default=["preftune-cached", "preftune-live"])
    parser.add_argument("--least", type=float, default=0.97)
    settings = parser.parse_args()
    settings.model = resolve_model(settings.model)
    vocabulary = json.loads((Path(settings.model) / "config.json").read_text())["vocab_size"]
    with TemporaryDirectory() as scratch:
        rows = Path(scratch) / "rows.json"
        rows.write_text(
            json.dumps(random_rows(settings.pairs * (settings.steps + 1), vocabulary)), encoding="utf-8"
        )
        good = [compare(variant, rows, settings) for variant in settings.variants]
    return int(not all(good))


if __name__ == "__main__":
    sys.exit(main())
