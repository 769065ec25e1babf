"""The authors' bandit, against the curve that their own code gave."""

import numpy as np

from preftune.lab.environment import World
from preftune.lab.loop import Loop, run
from preftune.lab.paper_methods import CAST
from preftune.lab.problem import load_problem

OFFICIAL = [0.042, 0.178, 0.242, 0.380, 0.574, 0.655, 0.654, 0.683, 0.688, 0.721, 0.724]
"""Reward after 0, 20, ..., 200 steps of one seed, estimated by samples; onpolicy_paper.md, section 2.6."""
SPREAD = [0.02, 0.02, 0.05, 0.11, 0.08, 0.05, 0.042, 0.042, 0.042, 0.042, 0.042]
"""Standard deviation between seeds of ours (twenty of them), and of its sampling at the start."""


def test_offline_ipo_on_r1_follows_the_official_curve():
    """Two seeds, exact: their mean within three deviations of a difference between it and one seed."""
    track = run(World(load_problem("r1").with_train(100), (0, 1)), CAST["ipo"], Loop(steps=200), 0.003)
    assert track.steps == list(range(0, 201, 20))
    gap = track.measures["return"].mean(1) - OFFICIAL
    assert (np.abs(gap) < 3 * np.array(SPREAD) * (1 + 1 / 2) ** 0.5).all(), gap.round(3)
    assert track.counters["samples_drawn"][-1] == 1000 and track.counters["grad_steps"][-1] == 200
