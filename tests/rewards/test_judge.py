"""A judge behind HTTP: what it is asked, what its answers come to, and every way in which it can fail."""

import json
import re
import threading
import time

import pytest

from preftune.cli.main import main
from preftune.errors import ConfigError, ServerError
from preftune.rewards import Verdicts, ask, resolve_reward
from preftune.rewards.judge import parsed_better, parsed_score
from tests.folders import write_rows
from tests.rewards.chat_server import chat, serving

FAST = "retries=2, backoff_s=0.01, timeout_s=5"


def judged(peer, completions, prompts=None, settings=FAST, **columns) -> Verdicts:
    spec = f"judge(url={peer.url}, model=m, {settings})"
    return ask(
        resolve_reward(spec), "judge", prompts or ["Why?"] * len(completions), list(completions), columns
    )


def part(question: str, name: str) -> str:
    return re.search(rf"\[{name}\]\n(.*?)\n\n\[", question, re.S)[1]


def by_length(question: str, number: int) -> str:
    return f"It is this long.\n\nScore: {len(part(question, 'Answer'))}"


def longer(question: str, number: int) -> str:
    one, two = len(part(question, "Answer A")), len(part(question, "Answer B"))
    return "Hm.\nBetter: " + ("tie" if one == two else "A" if one > two else "B")


# Reading answers


@pytest.mark.parametrize(
    "answer, score",
    [
        ("Fine.\nScore: 8", 8),
        ("**Score: 8**", 8),
        ("score = 7.5\n\n", 7.5),
        ("Score: 8/10", 8),
        ("Score:10.", 10),
        ("### Score\n 3", None),
        ("Score: 0", None),
        ("Score: 11", None),
        ("Score: -5", None),
        ("Score: 4/5", None),
        ("Score: 7-8", None),
        ("Score: 7 or 8", None),
        ("Score: 8\nBut who knows", None),
        ("8", None),
        ("I give it 8", None),
        ("Score: eight", None),
        ("", None),
        ("\n \n", None),
    ],
)
def test_a_score_is_read_or_it_is_not(answer, score):
    assert parsed_score(answer, 1, 10) == score


@pytest.mark.parametrize(
    "answer, share",
    [
        ("Better: A", 1),
        ("x\n**Better: b**", 0),
        ("Better: Tie.", 0.5),
        ("Better: A or B", None),
        ("A", None),
        ("Better: both", None),
        ("Better: A\nWell.", None),
        ("", None),
    ],
)
def test_a_choice_is_read_or_it_is_not(answer, share):
    assert parsed_better(answer) == share


# Scores


def test_scores_and_what_the_judge_is_asked():
    with serving(by_length) as peer:
        found = judged(peer, ["abc", "abcdefgh"], ["Why {completion}?", "How?"])
    assert found == Verdicts(rewards=[3.0, 8.0])
    assert {body["model"] for body in peer.bodies} == {"m"} and {
        body["temperature"] for body in peer.bodies
    } == {0.0}
    asked = sorted(peer.questions, key=len)
    assert "[Question]\nHow?\n" in asked[0] and "from 1 (useless) to 10 (could" in asked[0]
    assert "Why {completion}?" in asked[1]  # a place within a text is not filled
    assert all("Authorization" not in headers for headers in peer.headers)


def test_a_dialogue_is_shown_whole():
    turns = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}]
    with serving(by_length) as peer:
        judged(peer, ["abc", "abcd"], ["Hi", "Hi"], prompt_turns=[turns, turns[1:]])
    assert sorted(part(question, "Question") for question in peer.questions) == [
        "Hi",
        "System: Be kind.\n\nUser: Hi",
    ]


