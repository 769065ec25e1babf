"""The win rate: by a judge behind HTTP in both orders, by a reward, against a column, with hand-computed numbers."""

import json
import math
import re
from dataclasses import replace

import numpy as np
import pytest

from preftune.commands.eval import evaluate_wins
from preftune.commands.eval_options import EvalConfig
from preftune.errors import ConfigError, TrainingError
from preftune.progress import Reporter
from preftune.rewards.win_rate import Answers, Duel, compare_sides, resolve_judge, win_rate
from preftune.sampling.sample import SampleOptions
from preftune.stats import length_controlled_share
from preftune.types import Record
from tests.folders import save_tiny_model, write_rows
from tests.rewards.chat_server import serving

QUIET = Reporter(quiet=True)
RECORDS = [Record(prompt=f"question {k}", completions=()) for k in range(4)]
MINE = Answers(name="model", texts=[["long answer"], ["good"], ["bad"], ["same"]])
OTHER = Answers(name="other", texts=[["good"], ["bad"], ["good"], ["same"]])


def shown(question: str) -> tuple[str, str]:
    """The two answers of a question of the judge."""
    found = re.search(r"\[Answer A\]\n(.*?)\n\n\[Answer B\]\n(.*?)\n\n\[End", question, re.DOTALL)
    assert found is not None
    return found[1], found[2]


def prefers_good(question: str, number: int) -> str:
    """Good wins; equal answers tie; of others the first one wins, wherever it is from."""
    first, second = shown(question)
    if first == second:
        return "Better: tie"
    return f"Because.\nBetter: {'B' if second == 'good' and first == 'bad' else 'A'}"


def compared(answer) -> list[Duel]:
    with serving(answer) as peer:
        text = f"judge(url='{peer.url}', model=m)"
        return compare_sides(resolve_judge(text), text, RECORDS, MINE, OTHER)


def test_a_judge_sees_each_pair_in_both_orders():
    found = compared(prefers_good)
    assert [(one.shown_first, one.shown_second) for one in found] == [(1, 0), (1, 1), (0, 0), (0.5, 0.5)]
    assert [one.share for one in found] == [0.5, 1, 0, 0.5]
    rate = win_rate(found, "judge", "other")
    assert (rate.wins, rate.ties, rate.losses, rate.not_understood) == (1, 2, 1, 0)
    assert rate.win_rate.mean == 0.5 and rate.win_rate.num == 4
    z = 1.959963984540054  # Wilson's interval of 2 of 4
    half = z / (1 + z * z / 4) * math.sqrt(0.25 / 4 + z * z / 64)
    assert rate.win_rate.high == pytest.approx(0.5 + half, abs=1e-9)
    assert rate.consistency is not None and rate.consistency.mean == 0.75
    assert rate.first_place == pytest.approx((1 + 0.5 + 0.5 + 0.5) / 4)
    assert rate.characters == (pytest.approx((11 + 4 + 3 + 4) / 4), pytest.approx(15 / 4))


def test_what_a_judge_does_not_state_does_not_count():
    found = compared(
        lambda question, number: (
            "I cannot choose." if "long answer" in question else prefers_good(question, 0)
        )
    )
    rate = win_rate(found, "judge", "other")
    assert (rate.not_understood, rate.num_prompts, rate.win_rate.num) == (1, 3, 3)
    with pytest.raises(TrainingError, match="The judge gave no verdict; got 4 comparisons"):
        win_rate(compared(lambda question, number: "no"), "judge", "other")


def test_samples_of_a_prompt_count_once():
    many = [
        Duel(prompt_index=p, sample_index=k, prompt="p", completion="c", opponent="c", share=share)
        for p, shares in enumerate([(1.0, 1.0, 1.0, 1.0), (0.0,)])
        for k, share in enumerate(shares)
    ]
    rate = win_rate(many, "j", "o")
    assert (rate.win_rate.mean, rate.win_rate.num, rate.wins, rate.losses) == (0.5, 2, 4, 1)
    assert rate.consistency is None and rate.first_place is None


def test_any_reward_decides(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def score(prompts, completions, **columns):\n"
        "    return [None if c == 'same' else float(len(c)) for c in completions]\n"
    )
    text = f"{tmp_path / 'mine.py'}:score"
    found = compare_sides(resolve_judge(text), text, RECORDS, MINE, OTHER)
    assert [one.share for one in found] == [1, 1, 0, None]


def penalized(wins: np.ndarray, inputs: np.ndarray, weights: np.ndarray) -> float:
    """The log-likelihood with Firth's penalty, half the log-determinant of the information."""
    p = 1 / (1 + np.exp(-inputs @ weights))
    information = (inputs * (p * (1 - p))[:, None]).T @ inputs
    return float(
        (wins * np.log(p) + (1 - wins) * np.log(1 - p)).sum() + 0.5 * np.linalg.slogdet(information)[1]
    )


