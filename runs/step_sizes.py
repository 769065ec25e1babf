"""Does any number of rows or any batch size stop a run after its first step?

Every objective on 1 to 20 rows with batch sizes 1, 2, 3, 4 and 8: one pass of the training step and of the data
source of `preftune train` over a tabular policy. A combination finishes, or the source refuses it before the first
step. Anything else is printed and makes the exit status 1.

    PYTHONPATH=src:. python runs/step_sizes.py [--every 7]

`--every N` takes each Nth combination only, as a sample.
"""

import argparse
import itertools
import math
import sys
from collections import Counter

from tests.train.test_step_sizes import BATCH_SIZES, ROWS, groups, run

from preftune.errors import PreftuneError
from preftune.objectives import OBJECTIVES
from preftune.objectives.base import smallest_step
from preftune.train.checks import check_batch_size
from preftune.train.setup import offline_source


def outcome(name: str, rows: int, batch_size: int) -> str:
    """What becomes of a pass over the rows: "finished", "refused", or how it stopped."""
    objective = OBJECTIVES[name]()
    try:
        check_batch_size(objective, batch_size)
        source = offline_source(objective, groups(objective.signal, rows), batch_size, seed=0)
    except PreftuneError:
        return "refused"
    try:
        results = run(objective, [source.take(step) for step in range(1, source.steps_per_epoch + 1)])
    except Exception as error:  # whatever it is, the run has stopped after its start
        return f"stopped: {type(error).__name__} {error}"
    finite = all(math.isfinite(one.loss) and math.isfinite(one.grad_norm) for one in results)
    return "finished" if finite else "stopped: a loss or gradient that is not finite"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, help="take each Nth combination only")
    every = parser.parse_args().every
    counts: Counter[str] = Counter()
    refused: Counter[str] = Counter()
    for name, rows, batch_size in list(itertools.product(OBJECTIVES, ROWS, BATCH_SIZES))[::every]:
        found = outcome(name, rows, batch_size)
        counts[found.partition(":")[0]] += 1
        if found == "refused":
            refused[f"{name} (at least {smallest_step(OBJECTIVES[name]())} prompts a step)"] += 1
        elif found != "finished":
            print(f"{name}, {rows} rows, batch size {batch_size}: {found}")
    print(f"{len(OBJECTIVES)} objectives, {sum(counts.values())} combinations: {dict(counts)}")
    for name, count in refused.items():
        print(f"refused before the first step: {name}: {count}")
    return 1 if counts["stopped"] else 0


if __name__ == "__main__":
    sys.exit(main())
