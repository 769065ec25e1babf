"""The rewards of length, form and known answers: every value worked out by hand."""

import math
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.errors import ConfigError, TrainingError
from preftune.rewards import Verdicts, ask, resolve_reward
from preftune.rewards.text_rules import Regex, pattern_size
from tests.refusals import refusal


def judged(spec: str, completions, **columns):
    return ask(resolve_reward(spec), spec, ["prompt"] * len(completions), list(completions), columns).rewards


def test_the_length_problems():
    lengths = [0, 7, 203, 256]
    assert judged("length.min", "abcd", num_tokens=lengths) == [0, -7, -203, -256]
    assert judged("length.skew", "abcd", num_tokens=lengths) == [0, -7, -203, -256]
    assert judged("length.mode(mode=203)", "abcd", num_tokens=lengths) == [-203, -196, 0, -53]
    assert judged("length.mode(mode=45.8)", "a", num_tokens=[40]) == [pytest.approx(-5.8)]


@given(st.lists(st.integers(1, 500), min_size=2, max_size=2, unique=True), st.floats(0, 500))
def test_the_nearer_to_the_mode_the_better(lengths, mode):
    one, two = judged(f"length.mode(mode={mode})", "ab", num_tokens=lengths)
    assert max(one, two) <= 0 and (one > two) == (abs(lengths[0] - mode) < abs(lengths[1] - mode))


@pytest.mark.parametrize(
    "spec, message",
    [
        ("length.mode", "Reward 'length.mode' needs a setting; got no mode; expected mode=...."),
        (
            "length.mode(mode=-1)",
            "mode of reward 'length.mode' is out of range; got -1.0; expected 0 or more tokens.",
        ),
        (
            "length.mode(mode=inf)",
            "mode of reward 'length.mode' has a value that it cannot take; got inf; expected a number.",
        ),
        (
            "length.mode(mode=x)",
            "mode of reward 'length.mode' has a value that it cannot take; got x; expected a number.",
        ),
        ("regex", "Reward 'regex' needs a setting; got no pattern; expected pattern=...."),
        (
            "regex(pattern='(')",
            "pattern of reward 'regex' is no regular expression; got '('; expected one that compiles",
        ),
        ("exact(pattern='[')", "pattern of reward 'exact' is no regular expression"),
        (
            "regex(pattern=a, whole=maybe)",
            "whole of reward 'regex' has a value that it cannot take; got maybe; expected true or ",
        ),
        ("format(tags='a a')", "tags of reward 'format' are not usable; got a a"),
        ("format(tags='')", "tags of reward 'format' are not usable"),
        ("maths(limit_s=0)", "limit_s of reward 'maths' is out of range"),
    ],
)
def test_settings_that_cannot_be(spec, message):
    assert message in refusal(resolve_reward, spec)


def test_a_pattern():
    texts = ["it is 42.", "42", "forty", "a\nB"]
    assert judged(r"regex(pattern='\d+')", texts) == [1, 1, 0, 0]
    assert judged(r"regex(pattern='\d+', whole=true)", texts) == [0, 1, 0, 0]
    assert judged(r"regex(pattern='(?i)^b$')", texts) == [0, 0, 0, 0]
    assert judged(r"regex(pattern='(?im)^b$')", texts) == [0, 0, 0, 1]


def test_a_pattern_that_backtracks_without_end_is_an_error(monkeypatch):
    monkeypatch.setattr("preftune.rewards.text_rules.PATTERN_S", 0.05)
    with pytest.raises(TrainingError, match=r"takes too long on completion 1, 'aaaa.*Mend the pattern"):
        judged("regex(pattern='^(a|a)+$')", ["a", "a" * 60 + "b"])


@pytest.mark.parametrize(
    "text, fits",
    [
        ("<think>because</think><answer>4</answer>", 1),
        ("  <think>a\nb</think>\n\n<answer>4</answer>\n", 1),
        ("<think>a</think> so <answer>4</answer>", 0),
        ("<answer>4</answer><think>a</think>", 0),
        ("<think>a</think><answer>4</answer> done", 0),
        ("<think>a</think><think>b</think><answer>4</answer>", 0),
        ("<think> </think><answer>4</answer>", 0),
        ("<think>a<answer>4</answer></think>", 0),
        ("<think>a</think><answer>4", 0),
        ("", 0),
    ],
)
def test_tagged_blocks(text, fits):
    assert judged("format", [text]) == [fits]


def test_tags_of_ones_own():
    assert judged("format(tags=plan, filled=false)", ["<plan></plan>", "<plan>x</plan>", "x"]) == [1, 1, 0]


