"""The reward `short_answer`: complete, on the question, brief."""

from dataclasses import dataclass
from typing import Any

from preftune.data.repetition import is_repetitive, split_words
from preftune.rewards.base import BuiltIn, checked_budgets
from preftune.rewards.text_rules import is_sentence

GOOD = 0.5
"""Answers with this reward or more are complete and on the question."""
MIN_WORDS = 4
STEM = 5  # letters by which words are compared: "octopus" and "octopuses" are the same word
KEY_WORDS = 2  # key words of the question that an answer needs for the full share

# Words that ask or connect, and have no content of a question.
COMMON_WORDS = frozenset(
    [
        "a",
        "about",
        "an",
        "and",
        "answer",
        "any",
        "are",
        "as",
        "at",
        "be",
        "been",
        "best",
        "but",
        "by",
        "can",
        "could",
        "describe",
        "did",
        "difference",
        "different",
        "do",
        "does",
        "easy",
        "example",
        "explain",
        "for",
        "from",
        "get",
        "give",
        "good",
        "had",
        "has",
        "have",
        "he",
        "her",
        "him",
        "his",
        "how",
        "i",
        "if",
        "in",
        "into",
        "is",
        "it",
        "its",
        "just",
        "know",
        "like",
        "line",
        "lines",
        "list",
        "make",
        "may",
        "me",
        "might",
        "mine",
        "must",
        "my",
        "name",
        "need",
        "no",
        "not",
        "of",
        "on",
        "one",
        "or",
        "our",
        "out",
        "please",
        "say",
        "sentence",
        "sentences",
        "she",
        "short",
        "should",
        "simple",
        "so",
        "some",
        "someone",
        "such",
        "suggest",
        "tell",
        "than",
        "that",
        "the",
        "their",
        "them",
        "then",
        "there",
        "these",
        "they",
        "thing",
        "things",
        "this",
        "those",
        "three",
        "to",
        "too",
        "two",
        "up",
        "us",
        "use",
        "using",
        "very",
        "want",
        "was",
        "way",
        "we",
        "well",
        "were",
        "what",
        "when",
        "where",
        "which",
        "who",
        "whom",
        "whose",
        "why",
        "will",
        "with",
        "without",
        "word",
        "words",
        "would",
        "write",
        "yes",
        "you",
        "your",
    ]
)


@dataclass(frozen=True, kw_only=True)
class ShortAnswer(BuiltIn):
    """A complete answer to the question in few tokens, in grades, so that most prompts have completions of
    different rewards.

        0                                            repetitive, fewer than 4 words, or no key word of its own
        0.2 * topic                                  cut off, or no sentence
        0.2                                          complete, without a key word of the question
        0.5 + 0.25 * topic + 0.25 * (1 - tokens / budget)   complete, with key words

    So 0.5 or more is a complete answer on the question. `topic` is 1 if the answer holds two key words of the
    question (or its only one), 0.5 with one of several, 0 with none; a question without key words gives 1. Key
    words are those outside a list of common English words, compared by their first five letters; an answer
    whose key words are all of the question tells nothing new. Complete and repetitive mean the same as for
    `brief`. The rules look at form and words: a false answer can score well.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        return ("ended", "num_tokens", "budget")

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        budgets = checked_budgets("short_answer", columns["budget"], len(completions))
        rows = zip(prompts, completions, columns["ended"], columns["num_tokens"], budgets, strict=True)
        return [_grade(*row) for row in rows]


def _grade(prompt: str, completion: str, ended: bool, num_tokens: int, budget: int) -> float:
    is_echo = _key_words(completion) <= _key_words(prompt)
    if len(split_words(completion)) < MIN_WORDS or is_repetitive(completion) or is_echo:
        return 0.0
    topic = topic_share(prompt, completion)
    if not (ended and num_tokens <= budget and is_sentence(completion)):
        return 0.2 * topic
    return GOOD + 0.25 * topic + 0.25 * (1 - num_tokens / budget) if topic else 0.2


def topic_share(prompt: str, completion: str) -> float:
    """How many of the question's key words the completion holds, of at most KEY_WORDS; 1 if it has none."""
    asked = _key_words(prompt)
    wanted = min(KEY_WORDS, len(asked))
    return min(1.0, len(asked & _key_words(completion)) / wanted) if wanted else 1.0


def _key_words(text: str) -> set[str]:
    return {word[:STEM] for word in split_words(text) if word not in COMMON_WORDS}