def test_a_question_and_a_scale_of_ones_own(tmp_path, monkeypatch):
    path = tmp_path / "ask.txt"
    path.write_text("Q {prompt} A {completion} from {low} to {high}, {else}")
    monkeypatch.setenv("A_KEY", "secret")
    with serving(lambda question, number: "Score: 0") as peer:
        found = judged(
            peer, ["{prompt}"], settings=f"prompt={path}, low=0, high=5, api_key_env=A_KEY, {FAST}"
        )
    assert peer.questions == ["Q Why? A {prompt} from 0 to 5, {else}"]
    assert peer.headers[0]["Authorization"] == "Bearer secret" and found.rewards == [0.0]


def test_answers_that_are_not_understood_are_counted_and_not_guessed():
    answers = {"a": "Score: 3", "b": "Score: 99", "c": "I would say 8", "d": "", "e": None}

    def answer(question, number):
        return 200, chat(answers[part(question, "Answer")])

    with serving(answer) as peer:
        found = judged(peer, "abcde")
    assert found == Verdicts(rewards=[3.0, None, None, None, None], parse_failures=4)
    report = found.report()
    assert (report.num_asked, report.num_none, report.parse_failures, report.mean) == (5, 4, 4, 3.0)


def test_a_single_judged_part_of_a_sum():
    with serving(by_length) as peer:
        spec = f"0.5*judge(url={peer.url}, model=m, {FAST}) + ended"
        found = ask(resolve_reward(spec), spec, ["p", "p"], ["abcd", "x" * 11], {"ended": [True, True]})
    assert found == Verdicts(
        rewards=[3.0, 1.0],  # the second by the other term alone
        parse_failures=1,
        parts={"judge": [4.0, None], "ended": [1.0, 1.0]},
    )


# Pairs


def test_win_rates_over_both_orders():
    with serving(longer) as peer:
        found = judged(
            peer, ["a", "abc", "ab", "xy", "x"], ["p"] * 3 + ["q"] * 2, settings=f"mode=pairwise, {FAST}"
        )
    assert found == Verdicts(rewards=[0.0, 1.0, 0.5, 1.0, 0.0]) and len(peer.questions) == 3 * 2 + 2


def test_a_judge_that_always_takes_the_first_says_nothing():
    with serving(lambda question, number: "Better: A") as peer:
        assert judged(peer, ["a", "abc"], settings=f"mode=pairwise, {FAST}").rewards == [0.5, 0.5]


def test_a_pair_counts_only_if_both_orders_were_understood():
    def answer(question, number):
        unclear = part(question, "Answer A") == "abc" and part(question, "Answer B") == "a"
        return "who knows" if unclear else longer(question, number)

    with serving(answer) as peer:
        found = judged(peer, ["a", "abc", "ab"], settings=f"mode=pairwise, {FAST}")
        assert found == Verdicts(
            rewards=[0.0, 1.0, 0.5], parse_failures=1
        )  # a lost to ab, abc won against ab
        assert judged(peer, ["a", "abc"], settings=f"mode=pairwise, {FAST}") == Verdicts(
            rewards=[None, None], parse_failures=1
        )


def test_pairs_against_a_column():
    with serving(longer) as peer:
        settings = f"mode=pairwise, against=gold, {FAST}"
        found = judged(peer, ["abc", "a", "ab", "z"], settings=settings, gold=["ab", "ab", "ab", None])
    assert found.rewards == [1.0, 0.0, 0.5, None] and len(peer.questions) == 6


def test_pairs_of_a_single_completion():
    with (
        serving(longer) as peer,
        pytest.raises(ConfigError, match="nothing to compare with; got a single completion 2, 'c'"),
    ):
        judged(peer, "abc", ["p", "p", "q"], settings=f"mode=pairwise, {FAST}")


# Faults


def test_a_server_that_fails_twice_is_asked_again():
    replies = {0: (500, "boom"), 1: None, 2: "Score: 4"}
    with serving(lambda question, number: replies[number]) as peer:
        assert judged(peer, ["a"]).rewards == [4.0]
    assert len(peer.questions) == 3


