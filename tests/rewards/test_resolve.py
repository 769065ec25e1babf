"""Reward functions: each rule by hand, each refusal by its message, and what a user's function may return."""

import math
import subprocess
import sys
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.errors import ConfigError, TrainingError
from preftune.rewards import REWARDS, call_reward, resolve_reward
from preftune.rewards.text_rules import is_echo, is_repetitive, is_sentence
from tests.refusals import refusal

PROMPT = "How do bees make honey in the hive?"
KNOWN = ", ".join(REWARDS)
GOOD = "They collect nectar from flowers and dry it until it turns thick."


def one_brief(
    completion: str = GOOD, prompt: str = PROMPT, ended: bool = True, num_tokens: int = 16, budget: int = 64
):
    (reward,) = REWARDS["brief"]()(
        [prompt], [completion], ended=[ended], num_tokens=[num_tokens], budget=budget
    )
    return reward


def called(function, completions=("first", "second", "third"), **columns):
    return call_reward(
        function, "mine", [f"prompt {text}" for text in completions], list(completions), columns
    )


def names(number: int, of: int) -> str:
    """A text of `number` words of which `of` are distinct, with no run of 4 words three times."""
    return " ".join(f"w{index % of * (index // of + 1) % of}" for index in range(number)) + "."


# The built-ins


def test_brief_of_complete_answers():
    # 1 - 0.5 * 16 / 64 = 0.875;  1 - 0.5 * 64 / 64 = 0.5;  1 - 0.5 * 1 / 64 = 0.9921875
    assert one_brief(num_tokens=16) == 0.875
    assert one_brief(num_tokens=64) == 0.5
    assert one_brief(num_tokens=1) == 0.9921875


def test_brief_is_zero_when_cut_off():
    assert one_brief(ended=False) == 0
    assert one_brief(num_tokens=65, budget=64) == 0


@pytest.mark.parametrize("completion", ["", "   \n", "...", "Yes, of course.", GOOD[:-1], GOOD[:-1] + ","])
def test_brief_is_zero_without_a_sentence(completion):
    assert one_brief(completion) == 0


def test_brief_is_zero_when_repetitive_or_an_echo():
    assert one_brief("It is so good. It is so good. It is so good.") == 0
    assert one_brief("Bees make honey in the hive.") == 0


def test_brief_scores_each_completion_by_its_own_row():
    rewards = REWARDS["brief"]()(
        [PROMPT, PROMPT, PROMPT],
        [GOOD, GOOD, "No."],
        ended=[True, False, True],
        num_tokens=[8, 8, 2],
        budget=32,
    )
    assert rewards == [0.875, 0.0, 0.0]  # 1 - 0.5 * 8 / 32


@pytest.mark.parametrize(
    "text",
    [
        "It is a fish.",
        "Is it a fish?",
        "What a fine day!",
        "Well, it depends on…",
        'He said: "It is late."',
        "It is late (for me.)",
        "**It is a fish.**",
        "It is a fish. \n",
    ],
)
def test_a_sentence(text):
    assert is_sentence(text)


@pytest.mark.parametrize(
    "text", ["It is late.", "It is a fish", "It is a fish:", "- one - two - three.", "It is a. fish"]
)
def test_not_a_sentence(text):
    assert not is_sentence(text)


def test_repetition_of_a_run_of_four_words():
    assert not is_repetitive("Red cars go fast, red cars go fast.")  # "red cars go fast" twice
    assert is_repetitive("Red cars go fast, RED cars go fast, red cars go fast!")
    assert not is_repetitive("I like tea now. I like tea then. I like tea too.")  # a run of 3, three times


def test_repetition_by_few_distinct_words():
    assert not is_repetitive(names(20, 7))  # 7/20 = 0.35, but only 20 words
    assert is_repetitive(names(21, 8))  # 8/21 = 0.38
    assert not is_repetitive(names(25, 10))  # 10/25 = 0.4 is not below 0.4


@pytest.mark.parametrize("number, of", [(20, 7), (21, 8), (25, 10)])
def test_the_texts_above_have_as_many_words_as_they_say(number, of):
    words = names(number, of)[:-1].split()
    runs = [tuple(words[start : start + 4]) for start in range(number - 3)]
    assert len(words) == number and len(set(words)) == of and max(map(runs.count, runs)) < 3


