"""A reward for quoting: how much of a completion is word for word in a corpus."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from preftune.errors import ConfigError
from preftune.rewards.base import BuiltIn, check_reward_range


@dataclass(frozen=True, kw_only=True)
class Quote(BuiltIn):
    """Share of a completion's character n-grams that occur in a corpus: the QUIP score of Weller et al. (2023), the
    reward of Quote-tuning (Zhang et al., 2024).

        reward(y) = |{i : y[i : i + n] in corpus}| / (|y| - n + 1)

    Runs of blanks count as one, in both. None for completions shorter than n characters.

    Args:
        corpus: a text file, or a folder whose .txt and .md files are read.
        n: characters of an n-gram; the papers use 25.
    """

    corpus: str
    n: int = 25

    def __post_init__(self) -> None:
        check_reward_range("quote", "n", self.n, 1, 10_000)
        _ = self._grams

    @cached_property
    def _grams(self) -> frozenset[int]:
        """Hashes of all n-grams of the corpus; 64 bits each, so that two texts rarely share one."""
        place = Path(self.corpus).expanduser()
        files = [place] if place.is_file() else sorted([*place.rglob("*.txt"), *place.rglob("*.md")])
        if not files:
            raise ConfigError(
                "corpus of reward 'quote' holds no text",
                got=self.corpus,
                expected="a text file, or a folder with .txt or .md files",
            )
        grams: set[int] = set()
        for file in files:
            try:
                text = " ".join(file.read_text(encoding="utf-8").split())
            except (OSError, UnicodeDecodeError) as error:
                raise ConfigError(f"Reward 'quote' cannot read {file}", got=str(error)) from error
            grams.update(hash(text[i : i + self.n]) for i in range(len(text) - self.n + 1))
        if not grams:
            raise ConfigError(
                "corpus of reward 'quote' is shorter than one n-gram",
                got=self.corpus,
                expected=f"{self.n} characters",
            )
        return frozenset(grams)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> list[float | None]:
        return [self._share(" ".join(text.split())) for text in completions]

    def _share(self, text: str) -> float | None:
        count = len(text) - self.n + 1
        if count < 1:
            return None
        return sum(hash(text[i : i + self.n]) in self._grams for i in range(count)) / count
