"""What a reward may do wrong beside what test_rewards.py has: it hangs, it is async, it exits, a package is
missing.
"""

import asyncio
import importlib.util
import threading
import time

import pytest

from preftune.errors import ConfigError, TrainingError
from preftune.rewards import call_reward, resolve_reward

TEXTS = ["first", "second", "third"]


def called(function, timeout_s=5.0, completions=TEXTS, **columns):
    return call_reward(function, "mine", ["p"] * len(completions), list(completions), columns, timeout_s)


def test_a_function_that_hangs_stops_the_run_and_not_the_process():
    started = time.monotonic()
    with pytest.raises(TrainingError) as caught:
        called(lambda **_: threading.Event().wait(), timeout_s=0.1)
    assert time.monotonic() - started < 2
    assert str(caught.value) == (
        "Reward 'mine' gave no answer on 3 completions; got nothing within 0.1 s. Mend the function, or raise timeout_s."
    )


def test_an_async_function():
    async def score(prompts, completions, **columns):
        return await asyncio.gather(*(length(text) for text in completions))

    async def length(text):
        await asyncio.sleep(0)
        return float(len(text))

    for timeout_s in (5.0, None):
        assert called(score, timeout_s) == [5.0, 6.0, 5.0]
        assert called(lambda **columns: score(**columns), timeout_s) == [5.0, 6.0, 5.0]  # gives an awaitable


def test_an_async_function_where_a_loop_runs_already():
    async def score(prompts, completions, **columns):
        return [1.0] * len(completions)

    async def notebook():
        return called(score)

    assert asyncio.run(notebook()) == [1.0, 1.0, 1.0]


def test_an_async_function_that_hangs_is_canceled():
    canceled = threading.Event()

    async def score(prompts, completions, **columns):
        try:
            await asyncio.sleep(60)
        finally:
            canceled.set()

    with pytest.raises(TrainingError, match=r"gave no answer on 3 completions; got nothing within 0\.1 s"):
        called(score, timeout_s=0.1)
    assert canceled.wait(5)


def test_a_timeout_of_the_functions_own_is_told_as_its_own():
    async def score(prompts, completions, **columns):
        async with asyncio.timeout(0.01):
            await asyncio.sleep(60)

    with pytest.raises(TrainingError, match=r"'mine' raised TimeoutError\(\), on 3 completions"):
        called(score)


def test_an_async_exception_names_the_completion():
    async def score(prompts, completions, **columns):
        return [1 / len(text) for text in completions]

    with pytest.raises(TrainingError, match=r"raised ZeroDivisionError.*, completion 1, ''"):
        called(score, completions=["a", "", "b"])


def test_a_function_that_exits_is_an_error():
    with pytest.raises(TrainingError, match=r"'mine' raised SystemExit\(3\), completion 0, 'first'"):
        called(lambda **_: exit(3))


def test_without_a_limit_the_function_runs_in_the_callers_thread():
    def score(completions, **columns):
        return [float(threading.current_thread() is threading.main_thread())] * len(completions)

    assert called(score, timeout_s=None) == [1.0, 1.0, 1.0]
    assert called(score, timeout_s=5.0) == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "spec, package",
    [("maths", "math-verify"), ("instructions", "if-verifiable"), ("sentiment", "vaderSentiment")],
)
def test_a_package_that_is_missing(spec, package, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as caught:
        resolve_reward(spec)
    assert str(caught.value) == (
        f"Reward {spec!r} needs the package {package}; got it is not installed. "
        "Install it with: pip install 'preftune[rewards]'."
    )
