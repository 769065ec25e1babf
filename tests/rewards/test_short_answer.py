"""The reward short_answer: every value worked out by hand."""

import pytest

from preftune.data.repetition import distinct_pairs
from preftune.rewards import ask, resolve_reward
from preftune.rewards.short_answer import topic_share
from tests.refusals import refusal

QUESTION = "Why do onions make people cry?"  # key words: onion, peopl, cry; two are enough


def graded(completion: str, ended: bool = True, num_tokens: int = 12, prompt: str = QUESTION) -> float | None:
    columns = {"ended": [ended], "num_tokens": [num_tokens], "budget": 48}
    return ask(resolve_reward("short_answer"), "short_answer", [prompt], [completion], columns).rewards[0]


@pytest.mark.parametrize(
    "completion, ended, num_tokens, reward",
    [
        ("Onions release a gas that makes you cry.", True, 12, 0.5 + 0.25 + 0.25 * 0.75),
        ("Onions release a gas that makes you cry.", True, 48, 0.75),
        ("Onions release a gas, which stings.", True, 24, 0.5 + 0.125 + 0.125),  # one key word of two
        ("They release a gas that stings.", True, 12, 0.2),
        ("Onions release a gas that makes you cry and", False, 48, 0.2),
        ("Onions release a gas, which is", False, 48, 0.1),
        ("They release a gas, which is", False, 48, 0.0),
        ("Onions release a gas that makes you cry", True, 12, 0.2),  # no end of a sentence
        ("Onions sting. Cry.", True, 6, 0.0),  # three words
        ("Onions make people cry.", True, 6, 0.0),  # tells nothing new
        ("Onions make you cry. " * 3, True, 20, 0.0),  # a run of four words, three times
        ("", True, 1, 0.0),
    ],
)
def test_grades(completion, ended, num_tokens, reward):
    assert graded(completion, ended, num_tokens) == pytest.approx(reward)


def test_a_short_answer_in_the_words_of_the_question():
    prompt = "Tell me which continent is the coldest and why."
    assert graded("The coldest continent is Antarctica.", prompt=prompt) == pytest.approx(0.5 + 0.25 + 0.1875)
    assert graded("It is the coldest continent.", prompt=prompt) == 0.0


@pytest.mark.parametrize(
    "prompt, completion, share",
    [
        ("Tell me a fun fact about octopuses.", "An octopus has three hearts.", 0.5),
        ("Tell me a fun fact about octopuses.", "A fun thing: an octopus has three hearts.", 1.0),
        ("Explain photosynthesis in one or two easy sentences.", "Photosynthesis makes sugar.", 1.0),
        ("What is it?", "A box.", 1.0),  # nothing to look for
        ("Who painted the Mona Lisa?", "Nobody knows that.", 0.0),
    ],
)
def test_topic(prompt, completion, share):
    assert topic_share(prompt, completion) == share


def test_a_budget_that_is_no_budget():
    columns = {"ended": [True], "num_tokens": [3], "budget": 0}
    message = refusal(ask, resolve_reward("short_answer"), "short_answer", ["p"], ["c"], columns)
    assert "The budget of reward 'short_answer' is not usable; got 0" in message


def test_distinct_pairs():
    # (a b), (b a), (a b); (a b): two distinct of four
    assert distinct_pairs(["a b, A b.", "a b"]) == 0.5
    assert distinct_pairs(["one two", "three four"]) == 1
    assert distinct_pairs(["", "word"]) != distinct_pairs(["", "word"])  # NaN