@pytest.mark.parametrize(
    "prompt, completion, echo",
    [
        ("Why is the sky blue?", "The sky is blue.", True),  # 4 of 4 words
        ("Why is the sky blue?", "Why is the sky blue?", True),
        ("Why is the sky blue?", "The sky is very blue.", True),  # 4 of 5 words is 80%
        ("Why is the sky blue?", "Air scatters the blue.", False),  # 2 of 4
        (
            "Why is the sky blue?",
            "The sky is blue, the blue sky.",
            False,
        ),  # 7 of 7, but longer than the 5 asked
        ("Why is the sky so blue today?", "The sky is blue, it is.", True),  # 5 of 6 is 83%
        ("Why is the sky so blue today?", "The sky is grey for now.", False),  # 3 of 6
        ("Is a whale a fish or a mammal?", "A whale is a mammal.", True),  # the price of the rule
    ],
)
def test_echo_of_the_prompt(prompt, completion, echo):
    assert is_echo(prompt, completion) is echo


@pytest.mark.parametrize("budget", [0, -1, 2.5, None, True, [[64]]])
def test_brief_refuses_a_budget_that_is_no_budget(budget):
    with pytest.raises(ConfigError, match="budget of reward 'brief'"):
        one_brief(budget=budget)


def test_length_min_and_ended():
    assert REWARDS["length.min"]()(["a", "b"], ["c", "d"], num_tokens=[7, 0]) == [-7.0, 0.0]
    assert REWARDS["ended"]()(["a", "b"], ["c", "d"], ended=[True, False]) == [1.0, 0.0]


@pytest.mark.parametrize(
    "name, columns, lacking",
    [
        ("brief", {"ended": [True], "answer": ["x"]}, ["'num_tokens' (int", "'budget' (int", "'answer'"]),
        ("brief", {"num_tokens": [1], "budget": 4}, ["'ended' (bool"]),
        ("length.min", {}, ["'num_tokens' (int"]),
        ("ended", {"num_tokens": [1]}, ["'ended' (bool"]),
    ],
)
def test_a_missing_column_is_named_with_its_meaning(name, columns, lacking):
    with pytest.raises(ConfigError) as caught:
        call_reward(REWARDS[name](), name, ["prompt"], ["completion"], columns)
    assert all(part in str(caught.value) for part in [f"Reward {name!r} lacks columns", *lacking])


TEXTS = st.text(alphabet="ab .!?…\"'\n", max_size=60) | st.sampled_from(
    [GOOD, PROMPT, names(21, 8), names(25, 10)]
)


@settings(deadline=None)
@given(completion=TEXTS, ended=st.booleans(), num_tokens=st.integers(1, 99), budget=st.integers(1, 99))
def test_brief_is_zero_or_at_least_a_half_and_below_one(completion, ended, num_tokens, budget):
    reward = one_brief(completion, ended=ended, num_tokens=num_tokens, budget=budget)
    assert reward == 0 or (0.5 <= reward < 1 and ended and num_tokens <= budget)


@settings(deadline=None)
@given(completion=TEXTS, lengths=st.lists(st.integers(1, 64), min_size=2, max_size=2, unique=True))
def test_brief_never_pays_for_length(completion, lengths):
    short, long = (one_brief(completion, num_tokens=length) for length in sorted(lengths))
    assert short > long or short == long == 0


@settings(deadline=None)
@given(prompt=TEXTS.filter(lambda text: text.strip()))
def test_no_prompt_is_an_answer_to_itself(prompt):
    assert one_brief(prompt, prompt=prompt) == 0


# From a name to a function