def test_the_wait_that_the_server_asks_for_is_kept():
    with serving(
        lambda question, number: "Score: 4" if number else (429, "slow", {"Retry-After": "1"})
    ) as peer:
        started = time.monotonic()
        assert judged(peer, ["a"]).rewards == [4.0]
    assert time.monotonic() - started >= 1


def test_http_500_for_good_is_an_error():
    with (
        serving(lambda question, number: (500, "out of memory")) as peer,
        pytest.raises(ServerError) as caught,
    ):
        judged(peer, ["a"])
    assert str(caught.value) == (
        f"The judge at {peer.url} gave no answer to /chat/completions in 3 tries; got status 500: 'out of memory'. "
        "Check that it runs; judge.timeout_s and judge.retries set how long to wait."
    )
    assert caught.value.exit_code == 5
    assert len(peer.questions) == 3


def test_a_refusal_is_not_repeated():
    with (
        serving(lambda question, number: (401, "no key")) as peer,
        pytest.raises(ServerError, match="got status 401: 'no key'"),
    ):
        judged(peer, ["a"])
    assert len(peer.questions) == 1


def test_a_judge_that_knows_other_names_is_asked_with_these(capsys):
    def picky(question, number):
        body = peer.bodies[number]
        if "max_tokens" in body:
            return 400, "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead."
        if "temperature" in body:
            return 400, "'temperature' does not support 0 with this model."
        return by_length(question, number)

    with serving(picky) as peer:
        found = judged(peer, ["a", "bb", "ccc"], settings=f"{FAST}, concurrency=1, max_tokens=7")
    assert found.rewards == [1.0, 2.0, 3.0]
    assert peer.bodies[-1]["max_completion_tokens"] == 7 and len(peer.bodies) == 3 + 2
    assert capsys.readouterr().err == "judge: the server refuses temperature 0; its own is used\n"


def test_answers_in_parts_or_filtered_or_of_thoughts_alone():
    def answer(question, number):
        content = [
            [{"type": "text", "text": "Hm.\n"}, {"type": "text", "text": "Score: 7"}],
            None,
            [{"type": "thinking", "text": "Score: 3"}],
            "Score: 2",
        ][number]
        choice = {"message": {"content": content, "reasoning_content": "Score: 9"}, "finish_reason": "stop"}
        return 200, json.dumps(
            {"choices": [choice | ({"finish_reason": "content_filter"} if number == 3 else {})]}
        )

    with serving(answer) as peer:
        found = judged(peer, list("abcd"), settings=f"{FAST}, concurrency=1")
    assert found == Verdicts(rewards=[7.0, None, None, None], parse_failures=3)


def test_a_long_last_line_takes_no_time():
    started = time.monotonic()
    assert parsed_score("score" + " " * 200_000 + "x", 1, 10) is None
    assert parsed_better("better" + " *" * 100_000 + "x") is None
    assert time.monotonic() - started < 1


@pytest.mark.parametrize("body", ["hello", "{}", '{"choices": []}', "[]", '{"choices": [{"text": "x"}]}'])
def test_what_is_no_chat_endpoint(body):
    with (
        serving(lambda question, number: (200, body)) as peer,
        pytest.raises(ServerError, match="an answer that cannot be used"),
    ):
        judged(peer, ["a"])


def test_a_server_that_hangs():
    gone = threading.Event()
    with serving(lambda question, number: str(gone.wait(10))) as peer:
        started = time.monotonic()
        with pytest.raises(ServerError, match=r"in 2 tries; got no complete answer within 0.1 s"):
            judged(peer, ["a"], settings="timeout_s=0.1, retries=1, backoff_s=0.01")
        gone.set()
    assert time.monotonic() - started < 5


def test_a_server_that_drips_its_answer():
    """Each byte comes in time; the answer does not."""
    with serving(by_length, chunk=1, pause=0.05) as peer:
        started = time.monotonic()
        with pytest.raises(ServerError, match=r"in 1 tries; got no complete answer within"):
            judged(peer, ["a"], settings="timeout_s=0.3, retries=0")
        assert time.monotonic() - started < 2


