"""How far a run may go: steps, completions drawn, minutes by its own clock. It ends at the last step that
fits.
"""

from preftune.train.checkpoint import Counters
from preftune.train.options import TrainConfig

STEPS_UNTIMED = 100
"""Steps that a run limited by the clock is taken to have while none of them has been timed: for its first
learning rate.
"""


def planned_steps(config: TrainConfig, counters: Counters, num_steps: int) -> int:
    """Steps of the run: `num_steps`, or as many as fit into `max_minutes` at the mean time of those done so
    far.
    """
    if config.max_minutes is None:
        return num_steps
    if not counters.step:
        return min(num_steps, STEPS_UNTIMED)
    return min(num_steps, int(60 * config.max_minutes * counters.step / counters.seconds))


def has_room(config: TrainConfig, counters: Counters, num_steps: int, draws: int) -> bool:
    """Whether one more step fits, for which so many completions must be drawn."""
    if config.max_samples is not None and counters.samples_drawn + draws > config.max_samples:
        return False
    return counters.step < planned_steps(config, counters, num_steps)
