"""Flags that messages advise."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import preftune
from preftune.cli.main import VERBS
from tests.advised_flags import flags_of_no_command, impossible_flags

SOURCE = Path(preftune.__file__).parent


@pytest.mark.parametrize(
    ("words", "advice", "found"),
    [
        (["compare"], "Put it back, or insist with --allow-changed data.", ["--allow-changed of compare"]),
        (["train"], "Add --allow-changed log.", ["--allow-changed of train"]),
        (["train", "--resume", "RUN"], "Add --allow-changed log.", []),
        (["compare"], "Insist: preftune train --resume RUN --allow-changed data.", []),
        (
            ["sample"],
            "Lower --batch_size. preftune train --batch_size 2 is another.",
            ["--batch_size of sample"],
        ),
        (["train-reward-model"], "Start at most torchrun --nproc_per_node 2, or lower --batch_size.", []),
        (
            ["chat"],
            "Choose another --output, or add --overwrite.",
            ["--output of chat", "--overwrite of chat"],
        ),
        (["train"], "Set --objective.beta 0.1 or --lora 8.", []),
    ],
)
def test_flags_that_an_advice_names_are_held_against_the_command(words, advice, found):
    """What tests/conftest.py does with each error that a command prints."""
    assert impossible_flags(words, advice) == found


def sentences(file: Path) -> Iterator[str]:
    """The texts of a module with a blank in them, docstrings left out; what stands in braces is a blank."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    aside = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}
    for node in ast.walk(tree):
        aside |= {id(part) for part in node.values} if isinstance(node, ast.JoinedStr) else set()
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(
            part.value if isinstance(part, ast.Constant) and isinstance(part.value, str) else " "
            for part in parts
        )
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in aside and " " in text.strip():
            yield text


def test_every_sentence_of_the_package_names_flags_that_exist():
    found = {
        f"{file.relative_to(SOURCE)}: {text}": flags
        for file in sorted(SOURCE.rglob("*.py"))
        for text in sentences(file)
        if (flags := flags_of_no_command(text))
    }
    assert not found


@pytest.mark.parametrize("verb", sorted(set(VERBS) - {"lab", "diagnose", "completion", "start"}))
def test_the_sentences_of_a_command_name_its_own_flags(verb):
    """Or name the command that has them. `completion` prints shell code, `start` a command over two lines."""
    words = [verb, *(["--resume", "RUN"] if verb == "train" else [])]
    texts = list(sentences(SOURCE / "commands" / f"{verb.replace('-', '_')}.py"))
    assert texts and not [(flags, text) for text in texts if (flags := impossible_flags(words, text))]