def test_an_exact_answer():
    answers = ["Paris", ["Paris", "paris, France"], None, 42, "x  y", []]
    texts = [" Paris\n", "paris, France", "what", "42", "x y", "z"]
    assert judged("exact", texts, answer=answers) == [1, 1, None, 1, 1, None]
    assert judged("exact(column=gold)", ["paris", "Paris"], gold="Paris") == [0, 1]
    assert judged("exact(column=gold, ignore_case=true)", ["paris", "Rome"], gold="Paris") == [1, 0]


def test_an_exact_answer_within_a_text():
    texts = ["#### 3 no, #### 4", "#### 3", "4"]
    assert judged(r"exact(pattern='#### (\d+)')", texts, answer=4) == [1, 0, 0]
    assert judged(r"exact(pattern='\d+')", texts, answer=["4", "3", "4"]) == [1, 1, 1]


def test_a_column_that_is_missing_is_told_before_anything_is_judged():
    with pytest.raises(ConfigError) as caught:
        judged("exact(column=gold)", ["a"], answer=["a"])
    assert str(caught.value) == (
        "Reward 'exact(column=gold)' lacks columns; got the columns ['answer']; expected 'gold' (a column of the data). "
        "Add the column to the data, or name the one that holds it in the reward's settings."
    )


def test_mathematics():
    right = ["1/2", r"\frac{1}{2}", "$x^2+1$", "$5$ each for 2\n#### 18", "4", None, "3", "7"]
    texts = ["It is 0.5.", r"so \boxed{\frac{2}{4}}", "$1 + x^2$", "Thus 18", r"\boxed{5}", "1", "three", ""]
    assert judged("maths", texts, answer=right) == [1, 1, 1, 1, 0, None, 0, 0]


def test_mathematics_that_takes_for_ever_gives_no_opinion_and_the_next_is_judged():
    texts = [r"\boxed{9^{9^{9^9}}}", r"\boxed{3}"]
    assert judged("maths(limit_s=1.5, column=gold)", texts, gold=["4", "3"]) == [None, 1]


# Sums and the way they are written


def test_a_weighted_sum():
    columns = {"ended": [True, False], "num_tokens": [10, 20]}
    assert judged("0.5*ended + 0.01*length.min", "ab", **columns) == [pytest.approx(0.4), pytest.approx(-0.2)]
    assert judged("ended - 2*ended", "ab", **columns) == [-1, 0]
    assert judged("-1*length.min", "ab", **columns) == [10, 20]
    assert judged("exact + ended", "ab", answer=["a", None], **columns) == [2, 0]  # by `ended` alone


def test_a_sum_names_the_part_that_fails(tmp_path):
    path = tmp_path / "it's (mine).py"
    path.write_text("def score(prompts, completions, **columns):\n    return [1.0, float('nan')]\n")
    spec = f"0.5*ended + 2*{path}:score"
    with pytest.raises(
        TrainingError, match=r"mine\).py:score.* is not a finite number for completion 1, 'b'; got nan"
    ):
        judged(spec, "ab", ended=[True, True])
    with pytest.raises(ConfigError, match=r"Reward 'length\.min' lacks columns"):
        judged("ended + length.min", "ab", ended=[True, True])


def test_failures_to_understand_a_judge_add_up():
    verdicts = Verdicts(rewards=[1.0, None, 3.0, None], parse_failures=1)
    report = verdicts.report()
    assert (report.num_asked, report.num_none, report.parse_failures, report.mean, report.std) == (
        4,
        2,
        1,
        2.0,
        1.0,
    )
    nothing = Verdicts(rewards=[None]).report()
    assert (nothing.num_asked, nothing.num_none, nothing.mean, nothing.std) == (1, 1, None, None)


@pytest.mark.parametrize(
    "spec, message",
    [
        ("", "The reward's name is empty"),
        ("0.5*", "The reward is not understood; got nothing"),
        ("brief + (x=1)", "The reward is not understood; got '(x=1)'"),
        ("1e999*brief", "The weight of the reward brief is out of range"),
        ("brief(x=1)", "Reward 'brief' has no such setting; got x; expected none."),
        (
            "regex(patern=a)",
            "has no such setting; got patern; expected pattern, whole. Did you mean pattern?",
        ),
        ("regex(a)", "A setting of reward 'regex' is not understood; got 'a'; expected key=value."),
        ("regex(pattern='a' 'b')", "pattern of reward 'regex' is not understood"),
        ("regex(pattern=a, pattern=b)", "A setting of reward 'regex' is given twice; got pattern."),
        ("json:dumps(x=1)", "Reward 'json:dumps' takes no settings here"),
    ],
)
def test_a_spec_that_is_not_understood(spec, message):
    assert message in refusal(resolve_reward, spec)


