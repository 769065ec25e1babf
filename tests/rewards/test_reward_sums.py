"""Weighted sums part by part, numbers of other libraries, what a reward may raise, and processes that are killed."""

import asyncio
import time

import numpy as np
import pytest
import torch

from preftune.errors import ConfigError, TrainingError
from preftune.rewards import Verdicts, ask, call_reward, resolve_reward
from preftune.rewards.call import Part, WeightedRewards

TEXTS = ["one", "two two", "three three three"]


def judged(function, timeout_s=5.0, **columns) -> Verdicts:
    return ask(function, "mine", ["p"] * len(TEXTS), list(TEXTS), columns, timeout_s)


def summed(*parts) -> WeightedRewards:
    return WeightedRewards(
        parts=tuple(
            Part(weight=weight, name=f"f{k}", function=function, label=f"f{k}")
            for k, (weight, function) in enumerate(parts)
        )
    )


def test_a_part_without_an_opinion_adds_nothing():
    found = judged(summed((2.0, lambda **_: [1.0, None, None]), (0.5, lambda **_: [4.0, 6.0, None])))
    assert found.rewards == [4.0, 3.0, None]
    assert dict(found.parts) == {"f0": [1.0, None, None], "f1": [4.0, 6.0, None]}
    told = found.report()
    assert (told.num_none, told.parts["f0"].num_none, told.parts["f1"].mean) == (1, 2, 5.0)


def test_terms_of_one_name_are_told_apart(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def score(prompts, completions, **columns):\n    return [1.0] * len(prompts)\n"
    )
    reward = resolve_reward(f"brief + 2*{tmp_path}/mine.py:score + 3*brief")
    assert [part.label for part in reward.parts] == ["brief", "score", "brief-2"]


@pytest.mark.parametrize(
    "outcome",
    [
        [np.float32(1), np.int64(2), np.array(3.0)],
        [torch.tensor(1.0), torch.tensor(2), torch.tensor(True) * 3],
        np.array([1.0, 2.0, 3.0]),
        torch.tensor([1.0, 2.0, 3.0]),
        (1, 2.0, 3),
    ],
    ids=["numpy numbers", "tensors", "an array", "a tensor", "a tuple"],
)
def test_numbers_of_numpy_and_torch(outcome):
    assert judged(lambda **_: outcome).rewards == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    "outcome", [np.ones((3, 1)), [np.ones(2)] * 3, [torch.tensor(float("nan"))] * 3, ["1"] * 3]
)
def test_what_is_no_number_is_still_refused(outcome):
    with pytest.raises(TrainingError, match="Reward 'mine'"):
        judged(lambda **_: outcome)


@pytest.mark.parametrize(
    "error", [GeneratorExit, BaseException, SystemExit, asyncio.CancelledError, ValueError]
)
@pytest.mark.parametrize("timeout_s", [5.0, None])
def test_whatever_is_raised_is_one_sentence_with_the_completion(error, timeout_s):
    def score(prompts, completions, **columns):
        if "two two" in completions:
            raise error("bad")
        return [0.0] * len(completions)

    with pytest.raises(TrainingError, match=r"Reward 'mine' raised .*, completion 1, 'two two'"):
        judged(score, timeout_s)


def test_an_interruption_of_the_user_is_none_of_the_reward():
    def score(**_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        judged(score, None)


def test_asynchronous_terms_run_at_the_same_time():
    async def slow(prompts, completions, **columns):
        await asyncio.sleep(0.5)
        return [1.0] * len(completions)

    started = time.monotonic()
    assert judged(summed(*[(1.0, slow)] * 4, (1.0, lambda **_: [1.0] * 3))).rewards == [5.0] * 3
    assert time.monotonic() - started < 1.5


MINE = """
import time

calls = 0

def score(prompts, completions, **columns):
    global calls
    calls += 1
    if "hang" in completions:
        while True:  # never gives the interpreter back for long
            time.sleep(0.01)
    if "die" in completions:
        import os
        os._exit(7)
    if "raise" in completions:
        raise GeneratorExit("no")
    return [float(calls)] * len(completions)

async def later(prompts, completions, **columns):
    return [2.0] * len(completions)
"""


@pytest.fixture(scope="module")
def module(tmp_path_factory):
    path = tmp_path_factory.mktemp("own") / "mine.py"
    path.write_text(MINE)
    return path


def test_a_function_in_a_process_of_its_own(module):
    function = resolve_reward(f"{module}:score", own_process=True)

    def called(*texts, timeout_s=60.0):
        return call_reward(function, "mine", ["p"] * len(texts), list(texts), {}, timeout_s)

    assert [called("a"), called("a", "b")] == [[1.0], [2.0, 2.0]]  # it keeps what it remembers
    first = function._process
    with pytest.raises(TrainingError, match=r"gave no answer on 1 completions; got nothing within 0\.5 s"):
        called("hang", timeout_s=0.5)
    assert first.poll() is not None  # killed, and not left behind
    assert called("a") == [1.0]  # a new one
    with pytest.raises(TrainingError, match=r"raised .*no.*, completion 0, 'raise'"):
        called("raise")
    with pytest.raises(TrainingError, match="the end of its process, with exit code 7"):
        called("die")
    assert called("a") == [1.0]
    assert call_reward(resolve_reward(f"{module}:later", own_process=True), "mine", ["p"], ["a"], {}) == [2.0]


def test_what_cannot_run_in_a_process_of_its_own(module):
    with pytest.raises(ConfigError, match=r"cannot be used in a separate process; got .*no attribute"):
        resolve_reward(f"{module}:scor", own_process=True)
    with pytest.raises(ConfigError, match="Only a reward function of yours can run in a separate process"):
        resolve_reward("brief", own_process=True)
