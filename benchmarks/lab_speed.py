"""Time of offline ipo on R1 (100 prompts, 200 steps, exact measures every 20): one seed, and twenty at once.

Processor time on one thread, which a busy machine changes little. The authors' code took 341 s for one
seed of the same work on such a machine (docs/lab.md).
"""

import time

import torch

from preftune.lab.environment import World
from preftune.lab.loop import Loop, run
from preftune.lab.paper_methods import CAST
from preftune.lab.problem import load_problem

RECORD = 341.0  # seconds

torch.set_num_threads(1)
for num_seeds in (1, 20):
    start = time.process_time()
    track = run(
        World(load_problem("r1").with_train(100), range(1000, 1000 + num_seeds)),
        CAST["ipo"],
        Loop(steps=200),
        0.003,
    )
    each = (time.process_time() - start) / num_seeds
    curve = " ".join(f"{value:.3f}" for value in track.measures["return"].mean(1))
    print(f"{num_seeds} seeds: {each:.2f} s each, {RECORD / each:.0f} times faster; reward {curve}")
