"""Completions token by token, colored by how much more or less likely training made each token."""

import math
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from preftune.text import plural, signed_text

EDGES = (0.03, 0.1, 0.3, 1.0, 3.0)  # nats; the same on every page, so that pages compare
MAX_TOKENS = 400  # of a completion
NUM_OPEN, NUM_FOLDED_PAIRS = 4, 12  # pairs at once, and behind "more"
NUM_NAMED = 3  # tokens that moved most, in words
SIDE_LABELS = {"chosen": "chosen", "rejected": "rejected", "completion": "completion"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token as the page shows it."""

    shown: str  # with what cannot be seen made visible
    title: str  # its log-ratio, and its probability under the reference and now
    look: str  # class of the style sheet: "up3", "down1", or "even"
    log_ratio: float


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenRow:
    """One completion with its tokens."""

    run: str
    pair: int
    side: str  # a key of SIDES
    prompt: str
    tokens: tuple[Token, ...]  # those shown
    num_tokens: int
    log_ratio: float  # of the whole completion, nats

    @property
    def facts(self) -> str:
        return f"log-ratio {signed_text(self.log_ratio)} over {plural(self.num_tokens, 'token')}"

    @property
    def most(self) -> str:
        """The tokens that moved most, in words: for readers who have neither colors nor a mouse."""
        order = sorted(self.tokens, key=lambda one: -abs(one.log_ratio))[:NUM_NAMED]
        return ", ".join(f"“{one.shown.strip() or one.shown}” {signed_text(one.log_ratio)}" for one in order)

    @property
    def num_left_out(self) -> int:
        return self.num_tokens - len(self.tokens)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenPair:
    """A prompt and its completions under each run."""

    label: str
    prompt: str
    rows: tuple[TokenRow, ...]  # by run, then side

    @property
    def several(self) -> bool:
        """Whether more than one run is shown."""
        return len({row.run for row in self.rows}) > 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Swatch:
    """An entry of the legend."""

    look: str
    text: str


def parse_token_row(row: Mapping[str, object]) -> TokenRow | None:
    """A line of tokens.jsonl, None where a field is missing or of the wrong type."""
    pair, entries = row.get("pair"), row.get("tokens")
    if not isinstance(pair, int) or isinstance(pair, bool) or not isinstance(entries, list) or not entries:
        return None
    run, side, prompt = (row.get(key) for key in ("run", "side", "prompt"))
    if not (
        isinstance(run, str) and isinstance(prompt, str) and isinstance(side, str) and side in SIDE_LABELS
    ):
        return None
    tokens = [_token(entry) for entry in entries]
    known = [one for one in tokens if one is not None]
    if len(known) < len(tokens):
        return None
    return TokenRow(
        run=run,
        pair=pair,
        side=side,
        prompt=prompt,
        tokens=tuple(known[:MAX_TOKENS]),
        num_tokens=len(known),
        log_ratio=math.fsum(one.log_ratio for one in known),
    )


def token_pairs(rows: Sequence[TokenRow]) -> list[TokenPair]:
    """The pairs in their order."""
    found: dict[int, list[TokenRow]] = {}
    for row in rows:
        found.setdefault(row.pair, []).append(row)
    return [
        TokenPair(label=f"pair {pair + 1}", prompt=ones[0].prompt, rows=tuple(ones))
        for pair, ones in sorted(found.items())
    ]


def look(log_ratio: float) -> str:
    """The class of a log-ratio: how many edges its size reaches, and its direction."""
    level = sum(abs(log_ratio) >= edge for edge in EDGES)
    return f"{'up' if log_ratio > 0 else 'down'}{level}" if level else "even"


def token_legend() -> list[Swatch]:
    """From much less likely to much more likely; a number is where its color begins."""
    below = [Swatch(look=look(-edge), text=f"−{edge:g}") for edge in reversed(EDGES)]
    above = [Swatch(look=look(edge), text=f"+{edge:g}") for edge in EDGES]
    return [*below, Swatch(look="even", text="0"), *above]


def visible(text: str) -> str:
    """A token with marks for what the eye would miss: line ends, tabs, spaces alone, controls, and no text at
    all.
    """
    if not text:
        return "◌"  # bytes of a character that a later token completes
    if not text.strip(" "):
        return "·" * len(text)
    return "".join(map(_visible, text))


def _visible(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if character == "\t":
        return "⇥\t"
    if (
        unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") and character != "\u200d"
    ):  # which joins emoji
        return f"⟨U+{ord(character):04X}⟩"  # Unicode has pictures of some controls, fonts seldom do
    return character


def _token(entry: object) -> Token | None:
    if not isinstance(entry, Mapping):
        return None
    text, logp, ref_logp = entry.get("text"), _finite(entry.get("logp")), _finite(entry.get("ref_logp"))
    if not isinstance(text, str) or logp is None or ref_logp is None:
        return None
    log_ratio = logp - ref_logp
    title = f"{signed_text(log_ratio)}: {_share(ref_logp)} → {_share(logp)}"
    return Token(shown=visible(text), title=title, look=look(log_ratio), log_ratio=log_ratio)


def _finite(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if abs(value) < 1e300 else None  # false for nan too


def _share(logp: float) -> str:
    return f"{100 * math.exp(min(logp, 0.0)):.3g}%"
