"""The learning rate of each step, the order of the data, and what is held out."""

from collections import Counter

import numpy as np
import pytest

from preftune.errors import ConfigError
from preftune.train.optim import OptimOptions, learning_rate, schedule_line
from preftune.train.sources import OfflineSource, hold_out
from preftune.types import Group


def rates(num_steps, **options):
    return [learning_rate(step, num_steps, OptimOptions(**options)) for step in range(1, num_steps + 1)]


def test_schedules_by_hand():
    # Two warm-up steps at 1/3 and 2/3 of the peak, then from the peak down: 1, 3/4, 2/4, 1/4 of it.
    assert rates(6, learning_rate=3.0, schedule="linear", warmup_ratio=1 / 3) == pytest.approx(
        [1.0, 2.0, 3.0, 2.25, 1.5, 0.75]
    )
    # cos(0) = 1, cos(pi/4) = .70711, cos(pi/2) = 0, cos(3 pi/4) = -.70711; half of one more than that.
    assert rates(4, learning_rate=1.0, schedule="cosine", warmup_ratio=0.0) == pytest.approx(
        [1.0, 0.8535534, 0.5, 0.1464466]
    )
    assert rates(4, learning_rate=2.0, schedule="constant", warmup_ratio=0.25) == pytest.approx(
        [1.0, 2.0, 2.0, 2.0]
    )
    assert rates(3, learning_rate=1.0, schedule="linear", warmup_ratio=1.0) == pytest.approx(
        [0.25, 0.5, 0.75]
    )
    assert rates(1, learning_rate=1.0, warmup_ratio=0.1) == [1.0]
    assert all(rate > 0 for rate in rates(7, learning_rate=1e-6, schedule="cosine"))


def test_a_warm_up_of_steps():
    assert rates(6, learning_rate=3.0, warmup_steps=2) == rates(6, learning_rate=3.0, warmup_ratio=1 / 3)
    assert rates(3, learning_rate=4.0, schedule="constant", warmup_steps=0) == [4.0] * 3
    assert rates(2, learning_rate=4.0, warmup_steps=3) == [1.0, 2.0]  # of four: the run ends before
    with pytest.raises(ConfigError, match=r"optim\.warmup_ratio has no effect beside optim\.warmup_steps"):
        OptimOptions(warmup_ratio=0.2, warmup_steps=5)
    assert schedule_line(10, OptimOptions(learning_rate=1e-6)).endswith(
        "learning rate 1e-06, linear, 1 step of warm-up"
    )
    assert "no step has the full rate" in schedule_line(2, OptimOptions(learning_rate=1.0, warmup_steps=3))


def numbered_groups(count: int, prompts: int) -> list[Group]:
    """Groups 0, 1, 2, ... of which several have one prompt; the completion is the number."""
    return [
        Group(
            prompt=np.array([5, number % prompts], dtype=np.int32),
            completions=(np.array([number], dtype=np.int32),),
        )
        for number in range(count)
    ]


def numbers(groups) -> list[int]:
    return [int(group.completions[0][0]) for group in groups]


@pytest.mark.parametrize(("count", "batch_size"), [(10, 3), (9, 3), (2, 5), (1, 1)])
def test_each_group_comes_once_an_epoch(count, batch_size):
    source = OfflineSource(groups=numbered_groups(count, count), batch_size=batch_size, seed=3)
    per_epoch = source.steps_per_epoch
    epochs = [
        [numbers(source.take(epoch * per_epoch + step)) for step in range(1, per_epoch + 1)]
        for epoch in range(3)
    ]
    for steps in epochs:
        assert sorted(n for step in steps for n in step) == list(range(count))
        assert [len(step) for step in steps[:-1]] == [batch_size] * (per_epoch - 1)
    if count > 5:
        assert epochs[0] != epochs[1] != epochs[2]
        other = OfflineSource(groups=source.groups, batch_size=batch_size, seed=4)
        assert [numbers(other.take(step)) for step in range(1, per_epoch + 1)] != epochs[0]
    assert numbers(source.take(2)) == numbers(source.take(2))  # no state


@pytest.mark.parametrize("fraction", [0.0, 0.1, 0.3, 0.5, 0.99])
def test_no_prompt_is_on_both_sides(fraction):
    groups = numbered_groups(200, 40)
    for seed in range(5):
        train, held = hold_out(groups, fraction, seed)
        assert not {group.prompt.tobytes() for group in train} & {group.prompt.tobytes() for group in held}
        assert Counter(numbers(train) + numbers(held)) == Counter(range(200))
        assert len({group.prompt.tobytes() for group in held}) == min(round(40 * fraction), 39)
        assert (numbers(train), numbers(held)) == (
            sorted(numbers(train)),
            sorted(numbers(held)),
        )  # the order stays
    if 0 < fraction < 0.99:
        assert len({tuple(numbers(hold_out(groups, fraction, seed)[1])) for seed in range(5)}) > 1


def test_what_is_held_out_does_not_change_when_rows_move():
    groups = numbered_groups(60, 20)
    _, held = hold_out(groups, 0.3, 0)
    _, shuffled = hold_out(groups[::-1], 0.3, 0)
    assert sorted(numbers(held)) == sorted(numbers(shuffled))


def test_a_single_prompt_is_trained_on():
    train, held = hold_out(numbered_groups(4, 1), 0.9, 0)
    assert (len(train), len(held)) == (4, 0)
