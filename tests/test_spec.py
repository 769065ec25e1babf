"""Everything that is written as `name(key=value, ...)` is read alike: numbers, quotes, null, and what to do about
a name that is not known.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest

from preftune.cli.settings import parse_settings
from preftune.errors import ConfigError
from preftune.lab.problem import problem_from
from preftune.objectives import make_objective
from preftune.objectives.mixture import parse_terms
from preftune.race.contenders import contenders
from preftune.rewards import resolve_reward
from preftune.selection.rules import make_selection
from preftune.spec import Bare
from preftune.train.optim import OptimOptions
from preftune.train.options import TrainConfig


def refused(read: Callable[[], Any], *parts: str) -> None:
    with pytest.raises(ConfigError) as error:
        read()
    assert all(part in str(error.value) for part in parts), str(error.value)


def command_line(text: str) -> Any:
    words = ["--data", "pairs.jsonl", "--output", "run", "--objective", text]
    return parse_settings(TrainConfig, words, "preftune train").objective


def problem(settings: Mapping[str, object]) -> Any:
    content = {"name": "p", "policy": "tabular", "size": 3, "reference": {"kind": "uniform"}}
    return problem_from({**content, "reward": {"kind": "bump", "centre": 0.0, "width": 1.0, **settings}}, "p")


@dataclass(frozen=True, kw_only=True)
class User:
    """Who reads such text: a name with a number among its settings, and a near miss of each."""

    read: Callable[[str], Any]
    name: str
    number: str
    near_number: str
    near_name: str

    def text(self, value: str) -> str:
        return f"{self.name}({self.number}={value})"


READERS: dict[str, Callable[[str], Any]] = {
    "objective": make_objective,
    "command line": command_line,
    "mixture": lambda text: parse_terms(f"sft + 0.5*{text}")[1].objective,
    "contender": lambda text: contenders(f"bnf,{text}")[1].objective,
}
USERS = {
    name: User(read=read, name="simpo", number="beta", near_number="bta", near_name="simppo")
    for name, read in READERS.items()
}
USERS["selection"] = User(
    read=make_selection, name="rso", number="temperature", near_number="temperatur", near_name="rsso"
)
USERS["reward"] = User(
    read=resolve_reward, name="maths", number="limit_s", near_number="limits", near_name="math"
)
users = pytest.mark.parametrize("user", USERS.values(), ids=list(USERS))


@users
@pytest.mark.parametrize("text", ["0.5", "5e-1", ".5", " 0.5 "])
def test_numbers(user, text):
    assert getattr(user.read(user.text(text)), user.number) == 0.5


@users
def test_a_whole_number_is_a_number(user):
    value = getattr(user.read(user.text("2")), user.number)
    assert value == 2.0 and isinstance(value, float)


@users
@pytest.mark.parametrize("text", ["'0.5'", '"0.5"', "much", "null", "none", "true", "nan", "[0.5]"])
def test_what_is_no_number(user, text):
    """Quotes make a text, and words mean something only where the setting allows it."""
    refused(lambda: user.read(user.text(text)), f"{user.number} of ", "that it cannot take", "a number")


@users
def test_a_near_miss_of_a_setting(user):
    text = f"{user.name}({user.near_number}=0.5)"
    refused(lambda: user.read(text), "no such setting", user.near_number, f"Did you mean {user.number}?")


@users
@pytest.mark.parametrize("case", [str, str.upper])
def test_a_near_miss_of_a_name(user, case):
    text = f"{case(user.near_name)}({user.number}=0.5)"
    refused(lambda: user.read(text), case(user.near_name), f"Did you mean {user.name}?")


@users
@pytest.mark.parametrize("inner", ["{0}", "=1", "{0}=1)x(", "'{0}=1", "[{0}=1"])
def test_what_is_not_understood(user, inner):
    refused(lambda: user.read(f"{user.name}({inner.format(user.number)})"), "is not understood")


@users
def test_a_setting_is_given_once(user):
    refused(
        lambda: user.read(f"{user.name}({user.number}=1, {user.number}=2)"), "is given twice", user.number
    )


@pytest.mark.parametrize("null", ["null", "none", "None", "NULL"])
def test_null_where_a_setting_allows_it(null):
    assert make_objective(f"ppo(value_clip={null})").value_clip is None
    assert parse_terms(f"ppo(value_clip={null})")[0].objective.value_clip is None
    assert contenders(f"bnf,ppo(value_clip={null})")[1].objective.value_clip is None
    assert command_line(f"f-dpo(alpha={null})").alpha is None
    assert resolve_reward(f"exact(pattern={null})").pattern is None


@pytest.mark.parametrize("quote", ["'", '"'])
def test_text_in_quotes_is_taken_as_it_stands(quote):
    pattern = "a, (b) = [c] \\d+ null"
    for text in (f"exact(pattern={quote}{pattern}{quote})", f"regex(pattern={quote}{pattern}{quote})"):
        assert resolve_reward(text).pattern == pattern
    assert resolve_reward(f"exact(pattern={quote}null{quote})").pattern == "null"
    found = contenders(f"bnf, sft(selection={quote}rso(temperature=0.2){quote})")[1]
    assert found.selection == "rso(temperature=0.2)"


def test_lists():
    assert make_selection("rest(thresholds=[0, .5], improve_step=2)").thresholds == (0.0, 0.5)


def test_a_laboratory_problem_reads_yaml_as_others_read_text():
    assert problem({"width": 2}).reward.width == 2.0 and problem({"width": Bare("2e0")}).reward.width == 2.0
    for wrong in ("2", None, True, [2.0]):  # text in YAML is text in quotes
        refused(lambda wrong=wrong: problem({"width": wrong}), "width of ", "that it cannot take", "a number")
    refused(lambda: problem({"widht": 2.0}), "no such setting; got widht", "Did you mean width?")
    refused(lambda: problem({"kind": "bmp"}), "unknown kind; got bmp", "Did you mean bump?")


def test_selections_take_a_setting_once():
    assert make_selection("rso(temperature=0.2)", num_kept=3).num_kept == 3
    refused(lambda: make_selection("rso(temperature=0.2)", temperature=0.3), "temperature", "is given twice")


def test_optimizers_suggest_the_nearest_name():
    refused(lambda: OptimOptions(name="adamx"), "got adamx", "Did you mean adamw?")
