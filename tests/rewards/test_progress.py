"""Values of steps from rollouts, where every continuation has the same known reward."""

import pytest

from preftune.errors import ConfigError, TrainingError
from preftune.rewards import ask, resolve_reward
from preftune.text import line_steps

TASTE = '''
def taste(prompts, completions, word, **columns):
    """1 for an answer that begins well, 1 more for one that says the word of its row."""
    return [float(c.startswith("good")) + float(w in c) for c, w in zip(completions, word)]

def mute(prompts, completions, **columns):
    return [None for _ in completions]

def lines(prompts, completions, **columns):
    return [[1.0] * len([x for x in c.split(chr(10)) if x]) for c in completions]
'''


@pytest.fixture(scope="module")
def progress(tiny_folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("taste") / "taste.py"
    path.write_text(TASTE)

    def made(function="taste", **settings):
        more = "".join(f", {name}={value}" for name, value in settings.items())
        return f"progress(model='{tiny_folder}', reward='{path}:{function}', num=3, max_new_tokens=1{more})"

    return made


def judged(spec, *texts, **columns):
    words = {"word": ["yes"] * len(texts)} | columns
    return ask(resolve_reward(spec), "progress", ["Well?"] * len(texts), list(texts), words)


def test_by_hand(progress):
    """Q is 0, 1, 2; 0, 0, 1 and so on: one further token adds neither word."""
    found = judged(progress(), "good\nyes", "bad\n\nbut yes", "good\nno\nyes.", "", "good")
    assert found.steps == [(1.0, 1.0), (0.0, 1.0), (1.0, 0.0, 1.0), None, (1.0,)]
    assert found.rewards == [2.0, 1.0, 2.0, None, 1.0]
    q = judged(progress(values="q", best_of=2), "good\nyes", "bad\n\nbut yes")
    assert q.steps == [(1.0, 2.0), (0.0, 1.0)]


def test_an_answer_that_was_cut_off_goes_on(progress):
    """Its own reward counts only if it ended: 'goo' may yet become 'good', and with one token it does not."""
    whole = judged(progress(), "good\ny", "good\ny", ended=[True, False])
    assert whole.steps[0] == (1.0, 0.0) and whole.steps[1][0] == 1.0


def test_equal_draws_and_no_opinion(progress):
    one, two = (judged(progress(), "bad\nmore\nyes") for _ in range(2))
    assert one == two
    assert judged(progress("mute"), "good\nyes").steps == []
    assert judged(progress("mute"), "good\nyes").rewards == [None]


def test_a_weighted_sum_keeps_steps_apart_from_the_outcome(progress):
    name = progress().partition("reward='")[2].partition("'")[0]
    found = judged(f"2*{name} + 3*{progress()}", "good\nyes", "bad")
    assert found.steps == [(3.0, 3.0), (0.0,)]
    assert found.rewards == [2 * 2 + 3 * 2, 0.0]


def test_a_prover_that_takes_the_best(progress, tiny_folder, tmp_path):
    """Numbered draws: of 1, 2, 3 the best of two is 2 or 3 or 3 on average."""
    path = tmp_path / "count.py"
    path.write_text(
        "def count(prompts, completions, **_):\n    return [float(1 + i % 3) for i in range(len(completions))]\n"
    )
    spec = f"progress(model='{tiny_folder}', reward='{path}:count', num=3, max_new_tokens=1, values=q, best_of={{}})"
    for best_of, expected in ((1, 2.0), (2, 8 / 3), (3, 3.0)):
        found = judged(spec.format(best_of), "x\ny", ended=[False])
        assert found.steps == [(pytest.approx(expected), pytest.approx(expected))]


def test_steps_of_a_function(progress):
    name = progress("lines").partition("reward='")[2].partition("'")[0]
    assert judged(name, "a\nb\n", "", "\n\nc").steps == [(1.0, 1.0), (), (1.0,)]
    assert judged(name, "a\nb\n", "", "\n\nc").rewards == [2.0, 0.0, 1.0]
    for wrong in ([[1.0]], [[1.0, float("nan")]], [[1.0, "x"]]):
        with pytest.raises(TrainingError, match=r"does not fit the steps of completion 0.* 2 finite numbers"):
            ask(lambda wrong=wrong, **_: wrong, "mine", ["p"], ["a\nb"], {})


def test_lines():
    assert line_steps("a\nb\n\nc") == ["a\n", "b\n\n", "c"] and "".join(line_steps("\na\n")) == "\na\n"
    assert line_steps("\n") == line_steps("") == []


def test_refusals(progress):
    for settings, told in (({"best_of": 4}, "best_of of reward 'progress' is out of range"),):
        with pytest.raises(ConfigError, match=told):
            resolve_reward(progress(**settings))