NUMBERS = st.floats(-100, 100, allow_nan=False).map(lambda value: round(value, 3))
PIECES = st.sampled_from(["ended", "length.min", "length.mode(mode=3)", "regex(pattern='a + b, (c)')"])


@settings(deadline=None)
@given(st.lists(st.tuples(NUMBERS, PIECES), min_size=1, max_size=5))
def test_any_sum_is_read_back(terms):
    spec = " + ".join(f"{weight}*{name}" for weight, name in terms)
    value = {
        "ended": 1.0,
        "length.min": -5.0,
        "length.mode(mode=3)": -2.0,
        "regex(pattern='a + b, (c)')": 0.0,
    }
    expected = math.fsum(weight * value[name] for weight, name in terms)
    assert judged(spec, ["x"], ended=[True], num_tokens=[5]) == [pytest.approx(expected, abs=1e-9)]


# Rewards of other packages


def test_sentiment():
    good, bad, nothing = judged("sentiment", ["I love this, it is great!", "This is terrible.", ""])
    # VADER by hand: x / sqrt(x^2 + 15); love 3.2 + great 3.1 + 0.292 for "!" = 6.592; terrible -2.1
    assert good == pytest.approx(6.592 / math.sqrt(6.592**2 + 15), abs=5e-4)
    assert bad == pytest.approx(-2.1 / math.sqrt(2.1**2 + 15), abs=5e-4)
    assert nothing == 0


def followed(spec, completion, *instructions):
    names, kwargs = [name for name, _ in instructions], [settings for _, settings in instructions]
    return judged(spec, [completion], instruction_id_list=[names], kwargs=[kwargs])[0]


BEE = ("keywords:existence", {"keywords": ["bee"], "num_words": None})
NO_COMMA = ("punctuation:no_comma", {})
QUOTED = ("startend:quotation", None)


def test_instructions():
    assert followed("instructions", "A bee.", BEE) == 1
    assert followed("instructions", "A bee, a hive.", BEE, NO_COMMA) == 0
    assert followed("instructions(score=share)", "A bee, a hive.", BEE, NO_COMMA) == 0.5
    assert followed("instructions(score=share)", "", BEE, NO_COMMA) == 0
    assert followed("instructions", '*"A bee"*', QUOTED) == 0
    assert followed("instructions(mode=loose)", '*"A bee"*', QUOTED) == 1
    assert (
        followed(
            "instructions", "Das ist ein deutscher Satz.", ("language:response_language", {"language": "de"})
        )
        == 1
    )


@pytest.mark.parametrize(
    "names, kwargs, message",
    [
        (
            ["keywords:all"],
            [{}],
            "There is no instruction 'keywords:all' for completion 0, 'x'; expected one of keywords:exis",
        ),
        (
            ["keywords:existence"],
            [{"keywords": None}],
            "has other settings than its checker; got none; expected keywords.",
        ),
        (
            ["punctuation:no_comma"],
            [{"most": 3}],
            "has other settings than its checker; got most; expected none.",
        ),
        (["punctuation:no_comma"], [], "are not understood"),
        (None, [{}], "are not understood"),
    ],
)
def test_an_instruction_that_a_checker_would_skip_or_make_up(names, kwargs, message):
    assert message in refusal(judged, "instructions", ["x"], instruction_id_list=[names], kwargs=[kwargs])


def test_an_instruction_that_needs_word_lists(monkeypatch):
    import nltk

    monkeypatch.setattr(nltk.data, "path", [])
    with pytest.raises(
        ConfigError, match=r"needs the word lists of nltk.*python -m nltk\.downloader punkt_tab"
    ):
        followed(
            "instructions",
            "One. Two.",
            ("length_constraints:number_sentences", {"num_sentences": 2, "relation": "at least"}),
        )


@pytest.mark.parametrize(
    ("pattern", "size"),
    [
        ("abc", 3),
        (r"a\{3}", 4),
        ("a{3}", 3),
        ("a{2,5}b", 6),
        ("[a-z]{4}", 4),
        ("(ab){3}", 9),
        ("((a{5}){5}){5}", 155),
        (r"[\]{9}]x", 2),
        ("a*b+", 4),
    ],
)
def test_the_size_of_a_pattern_is_that_with_repetitions_written_out(pattern, size):
    assert pattern_size(pattern) == size


@pytest.mark.parametrize(
    "pattern", ["(?:(?:a{500}){500}){50}", "((a{1,999}){1,999}){1,999}", "(" * 9000 + ")" * 9000]
)
def test_a_pattern_that_takes_minutes_to_compile_is_refused(pattern):
    begun = time.monotonic()
    with pytest.raises(ConfigError, match=r"regex. is (too large|no regular expression)"):
        Regex(pattern=pattern)
    assert time.monotonic() - begun < 20