def test_nobody_listens():
    with serving(by_length) as peer:
        pass
    with pytest.raises(ServerError, match="in 3 tries; got ConnectError"):
        judged(peer, ["a"])


def test_no_more_questions_at_once_than_said():
    def slow(question, number):
        time.sleep(0.02)
        return "Score: 1"

    with serving(slow) as peer:
        assert judged(peer, "abcdefghijkl", settings=f"concurrency=3, {FAST}").rewards == [1.0] * 12
    assert peer.most_at_once == 3


def test_a_server_that_dies_in_the_middle_loses_nothing(tmp_path, capsys):
    """And the same command goes on when it is back."""
    rows = [{"prompt": f"p{k}", "completions": ["a" * (k + 1), "bb"]} for k in range(6)]
    data, output = write_rows(tmp_path / "s.jsonl", rows), tmp_path / "o.jsonl"

    def dying(question, number):
        return by_length(question, number) if number < 8 else None

    with serving(dying) as peer:
        words = [
            "reward",
            data,
            "--reward",
            f"judge(url={peer.url}, model=m, {FAST})",
            "--output",
            str(output),
            "--rows_per_call",
            "2",
            "--json",
        ]
        assert main(words) == 5
    err = capsys.readouterr().err
    assert (
        err.count("\n") == 1 and "gave no answer" in err and f"4 of 6 rows are kept in {output}.part" in err
    )
    with serving(by_length, peer.port) as again:
        assert main(words) == 0
    assert len(again.questions) == 4  # rows 5 and 6 only
    assert json.loads(capsys.readouterr().out)["resumed_rows"] == 4
    found = [json.loads(line)["rewards"] for line in output.read_text().splitlines()]
    assert found == [[float(k + 1), 2.0] for k in range(6)]


@pytest.mark.parametrize(
    "settings, message",
    [
        (
            "url=localhost, model=m",
            "url of reward 'judge' is no address; got 'localhost'; expected http://HOST:PORT",
        ),
        ("url=http://x", "Reward 'judge' needs a setting; got no model"),
        (
            "url=http://x, model=m, mode=best",
            "mode of reward 'judge' has a value that it cannot take; got best; expected score or pairwise.",
        ),
        ("url=http://x, model=m, against=gold", "against of reward 'judge' has no effect on scores"),
        (
            "url=http://x, model=m, mode=pairwise, high=5",
            "low and high of reward 'judge' have no effect on pairs",
        ),
        ("url=http://x, model=m, low=3, high=3", "low of reward 'judge' is not below high"),
        (
            "url=http://x, model=m, concurrency=0",
            "concurrency of reward 'judge' is out of range; got 0; expected at least 1.",
        ),
        ("url=http://x, model=m, retries=-1", "retries of reward 'judge' is out of range"),
        ("url=http://x, model=m, timeout_s=0", "timeout_s of reward 'judge' is out of range"),
        ("url=http://x, model=m, prompt=/no/such", "prompt of reward 'judge' cannot be read"),
        (
            "url=http://x, model=m, api_key_env=NO_SUCH_KEY",
            "The environment variable NO_SUCH_KEY holds no key; got nothing; expected the variable that api_key_env of",
        ),
    ],
)
def test_settings_that_cannot_be(settings, message):
    with pytest.raises(ConfigError) as caught:
        resolve_reward(f"judge({settings})")
    assert message in str(caught.value)


@pytest.mark.parametrize(
    "mode, text, place", [("score", "{prompt}", "completion"), ("pairwise", "{prompt} {first}", "second")]
)
def test_a_question_without_a_place_for_what_is_judged(mode, text, place, tmp_path):
    path = tmp_path / "ask.txt"
    path.write_text(text)
    with pytest.raises(ConfigError, match=f"has no place {{{place}}}"):
        resolve_reward(f"judge(url=http://x, model=m, mode={mode}, prompt={path})")
