"""The demo's prompts: enough of them, varied, no two alike, and a held-out part spread evenly over the
topics.
"""

import json
import re
from collections import Counter
from importlib.resources import files
from itertools import combinations

ROWS = [
    json.loads(line)
    for line in files("preftune.commands").joinpath("demo_prompts.jsonl").read_text("utf-8").splitlines()
]
PROMPTS = [row["prompt"] for row in ROWS]


def words(text: str) -> list[str]:
    return re.findall(r"[\w'’-]+", text.lower())


def trigrams(text: str) -> set[tuple[str, ...]]:
    seen = words(text)
    return {tuple(seen[start : start + 3]) for start in range(len(seen) - 2)}


def overlap(first: str, second: str) -> float:
    """Share of the word 3-grams of the poorer of two prompts that the other holds too."""
    left, right = trigrams(first), trigrams(second)
    return len(left & right) / min(len(left), len(right))


def test_overlap_of_two_prompts():
    # 3-grams: {why is the, is the sky, the sky blue} and {why is the, is the sea, the sea salty}; one is
    # shared.
    assert overlap("Why is the sky blue?", "why is the sea salty") == 1 / 3
    assert overlap("Why is the sky blue?", "Tell me: why is the sky blue?") == 1


def test_every_row_has_the_same_three_fields():
    assert len(ROWS) == 320
    for row in ROWS:
        assert set(row) == {"prompt", "topic", "held_out"}
        assert (
            isinstance(row["prompt"], str)
            and isinstance(row["topic"], str)
            and isinstance(row["held_out"], bool)
        )
        assert row["prompt"] == row["prompt"].strip() and row["prompt"].isprintable()


def test_lengths_vary_between_4_and_35_words():
    lengths = [len(prompt.split()) for prompt in PROMPTS]
    assert min(lengths) >= 4 and max(lengths) <= 35
    assert sum(length <= 6 for length in lengths) >= 40 and sum(length >= 20 for length in lengths) >= 25


def test_forms_vary():
    questions = sum(prompt.endswith("?") for prompt in PROMPTS)
    unfinished = sum(prompt[-1].isalpha() for prompt in PROMPTS)
    assert 0.4 * len(PROMPTS) < questions < 0.75 * len(PROMPTS) and unfinished >= 15


def test_topics_are_balanced_and_each_is_held_out_alike():
    topics = Counter(row["topic"] for row in ROWS)
    held_out = Counter(row["topic"] for row in ROWS if row["held_out"])
    assert len(topics) == 32 and set(topics.values()) == {10}
    assert held_out.total() == 96 and {held_out[topic] for topic in topics} == {3}


def test_any_opening_stretch_of_the_file_is_a_fair_sample():
    for start in range(0, 320, 32):
        stretch = ROWS[start : start + 32]
        assert len({row["topic"] for row in stretch}) == 32
        assert 8 <= sum(row["held_out"] for row in stretch) <= 11


def test_no_two_prompts_are_alike():
    assert len({tuple(words(prompt)) for prompt in PROMPTS}) == len(PROMPTS)
    alike = [(first, second) for first, second in combinations(PROMPTS, 2) if overlap(first, second) > 0.6]
    assert not alike


def test_openings_differ():
    openings = Counter(tuple(words(prompt)[:5]) for prompt in PROMPTS)
    assert openings.most_common(1)[0][1] == 1
    assert Counter(words(prompt)[0] for prompt in PROMPTS).most_common(1)[0][1] <= 0.12 * len(PROMPTS)
