"""The English of everything a user reads: README, documentation, `--help`, error messages.

A list of archaisms, literal translations and British spellings with the standard word for each. Code, inline
code and link targets are not prose.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from preftune.cli.outline import objective_outlines, outline_of

ROOT = Path(__file__).parents[2]
SOURCE = ROOT / "src" / "preftune"

# pattern (case-insensitive, whole words) -> what to write instead
WORDS = {
    "beside": "in addition to, next to, with",
    "foretold": "predicted",
    "(?:un)?judged": "scored",
    "told|tells?": "report, print, state, distinguish",
    "asked|asks": "query, request, require",
    "by hand": "manually",
    "of now": "current",
    "to be had": "available",
    "whoever": "name the subject",
    "nobody|anybody|somebody": "name the subject",
    "at the (?:best|most|least)": "at best, at most, at least",
    "for want of": "without",
    "so many|so much": "name the number",
    "go(?:es)? on|going on|went on": "continue, resume",
    "settles?": "determine, converge",
    "says|say": "state, show, specify",
    "stands?(?! for\\b)": "is, remains",
    "of (?:its|their|his|one's) own": "separate, its",
    "ones": "repeat the noun",
    "without a word": "silently",
    "for ever": "permanently",
    "but for": "except for",
    "of old": "previous",
    "behaviours?": "behavior",
    "hyper-parameters?": "hyperparameter",
    "learnt": "learned",
    "centred?|centring": "center",
    "towards": "toward",
    r"(?:neighb|fav|col|flav|hon)our\w*": "-or-",
    r"(?:token|optim|normal|initial|general|quant|util|regular|standard|summar|serial)is(?:e[drs]?|ing|ation)": "-iz-",
}
PATTERN = re.compile("|".join(rf"\b(?:{words})\b" for words in WORDS), re.IGNORECASE)

# exact quotations that contain a listed word -> why they are right
QUOTES = {"*Towards Efficient Exact Optimization of Language Model Alignment*": "title of a paper"}

# Pages that another rewrite covers at present. Remove a page here once it passes.
PENDING = {"docs/data.md", "docs/health.md", "docs/models.md"}
# Listed words in the texts of src at present. The numbers may only fall.
HELP_LIMIT = 64
ERROR_LIMIT = 38

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in [ROOT / "README.md", ROOT / "docs" / "llms.txt", *(ROOT / "docs").rglob("*.md")]
    if "dev" not in path.relative_to(ROOT).parts
)


def prose_lines(markdown: str) -> Iterator[tuple[int, str]]:
    """Number and text of each line outside code blocks, without link targets and exact quotations."""
    fenced = False
    for number, line in enumerate(markdown.splitlines(), 1):
        if line.lstrip().startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            for quote in QUOTES:
                line = line.replace(quote, "")
            yield number, re.sub(r"\]\([^)]*\)", "]", line)


def better(word: str) -> str:
    return next(do for words, do in WORDS.items() if re.fullmatch(words, word, re.IGNORECASE))


def faults(text: str, where: str) -> list[str]:
    """The listed words outside inline code and quoted values such as "paired"."""
    prose = re.sub(r"""`[^`]*`|"[\w-]*"|'[\w-]*'""", "", text)
    return [f"{where}: {word} -> {better(word)}" for word in PATTERN.findall(prose)]


@pytest.mark.parametrize("page", [page for page in PAGES if page not in PENDING])
def test_page_has_no_listed_word(page):
    text = (ROOT / page).read_text(encoding="utf-8")
    assert [fault for number, line in prose_lines(text) for fault in faults(line, f"{page}:{number}")] == []


def test_pending_pages_and_quotes_exist():
    assert set(PAGES) >= PENDING
    texts = [(ROOT / page).read_text(encoding="utf-8") for page in PAGES]
    assert [quote for quote in QUOTES if not any(quote in text for text in texts)] == []


def test_help_texts_have_no_more_listed_words():
    outlines = {path.stem: outline_of(path.stem) for path in sorted((SOURCE / "commands").glob("*.py"))}
    texts = {
        f"{command} --{setting.name}": setting.help
        for command, outline in outlines.items()
        if outline is not None
        for setting in outline.settings
    }
    texts |= {command: outline.summary for command, outline in outlines.items() if outline is not None}
    texts |= {
        f"{name} --{setting.name}": setting.help
        for name, settings in objective_outlines().items()
        for setting in settings
    }
    found = sorted({f"{text}: {fault}" for where, text in texts.items() for fault in faults(text, where)})
    assert len(found) <= HELP_LIMIT, "\n".join(found)


def raised_texts(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Line and text of every string in the call of a `raise`."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call):
            for part in ast.walk(node.exc):
                if isinstance(part, ast.Constant) and isinstance(part.value, str):
                    yield part.lineno, part.value


def test_error_messages_have_no_more_listed_words():
    found = [
        f"{text!r}: {fault}"
        for path in sorted(SOURCE.rglob("*.py"))
        for line, text in raised_texts(ast.parse(path.read_text(encoding="utf-8")))
        for fault in faults(text, f"{path.relative_to(ROOT)}:{line}")
    ]
    assert len(found) <= ERROR_LIMIT, "\n".join(found)


def test_the_check_sees_prose_and_not_code():
    text = "It tells `judged`, [by hand](told.md)\n```\nbeside\n```\n    ones\nBehaviour, tokeniser. It stands for 5"
    found = [fault for number, line in prose_lines(text) for fault in faults(line, str(number))]
    assert [fault.split(" ->")[0] for fault in found] == [
        "1: tells",
        "1: by hand",
        "6: Behaviour",
        "6: tokeniser",
    ]