def test_the_length_controlled_rate_maximizes_the_penalized_likelihood():
    random = np.random.default_rng(0)
    lengths = random.normal(40, 100, size=60)
    wins = np.clip(np.round(2 / (1 + np.exp(-0.02 * lengths)) * random.uniform(0.3, 1.2, 60)) / 2, 0, 1)
    inputs = np.stack([np.ones(60), np.tanh(lengths / lengths.std())], axis=1)
    found = length_controlled_share(wins, lengths)
    intercept = math.log(found.mean / (1 - found.mean))
    slopes = np.linspace(-2, 6, 8001)
    best = max(penalized(wins, inputs, np.array([intercept, slope])) for slope in slopes)
    for shift in (-0.05, 0.05):
        assert best > max(penalized(wins, inputs, np.array([intercept + shift, slope])) for slope in slopes)
    assert found.low < found.mean < found.high


def test_the_length_controlled_rate_takes_length_away():
    """Wins follow length alone: the plain rate is far from one half, the controlled rate is not."""
    random = np.random.default_rng(1)
    lengths = random.normal(80, 60, size=4000)
    wins = (random.random(4000) < 1 / (1 + np.exp(-3 * np.tanh(lengths / lengths.std())))).astype(float)
    found = length_controlled_share(wins, lengths)
    assert wins.mean() > 0.8 and found.low < 0.5 < found.high
    same = length_controlled_share([1.0] * 5, [0] * 5)  # equal lengths: Firth's (5 + 0.5) / (5 + 1)
    assert same.mean == pytest.approx(5.5 / 6)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    return [str(save_tiny_model(folder / str(seed), seed=seed)) for seed in (0, 1)]


def test_eval_against_a_model_and_against_a_column(two, tmp_path):
    rows = [{"prompt": f"why {k}", "chosen": f"good {k}", "rejected": "no"} for k in range(3)]
    data = write_rows(tmp_path / "p.jsonl", rows)
    options = SampleOptions(num_completions=2, max_new_tokens=4)
    settings = EvalConfig(
        model=two[0], prompts=data, judge="length.min", sampling=options, against="chosen"
    )  # an answer of a file has no number of tokens, which this reward needs
    with pytest.raises(ConfigError, match="lacks columns"):
        evaluate_wins(settings, QUIET)
    settings = replace(settings, against=None)
    against = evaluate_wins(replace(settings, reference=two[1], output=str(tmp_path / "out")), QUIET)
    assert (against.num_prompts, against.opponent, against.wins + against.ties + against.losses) == (
        3,
        two[1],
        6,
    )
    lines = [json.loads(line) for line in (tmp_path / "out" / "comparisons.jsonl").read_text().splitlines()]
    assert len(lines) == 6 and lines[0]["prompt"] == "why 0"
    same = evaluate_wins(replace(settings, reference=two[0]), QUIET)
    assert (same.ties, same.win_rate.mean) == (6, 0.5)

    def prefers_chosen(question: str, number: int) -> str:
        return f"Better: {'B' if shown(question)[1].startswith('good') else 'A'}"

    with serving(prefers_chosen) as peer:
        judge = f"judge(url='{peer.url}', model=m)"
        lost = evaluate_wins(replace(settings, judge=judge, against="chosen"), QUIET)
        assert (lost.losses, lost.win_rate.mean, len(peer.questions)) == (6, 0.0, 12)
    with pytest.raises(ConfigError, match="no answers in the column 'golden'; got the columns chosen"):
        evaluate_wins(replace(settings, against="golden"), QUIET)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"prompts": "p"}, "scored by a reward or compared by a judge; got neither"),
        ({"prompts": "p", "reward": "brief", "judge": "brief"}, "got both"),
        ({"prompts": "p", "reward": "brief", "against": "chosen"}, "against has no effect without a judge"),
        ({"prompts": "p", "judge": "brief", "against": "a", "reference": "m"}, "one kind of answer"),
        ({"data": "d", "judge": "brief"}, "judge has no effect on preference data"),
        ({"tasks": "gsm8k", "judge": "brief"}, "judge has no effect on tasks"),
    ],
)
def test_settings_without_effect_are_refused(settings, told):
    with pytest.raises(ConfigError, match=told):
        EvalConfig(model="m", **settings)
    with pytest.raises(ConfigError, match="Use --against COLUMN"):
        resolve_judge("judge(url='http://localhost:1/v1', model=m, mode=pairwise, against=a)")
