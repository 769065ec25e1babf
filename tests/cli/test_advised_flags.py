"""Flags that messages advise."""

import pytest

from tests.advised_flags import impossible_flags


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
