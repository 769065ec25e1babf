"""Rewards of form: what can be seen in the text and in how it was drawn, without knowing what is right."""

import re
from dataclasses import dataclass
from typing import Any

import regex

from preftune.data.repetition import is_repetitive, split_words
from preftune.errors import ConfigError, TrainingError, shown
from preftune.rewards.base import BuiltIn, at, checked_budgets

SENTENCE_END = re.compile(r"[.!?…][\"'”’»)\]}*_`]*$")
# seconds that a pattern may take on one completion; one that backtracks without end never returns
PATTERN_S = 2.0
MAX_PATTERN = 20_000  # parts of a pattern: they compile in less than a second
_COUNTED = re.compile(r"\{(\d{0,9})(?:,(\d{0,9}))?\}")
_CLASS = re.compile(r"\[\^?\]?(?:[^\]\\]|\\.)*\]", re.DOTALL)


@dataclass(frozen=True, kw_only=True)
class Brief(BuiltIn):
    """A complete answer that ends properly; among those, short beats long.

        reward = 1 - 0.5 * num_tokens / budget, in [0.5, 1), for a complete answer; 0 otherwise

    The gap between 0 and 0.5 makes the longest complete answer better than any broken one. An answer is not
    complete when one of these holds:

    - cut off: it did not end within the budget;
    - no sentence: fewer than 4 words, or the text does not close with . ! ? or … (quotes and brackets may
      follow);
    - repetitive: some run of 4 words occurs 3 times or more, or fewer than 40% of its more than 20 words are
      distinct;
    - echo: it has no more words than the prompt, and at least 80% of them are words of the prompt.

    Words are split at spaces and compared without case and surrounding punctuation, so the rules fit
    languages that write spaces. The rules look at form only: a short answer that is false or evasive scores
    well, and a short right answer made of the prompt's words ("Is a whale a fish or a mammal?" "A whale is a
    mammal.") scores 0.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        return ("ended", "num_tokens", "budget")

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        budgets = checked_budgets("brief", columns["budget"], len(completions))
        rewards: list[float | None] = []
        rows = zip(prompts, completions, columns["ended"], columns["num_tokens"], budgets, strict=True)
        for prompt, completion, end, length, budget in rows:
            complete = end and length <= budget and is_sentence(completion)
            useful = complete and not is_repetitive(completion) and not is_echo(prompt, completion)
            rewards.append(1 - 0.5 * length / budget if useful else 0.0)
        return rewards


@dataclass(frozen=True, kw_only=True)
class Ended(BuiltIn):
    """1 for a completion that closed itself with the end-of-turn token within the budget, else 0."""

    @property
    def needs(self) -> tuple[str, ...]:
        return ("ended",)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        return [1.0 if entry else 0.0 for entry in columns["ended"]]


@dataclass(frozen=True, kw_only=True)
class LengthMin(BuiltIn):
    """The problems Min Length and Skew Length of Tajwar et al. (2024): minus the number of tokens, reward =
    -|y|.

    In both the shortest completion is the best. They differ in the preference data, which for Skew Length
    hold mostly completions that were cut to a law of short lengths; the reward is the same.
    """

    @property
    def needs(self) -> tuple[str, ...]:
        return ("num_tokens",)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        return [-float(length) for length in columns["num_tokens"]]


@dataclass(frozen=True, kw_only=True)
class LengthMode(BuiltIn):
    """The problem Mode Length of Tajwar et al. (2024): minus the distance to a length, reward = -| |y| - mode
    |, in tokens.

    Args:
        mode: the length that is best, in tokens, end-of-turn token included; in the paper the most frequent
            length of the preference data (203 there).
    """

    mode: float

    def __post_init__(self) -> None:
        if not 0 <= self.mode < float("inf"):
            raise ConfigError(
                "mode of reward 'length.mode' is out of range", got=self.mode, expected="0 or more tokens"
            )

    @property
    def needs(self) -> tuple[str, ...]:
        return ("num_tokens",)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        return [-abs(float(length) - self.mode) for length in columns["num_tokens"]]


@dataclass(frozen=True, kw_only=True)
class Regex(BuiltIn):
    """1 for a completion in which the pattern is found, else 0.

    Args:
        pattern: a regular expression of Python; flags are in front, as in (?i).
        whole: the pattern must fit the whole completion, not only a part.
    """

    pattern: str
    whole: bool = False

    def __post_init__(self) -> None:
        compiled("regex", self.pattern)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        found = matches("regex", self.pattern, completions, self.whole)
        return [0.0 if one is None else 1.0 for one in found]


@dataclass(frozen=True, kw_only=True)
class TaggedFormat(BuiltIn):
    """1 for a completion that is made of tagged blocks, each once, in this order, with only blanks between;
    else 0.

    With the defaults: <think> ... </think> <answer> ... </answer>.

    Args:
        tags: the names of the blocks, separated by blanks.
        filled: a block must hold more than blanks.
    """

    tags: str = "think answer"
    filled: bool = True

    def __post_init__(self) -> None:
        names = self.tags.split()
        if not names or len(set(names)) < len(names):
            raise ConfigError(
                "tags of reward 'format' are not usable",
                got=self.tags,
                expected="different names, with blanks between",
            )

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        return [1.0 if self._fits(completion) else 0.0 for completion in completions]

    def _fits(self, text: str) -> bool:
        rest = text.strip()
        for tag in self.tags.split():
            opening, closing = f"<{tag}>", f"</{tag}>"
            if text.count(opening) != 1 or text.count(closing) != 1 or not rest.startswith(opening):
                return False
            content, _, rest = rest.removeprefix(opening).partition(closing)
            rest = rest.lstrip()
            if self.filled and not content.strip():
                return False
        return not rest


def compiled(reward: str, pattern: str) -> "regex.Pattern[str]":
    """The pattern, or an error if it is none, or one whose counted repetitions would take minutes to compile."""
    if (size := pattern_size(pattern)) > MAX_PATTERN:
        raise ConfigError(
            f"pattern of reward {reward!r} is too large",
            got=f"{size:,} parts with repetitions written out: {shown(pattern)}",
            expected=f"at most {MAX_PATTERN:,}",
            do="Lower the counts in braces, or do not nest them",
        )
    try:
        return regex.compile(pattern)
    except (regex.error, OverflowError, RecursionError) as error:
        raise ConfigError(
            f"pattern of reward {reward!r} is no regular expression",
            got=shown(pattern),
            expected=f"one that compiles ({error})",
        ) from error


def pattern_size(pattern: str) -> int:
    """Characters of a pattern with counted repetitions written out; an upper bound for the compiled pattern."""
    totals, last, place = [0], 0, 0
    while place < len(pattern):
        char = pattern[place]
        counted = _COUNTED.match(pattern, place)
        if counted is not None:
            totals[-1] += last * (max(int(counted[1] or 0), int(counted[2] or 0)) - 1)
            place = counted.end()
            continue
        if char == "(":
            totals.append(1)
        elif char == ")" and len(totals) > 1:
            last = totals.pop()
            totals[-1] += last
        else:
            end = _CLASS.match(pattern, place)
            place = end.end() - 1 if end else place + (char == "\\")
            last = 1
            totals[-1] += 1
        if len(str(sum(totals))) > 12:
            break  # large enough
        place += 1
    return sum(totals)


def matches(
    reward: str, pattern: str, completions: list[str], whole: bool
) -> list["regex.Match[str] | None"]:
    """The last match in each completion, or the match of the whole; a pattern that takes too long is an
    error.
    """
    ready, found = compiled(reward, pattern), []
    for index, completion in enumerate(completions):
        try:
            if whole:
                found.append(ready.fullmatch(completion, timeout=PATTERN_S))
            else:
                *_, last = [None, *ready.finditer(completion, timeout=PATTERN_S)]
                found.append(last)
        except TimeoutError:
            raise TrainingError(
                f"The pattern of reward {reward!r} takes too long on {at(index, completions)}",
                got=shown(pattern),
                do="Mend the pattern: it tries too many ways to fit",
            ) from None
    return found


def is_sentence(text: str) -> bool:
    """At least 4 words, closed by sentence punctuation."""
    return len(split_words(text)) >= 4 and SENTENCE_END.search(text.rstrip()) is not None


def is_echo(prompt: str, completion: str) -> bool:
    """No longer than the prompt in words, and at least 80% of the words are words of the prompt."""
    asked, words = split_words(prompt), split_words(completion)
    known = set(asked)
    return len(words) <= len(asked) and sum(word in known for word in words) >= 0.8 * len(words)
