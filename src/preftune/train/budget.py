"""How far a run goes: steps, completions drawn, minutes by its own clock. It ends at the last step that fits."""

from dataclasses import dataclass

from preftune.train.checkpoint import Counters

STEPS_UNTIMED = 100
"""Steps that a run limited by the clock is taken to have while none of them has been timed: for its first
learning rate.
"""


def resolved_steps(steps_per_epoch: int, epochs: float, max_steps: int | None, multiple: int = 1) -> int:
    """`max_steps` where it is given, over as many epochs as it takes; else the steps of the epochs, one at least
    and a whole `multiple`.
    """
    if max_steps is not None:
        return max_steps
    return max(1, round(epochs * steps_per_epoch / multiple)) * multiple


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Limits of a run; None where there is none."""

    steps: int
    samples: int | None = None
    minutes: float | None = None

    def planned(self, counters: Counters) -> int:
        """Steps of the run: all, or as many as fit into the minutes at the mean time of those done so far."""
        if self.minutes is None:
            return self.steps
        if not counters.step:
            return min(self.steps, STEPS_UNTIMED)
        return min(self.steps, int(60 * self.minutes * counters.step / counters.seconds))

    def has_room(self, counters: Counters, draws: int) -> bool:
        """Whether one more step, which draws `samples` completions, fits into the budget."""
        if self.samples is not None and counters.samples_drawn + draws > self.samples:
            return False
        return counters.step < self.planned(counters)

    def line(self, steps_per_epoch: int) -> str:
        """For a person, before the first step."""
        limits = [] if self.samples is None else [f"{self.samples} completions"]
        limits += [] if self.minutes is None else [f"{self.minutes:g} minutes"]
        first = f", or {' or '.join(limits)} if that comes first" if limits else ""
        steps = f"{self.steps} step{'' if self.steps == 1 else 's'}"
        return f"{steps}: {self.steps / steps_per_epoch:.4g} epochs of {steps_per_epoch}{first}"