@pytest.mark.parametrize(
    "name, reward", [("brief", 0.75), ("ended", 1.0), ("length.min", -4.0), ("length.skew", -4.0)]
)
def test_built_ins_by_name_take_any_column(name, reward):
    assert resolve_reward(name) == REWARDS[name]()
    columns = {"ended": [True], "num_tokens": [4], "budget": 8, "answer": ["x"], "spare": None}
    assert call_reward(resolve_reward(name), name, [PROMPT], [GOOD], columns) == [reward]


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes `my_reward_module.py` where it can be imported, and forgets it afterwards."""
    monkeypatch.syspath_prepend(tmp_path)

    def write(source: str):
        path = tmp_path / "my_reward_module.py"
        path.write_text(source, "utf-8")
        return path

    yield write
    sys.modules.pop("my_reward_module", None)
    sys.modules.pop("preftune_user_file_my_reward_module", None)


FUNCTION = (
    "def score(prompts, completions, **columns):\n    return [float(len(text)) for text in completions]\n"
)


def test_a_users_function_by_module_and_by_path(module):
    path = module(FUNCTION)
    for name in ("my_reward_module:score", f"{path}:score"):
        assert called(resolve_reward(name), ["a", "bcd"]) == [1.0, 3.0]


def test_a_path_may_begin_at_home(module, monkeypatch):
    path = module(FUNCTION)
    for variable in ("HOME", "USERPROFILE"):
        monkeypatch.setenv(variable, str(path.parent))
    assert called(resolve_reward("~/my_reward_module.py:score"), ["abc"]) == [3.0]


def test_a_callable_that_does_not_tell_its_signature_is_let_through():
    assert resolve_reward("builtins:dict") is dict


def test_a_file_may_define_dataclasses(module):
    source = "from __future__ import annotations\nfrom dataclasses import dataclass\n@dataclass\nclass Box:\n    side: int\n"
    assert resolve_reward(f"{module(source + FUNCTION)}:score")


@pytest.mark.parametrize(
    "name, message",
    [
        (
            "breif",
            f"Unknown reward; got 'breif'; expected one of {KNOWN}, or 'module:function'. Did you mean brief?",
        ),
        ("zzz", f"Unknown reward; got 'zzz'; expected one of {KNOWN}, or 'module:function'."),
        (":score", "The name of the reward is not complete; got ':score'; expected 'module:function'."),
        (
            "my_module:",
            "The name of the reward is not complete; got 'my_module:'; expected 'module:function'.",
        ),
        (
            "no_such_module:f",
            "Reward 'no_such_module:f' cannot be found: there is no module 'no_such_module'. "
            "Install the module, or give the path of its file: 'path/to/file.py:NAME'.",
        ),
        (
            "math.no_such:f",
            "Reward 'math.no_such:f' cannot be found: there is no module 'math.no_such'. "
            "Install the module, or give the path of its file: 'path/to/file.py:NAME'.",
        ),
        (
            "./here:f",
            "Reward './here:f' cannot be found: there is no module './here'. "
            "Install the module, or give the path of its file: 'path/to/file.py:NAME'.",
        ),
        ("no/such.py:f", "Reward 'no/such.py:f' cannot be found: there is no file 'no/such.py'."),
        ("math:sqr", "Reward 'math:sqr' cannot be found: 'math' has no attribute 'sqr'. Did you mean sqrt?"),
        ("math:qqq", "Reward 'math:qqq' cannot be found: 'math' has no attribute 'qqq'."),
        ("math:pi", "Reward 'math:pi' is not callable; got 3.141592653589793; expected a function."),
    ],
)
def test_a_name_that_cannot_be_resolved(name, message):
    assert refusal(resolve_reward, name) == message


@pytest.mark.parametrize(
    "source, named",
    [
        ("raise KeyError('x')", "KeyError('x')"),
        ("import sys\nsys.exit(3)", "SystemExit(3)"),
        ("import no_such_helper", "No module named 'no_such_helper'"),
        ("def score(:", "SyntaxError"),
    ],
)
def test_an_import_that_raises_is_named(module, source, named):
    path = module(source)
    for name in ("my_reward_module:score", f"{path}:score"):
        with pytest.raises(ConfigError, match="cannot be used: importing") as caught:
            resolve_reward(name)
        assert named in str(caught.value) and caught.value.__cause__ is not None
    assert "preftune_user_file_my_reward_module" not in sys.modules


@pytest.mark.parametrize(
    "source, message",
    [
        ("def score(prompts, completions): return []", "does not take every column; got the signature "),
        ("def score(texts, /): return []", "Add **columns to its parameters."),
    ],
)
def test_a_signature_that_would_fail_at_the_first_call(module, source, message):
    with pytest.raises(ConfigError) as caught:
        resolve_reward(f"{module(source)}:score")
    assert message in str(caught.value)


def test_a_required_column_is_a_fine_parameter(module):
    path = module(
        "def score(completions, answer, **columns):\n    return [float(a == c) for a, c in zip(answer, completions)]"
    )
    assert called(resolve_reward(f"{path}:score"), ["a", "b"], answer=["a", "x"]) == [1.0, 0.0]


# The call, checked


def test_numbers_of_all_kinds_become_floats_and_none_stays():
    outcome = [1, 0.5, None, True, np.float32(0.25), np.int64(-2), Fraction(1, 4)]
    rewards = called(lambda **_: outcome, list("abcdefg"))
    assert rewards == [1.0, 0.5, None, 1.0, 0.25, -2.0, 0.25]
    assert {type(reward) for reward in rewards} == {float, type(None)}


def test_columns_arrive_and_the_function_cannot_change_the_callers_lists():
    seen = {}

    def function(prompts, completions, answer, budget, **columns):
        seen.update(prompts=list(prompts), answer=list(answer), budget=budget, **columns)
        completions.clear()
        answer.clear()
        return (0.0, 1.0)

    completions, answer = ["c", "d"], ["e", "f"]
    rewards = call_reward(
        function, "mine", ["a", "b"], completions, {"answer": answer, "budget": 9, "spare": "x"}
    )
    assert rewards == [0.0, 1.0]
    assert seen == {"prompts": ["a", "b"], "answer": ["e", "f"], "budget": 9, "spare": "x"}
    assert completions == ["c", "d"] and answer == ["e", "f"]


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, "1.0", 10**400, 1j, np.float64("nan")])
def test_an_entry_that_is_no_finite_number_is_shown_with_its_completion(bad):
    with pytest.raises(TrainingError, match="'mine' is not a finite number for completion 1, 'second'; got"):
        called(lambda **_: [None, bad, math.nan])


def test_a_wrong_number_of_entries():
    with pytest.raises(TrainingError) as caught:
        called(lambda **_: [1.0, 2.0])
    assert str(caught.value) == (
        "Reward 'mine' returned 2 entries, none for completion 2, 'third'; expected a list of 3 numbers or None."
    )
    with pytest.raises(TrainingError, match="returned 4 entries; expected a list of 3"):
        called(lambda **_: [1.0] * 4)


@pytest.mark.parametrize(
    "outcome, kind", [(None, "NoneType"), (1.0, "float"), (np.zeros((3, 2)), "ndarray"), ("abc", "str")]
)
def test_an_outcome_that_is_no_list(outcome, kind):
    with pytest.raises(TrainingError, match=f"returned no list; got a {kind}; expected a list of 3"):
        called(lambda **_: outcome)


@pytest.mark.parametrize("name", ["prompts", "completions"])
def test_a_column_may_not_take_a_reserved_name(name):
    with pytest.raises(ConfigError, match="Rename the column"):
        call_reward(lambda **_: [0.0], "mine", ["a"], ["b"], {name: ["c"]})


@settings(deadline=None)
@given(count=st.integers(1, 40), data=st.data())
def test_the_first_completion_that_raises_is_found_with_few_calls(count, data):
    offenders = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    calls = 0

    def function(prompts, completions, num_tokens, **columns):
        nonlocal calls
        calls += 1
        assert len(prompts) == len(completions) == len(num_tokens)
        return [1 / entry for entry in num_tokens]

    tokens = [int(index not in offenders) for index in range(count)]
    with pytest.raises(TrainingError) as caught:
        called(function, [f"text {index}" for index in range(count)], num_tokens=tokens, budget=3)
    first = min(offenders)
    assert f"raised ZeroDivisionError('division by zero'), completion {first}, 'text {first}'" in str(
        caught.value
    )
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    assert calls <= 2 + math.ceil(math.log2(count))


def test_an_exception_that_no_single_completion_causes_blames_none():
    outcomes = iter([ValueError("once")])

    def flaky(completions, **columns):
        for error in outcomes:
            raise error
        return [0.0] * len(completions)

    def crowded(completions, **columns):
        if len(completions) > 1:
            raise ValueError("too many")
        return [0.0]

    for function in (flaky, crowded):
        with pytest.raises(
            TrainingError, match=r"'mine' raised ValueError\(.*\), on 3 completions\. Mend the function\."
        ):
            called(function)
    with pytest.raises(TrainingError, match="on 0 completions"):
        called(lambda **_: [][0], [])


def test_a_network_that_fails_is_not_asked_again():
    calls = []

    def judge(**columns):
        calls.append(1)
        raise TimeoutError("no answer")

    with pytest.raises(TrainingError, match="on 3 completions"):
        called(judge)
    assert len(calls) == 1


def test_rewards_import_no_torch():
    check = "import sys, preftune.rewards; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", check], check=True)
