"""The census of a data set, and its tokens in color."""

import json
from dataclasses import replace

import pytest
from rich.console import Console

from preftune.data.inspect import group_text, inspect_data
from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.data.render import make_renderer
from preftune.errors import DataError
from tests.data import tokenizers_for_tests as made

PAIR = {"prompt": "Hello", "chosen": "I am fine, thank you", "rejected": "No"}


@pytest.fixture(scope="module")
def chat():
    return made.byte_tokenizer(made.LLAMA3)


def write(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_the_census_of_pairs(tmp_path, chat):
    long = {**PAIR, "prompt": "Hello " * 200}
    path = write(
        tmp_path / "a.jsonl",
        [PAIR, PAIR, {**PAIR, "chosen": "Yes </s> no"}, long, "{broken", {**PAIR, "chosen": "No"}],
    )
    found = inspect_data(path, chat, DataOptions(bad_rows="skip", max_length=100))
    assert (found.format, found.template, found.signals) == ("pairs", "chat", ("pairs", "labels", "rewards"))
    assert (found.num_rows, found.num_bad, found.num_records, found.num_completions) == (6, 1, 4, 8)
    assert found.dropped_rows == {"chosen and rejected are equal": 1}
    assert found.fitted == {"whole": 3, "dropped: too long": 1}
    assert (found.starts_with_bos, found.double_bos) == (4, 0)
    assert (found.completions_ending_turn, found.special_inside) == (8, 1)
    assert (found.duplicate_prompts, found.duplicate_records) == (2, 1)
    assert found.preferred_mean > found.dispreferred_mean > 0
    rejected = prepare(path, chat, "pairs", DataOptions(bad_rows="skip")).groups[0].completions[1]
    assert found.dispreferred_mean == found.dispreferred_tokens.max == len(rejected)
    told = "\n".join(found.lines())
    for words in (
        "signals: pairs, labels, rewards",
        "length bias +",
        "2 records repeat a prompt",
        "broken JSON",
        "1 completions hold a special token",
        "1 records dropped: too long",
    ):
        assert words in told
    values = json.loads(json.dumps(found.as_dict()))
    assert values["prompt_tokens"]["max"] > 200 and "groups" not in values


def test_ties_and_equal_completions_of_scored_rows(tmp_path, chat):
    path = write(
        tmp_path / "a.jsonl",
        [
            {"prompt": "Hi", "completions": ["a", "b", "b"], "rewards": [1, 2, 3]},
            {"prompt": "Ho", "completions": ["Hello there", "b"], "rewards": [1, 1]},
            {"prompt": "Hu", "completions": ["Hello there", "b"], "rewards": [5, 1]},
        ],
    )
    found = inspect_data(path, chat, DataOptions())
    assert (found.identical_completions, found.reward_ties) == (1, 1)
    assert found.preferred_tokens.max > found.dispreferred_tokens.max > 0  # the tie is on neither side


def test_labels_give_two_sides_and_prompts_none(tmp_path, chat):
    labels = write(
        tmp_path / "a.jsonl",
        [
            {"prompt": "Hi", "completion": "Hello there", "label": True},
            {"prompt": "Ho", "completion": "b", "label": False},
        ],
    )
    found = inspect_data(labels, chat, DataOptions())
    assert found.signals == ("labels", "rewards")
    assert found.preferred_tokens.max > found.dispreferred_tokens.max
    prompts = inspect_data(write(tmp_path / "b.jsonl", [{"prompt": "Hi"}]), chat, DataOptions())
    assert prompts.signals == () and "signals: none (prompts only)" in prompts.lines()


def test_too_long_rows_are_counted_even_where_training_would_stop(tmp_path, chat):
    path = write(tmp_path / "a.jsonl", [PAIR])
    found = inspect_data(path, chat, DataOptions(max_length=5, truncation="error"))
    assert found.fitted == {"an error: longer than max_length": 1}


def test_a_bad_row_stops_unless_it_is_skipped(tmp_path):
    path = write(tmp_path / "a.jsonl", [PAIR, {**PAIR, "system": "Be brief"}])
    gemma = made.byte_tokenizer(made.GEMMA)
    with pytest.raises(DataError, match="refuses"):
        inspect_data(path, gemma, DataOptions())
    assert inspect_data(path, gemma, DataOptions(bad_rows="skip")).num_bad == 1


def test_tokens_are_told_apart_by_color(tmp_path, chat):
    path = write(tmp_path / "a.jsonl", [PAIR])
    (text,) = inspect_data(path, chat, DataOptions()).samples()
    spans = [(text.plain[span.start : span.end], str(span.style)) for span in text.spans]
    assert ("<|eot_id|>", "bold black on yellow") in spans[-4:]
    prompt = "".join(piece for piece, style in spans if "dim" in style)
    completions = "".join(piece for piece, style in spans if "green" in style)
    assert prompt.endswith("<|start_header_id|>assistant<|end_header_id|>\n\n") and "<|eot_id|>" in prompt
    assert completions == "I am fine, thank youNo"
    assert "completion 1 chosen" in text.plain and "completion 2 rejected" in text.plain


def test_data_cannot_command_the_terminal(tmp_path, chat):
    row = {"prompt": "a\x1b[31mb [bold]c[/bold]", "chosen": "\x1b]0;title\x07d\u202e", "rejected": "ü 😊"}
    path = write(tmp_path / "a.jsonl", [row, {"prompt": "x", "chosen": "\x1b"}])
    found = inspect_data(path, chat, DataOptions(bad_rows="skip"))
    console = Console(force_terminal=False, width=200)
    with console.capture() as captured:
        for line in [*found.samples(), *found.lines()]:
            console.print(line, markup=False)
    shown = captured.get()
    assert "\x1b" not in shown and "\x07" not in shown and "\u202e" not in shown
    assert "[bold]c[/bold]" in shown and "ü 😊" in shown  # bytes of one character come out together


def test_probabilities_are_shown(tmp_path, chat):
    found = inspect_data(
        write(tmp_path / "a.jsonl", [{**PAIR, "probability": 0.75}, PAIR]), chat, DataOptions()
    )
    assert found.num_soft == 1 and "1 pairs have a probability" in found.lines()
    soft, certain = (text.plain for text in found.samples())
    assert "completion 1 chosen, probability 0.75, " in soft and "completion 2 rejected, " in soft
    assert "probability" not in certain
    assert found.duplicate_records == 0


def test_labels_and_rewards_stand_beside_completions(tmp_path, chat):
    row = {"prompt": "Hi", "completions": ["a", "b"], "rewards": [0.5, 2]}
    group = prepare(write(tmp_path / "a.jsonl", [row]), chat, None, DataOptions()).groups[0]
    plain = group_text(replace(group, sources=(0, 2)), make_renderer(chat)).plain
    assert "completion 1 reward 0.5, source data, 2 tokens" in plain and "source reference, 2 tokens" in plain
    plain = group_text(group, make_renderer(chat)).plain
    assert "completion 1 reward 0.5, 2 tokens" in plain and "completion 2 reward 2, 2 tokens" in plain


def test_a_long_text_is_shown_by_its_ends(tmp_path, chat):
    words = ["first", *["word"] * 20_000, "last"]
    path = tmp_path / "long.jsonl"
    path.write_text(json.dumps({"prompt": "a", "chosen": " ".join(words), "rejected": "b"}) + "\n")
    (text,) = inspect_data(path, chat, DataOptions(max_length=10**6)).samples()
    assert "first" in text.plain and "last" in text.plain and "tokens are not shown" in text.plain
    assert len(text.plain) < 40_000
