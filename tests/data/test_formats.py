"""Every format with the layouts that users have: found by its columns, converted to the same records."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preftune.data.formats import FORMATS, Drop, detect
from preftune.data.options import FormatName
from preftune.types import Message, Record


def turn(role, content):
    return {"role": role, "content": content}


def said(source, value):
    return {"from": source, "value": value}


HI, YES, NO = turn("user", "Hi"), turn("assistant", "yes"), turn("assistant", "no")
USER = (Message(role="user", content="Hi"),)
SYSTEM = (Message(role="system", content="Be brief"), *USER)
LONG = (*USER, Message(role="assistant", content="Hello"), Message(role="user", content="So?"))
LONG_TURNS = [HI, turn("assistant", "Hello"), turn("user", "So?")]
HH = "\n\nHuman: Hi\n\nAssistant: Hello\n\nHuman: So?\n\nAssistant:"

PAIRS = {
    "pairs: text": ("pairs", {"prompt": "Hi", "chosen": "yes", "rejected": "no"}, "Hi"),
    "pairs: question": ("pairs", {"question": "Hi", "chosen": "yes", "rejected": "no"}, "Hi"),
    "pairs: system and question": (
        "pairs",
        {"system": "Be brief", "question": "Hi", "chosen": "yes", "rejected": "no"},
        SYSTEM,
    ),
    "pairs: empty system": (
        "pairs",
        {"system": "", "question": "Hi", "chosen": "yes", "rejected": "no"},
        "Hi",
    ),
    "pairs: alpaca": (
        "pairs",
        {"instruction": "Say", "input": "Hi", "chosen": "yes", "rejected": "no"},
        "Say\nHi",
    ),
    "pairs: alpaca with history": (
        "pairs",
        {"instruction": "So?", "input": "", "history": [["Hi", "Hello"]], "chosen": "yes", "rejected": "no"},
        LONG,
    ),
    "pairs: responses": (
        "pairs",
        {"prompt": "Hi", "chosen_response": "yes", "rejected_response": "no"},
        "Hi",
    ),
    "pairs: turns": ("pairs", {"prompt": [HI], "chosen": [YES], "rejected": [NO]}, USER),
    "pairs: one turn each": ("pairs", {"prompt": [HI], "chosen": YES, "rejected": NO}, USER),
    "pairs: whole dialogues": ("pairs", {"prompt": "Hi", "chosen": [HI, YES], "rejected": [HI, NO]}, USER),
    "pairs: whole dialogues, long": (
        "pairs",
        {"prompt": "Hi", "chosen": [*LONG_TURNS, YES], "rejected": [*LONG_TURNS, NO]},
        LONG,
    ),
    "pairs: whole dialogues with a system turn": (
        "pairs",
        {
            "prompt": [HI],
            "chosen": [turn("system", "Be brief"), HI, YES],
            "rejected": [turn("system", "Be brief"), HI, NO],
        },
        SYSTEM,
    ),
    "pairs: messages and rejected_response": (
        "pairs",
        {"messages": [HI, YES], "rejected_response": "no"},
        USER,
    ),
    "pairs: parts": (
        "pairs",
        {"prompt": [turn("user", [{"type": "text", "text": "Hi"}])], "chosen": "yes", "rejected": "no"},
        USER,
    ),
    "dialogues: turns": ("dialogues", {"chosen": [*LONG_TURNS, YES], "rejected": [*LONG_TURNS, NO]}, LONG),
    "dialogues: transcript": ("dialogues", {"chosen": HH + " yes", "rejected": HH + " no"}, LONG),
    "sharegpt": (
        "sharegpt",
        {"conversations": [said("human", "Hi")], "chosen": said("gpt", "yes"), "rejected": said("gpt", "no")},
        USER,
    ),
    "sharegpt: system": (
        "sharegpt",
        {
            "conversations": [said("system", "Be brief"), said("human", "Hi")],
            "chosen": said("gpt", "yes"),
            "rejected": said("gpt", "no"),
        },
        SYSTEM,
    ),
    "sharegpt: system beside": (
        "sharegpt",
        {
            "conversations": [said("human", "Hi")],
            "system": "Be brief",
            "chosen": said("gpt", "yes"),
            "rejected": said("gpt", "no"),
        },
        SYSTEM,
    ),
}


@pytest.mark.parametrize("case", PAIRS)
def test_pairs(case):
    name, row, prompt = PAIRS[case]
    row = {**row, "extra": 7}
    assert detect([row]).name == name
    expected = Record(prompt=prompt, completions=("yes", "no"), pairs=((0, 1),), columns={"extra": 7})
    assert FORMATS[name].convert(row) == expected


@pytest.mark.parametrize(
    ("value", "probabilities"),
    [(0.8, (0.8,)), ("0.8", (0.8,)), (0, (0.0,)), (1, (1.0,)), (None, ()), ("", ())],
)
@pytest.mark.parametrize("column", ["probability", "chosen_prob", "chosen_probs"])
@pytest.mark.parametrize(
    "row",
    [
        {"prompt": "Hi", "chosen": "yes", "rejected": "no"},
        {"chosen": [HI, YES], "rejected": [HI, NO]},
        {"conversations": [said("human", "Hi")], "chosen": said("gpt", "yes"), "rejected": said("gpt", "no")},
    ],
)
def test_the_probability_of_a_pair(row, column, value, probabilities):
    row = {**row, column: value, "chosen_probs_win": 0.9}
    record = FORMATS[detect([row]).name].convert(row)
    assert isinstance(record, Record)
    assert (record.probabilities, record.columns) == (probabilities, {"chosen_probs_win": 0.9})


TWO = ("yes", "no")
REWARDS = {
    "scored": ("scored", {"prompt": "Hi", "completions": ["yes", "no"], "rewards": [1, -0.5]}, (1.0, -0.5)),
    "scored: scores": (
        "scored",
        {"prompt": [HI], "responses": [[YES], "no"], "scores": ["1", 2]},
        (1.0, 2.0),
    ),
    "ultrafeedback": (
        "ultrafeedback",
        {
            "instruction": "Hi",
            "completions": [
                {"response": "yes", "overall_score": 8.5, "model": "a"},
                {"response": "no", "overall_score": 3},
            ],
        },
        (8.5, 3.0),
    ),
    "ranked": (
        "ranked",
        {"prompt": "Hi", "completions": [{"completion": "yes", "rank": 1}, {"completion": "no", "rank": 2}]},
        (-1.0, -2.0),
    ),
    "ranked: answers": (
        "ranked",
        {"prompt": "Hi", "answers": [{"answer": "yes", "rank": 2.0}, {"answer": "no", "rank": 1.0}]},
        (-2.0, -1.0),
    ),
    "ranked: context": (
        "ranked",
        {"context": [HI], "completions": [{"rank": 0, "completion": [YES]}, {"rank": 1, "completion": [NO]}]},
        (0.0, -1.0),
    ),
    "ranked: ranks": (
        "ranked",
        {"prompt": "Hi", "completions": ["yes", "no"], "ranks": [2, 1]},
        (-2.0, -1.0),
    ),
}


@pytest.mark.parametrize("case", REWARDS)
def test_rewards(case):
    name, row, rewards = REWARDS[case]
    assert detect([row]).name == name
    record = FORMATS[name].convert(row)
    assert isinstance(record, Record)
    assert (record.completions, record.rewards, record.pairs, record.labels) == (TWO, rewards, (), ())
    assert record.prompt in ("Hi", USER) and record.columns == {}


GROUP = {"prompt": "Hi", "completions": ["a", [turn("assistant", "b")], "c"], "pairs": [[2, 0], [1, 0]]}


def test_a_group_is_all_that_a_record_can_know():
    row = {
        **GROUP,
        "probabilities": [0.75, 1],
        "labels": [True, None, -1],
        "rewards": [0, None, "1.5"],
        "sources": ["data", "policy", "reference"],
        "ended": [True, False, True],
        "extra": 7,
    }
    assert detect([row]).name == "groups"
    assert FORMATS["groups"].convert(row) == Record(
        prompt="Hi",
        completions=("a", "b", "c"),
        pairs=((2, 0), (1, 0)),
        probabilities=(0.75, 1.0),
        labels=(1, None, -1),
        rewards=(0.0, None, 1.5),
        sources=("data", "policy", "reference"),
        ended=(True, False, True),
        columns={"extra": 7},
    )


@pytest.mark.parametrize("pairs", [{}, {"pairs": []}, {"pairs": None}])
def test_a_group_may_be_samples_only(pairs):
    row = {"prompt": "Hi", "completions": ["a", "b"], "sources": ["policy", "policy"], **pairs}
    assert detect([row]).name == "groups"
    assert FORMATS["groups"].convert(row) == Record(
        prompt="Hi", completions=("a", "b"), sources=("policy", "policy")
    )


def test_a_column_sources_of_another_meaning_is_left_alone():
    row = {"prompt": "Hi", "completions": ["a", "b"], "rewards": [0, 1], "sources": ["a book", "policy"]}
    form = detect([row])
    record = form.convert(row)
    assert isinstance(record, Record)
    assert (form.name, record.columns) == ("scored", {"sources": ["a book", "policy"]})
    assert detect([{**row, "sources": []}]).name == detect([{**row, "sources": "policy"}]).name == "scored"


SINGLES = {
    "labels": ("labels", {"prompt": "Hi", "completion": "yes", "label": True}, 1),
    "labels: kto_tag": ("labels", {"instruction": "Hi", "output": "yes", "kto_tag": False}, -1),
    "labels: turns": ("labels", {"prompt": [HI], "completion": [YES], "label": 0}, -1),
    "messages_label": ("messages_label", {"messages": [HI, YES], "label": False}, -1),
    "messages_label: on the last turn": ("messages_label", {"messages": [HI, {**YES, "label": True}]}, 1),
    "messages_label: sharegpt": (
        "messages_label",
        {"conversations": [said("human", "Hi"), said("gpt", "yes")], "kto_tag": True},
        1,
    ),
    "completions": ("completions", {"prompt": "Hi", "completion": "yes"}, 1),
    "completions: messages": ("completions", {"messages": [HI, YES]}, 1),
    "completions: alpaca": ("completions", {"instruction": "Hi", "input": "", "output": "yes"}, 1),
}


@pytest.mark.parametrize("case", SINGLES)
def test_single_completions(case):
    name, row, label = SINGLES[case]
    assert detect([row]).name == name
    record = FORMATS[name].convert(row)
    assert isinstance(record, Record)
    labels = () if name == "completions" else (label,)  # without a label, nothing is said of the completion
    assert (record.completions, record.labels) == (("yes",), labels)
    assert record.prompt in ("Hi", USER) and record.columns == {}


@pytest.mark.parametrize(
    ("value", "label"),
    [
        (True, 1),
        (1, 1),
        (1.0, 1),
        ("true", 1),
        ("True", 1),
        ("1", 1),
        ("+1", 1),
        (False, -1),
        (0, -1),
        (-1, -1),
        ("false", -1),
        ("0", -1),
        ("-1", -1),
    ],
)
def test_labels_are_understood(value, label):
    record = FORMATS["labels"].convert({"prompt": "Hi", "completion": "yes", "label": value})
    assert isinstance(record, Record) and record.labels == (label,)


def test_a_single_scored_completion():
    row = {"input": "Hi", "output": "yes", "reward": 0.25}
    record = FORMATS[detect([row]).name].convert(row)
    assert record == Record(prompt="Hi", completions=("yes",), rewards=(0.25,))


@pytest.mark.parametrize("row", [{"prompt": "Hi"}, {"question": "Hi"}, {"messages": [HI]}])
def test_prompts_keep_the_other_columns_for_rewards(row):
    row = {**row, "answer": "42"}
    record = FORMATS[detect([row]).name].convert(row)
    assert isinstance(record, Record)
    assert (record.completions, record.columns) == ((), {"answer": "42"})


def test_the_binarised_ultrafeedback_row_is_a_pair():
    row = {
        "prompt": "Hi",
        "prompt_id": "x",
        "chosen": [HI, YES],
        "rejected": [HI, NO],
        "messages": [HI, YES],
        "score_chosen": 9.0,
        "score_rejected": 4.0,
    }
    assert detect([row]).name == "pairs"
    record = FORMATS["pairs"].convert(row)
    assert isinstance(record, Record) and record.prompt == USER
    assert set(record.columns) == {"prompt_id", "messages"}


def test_consecutive_turns_of_a_transcript_are_one_turn():
    start = "\n\nHuman: Hi\n\nAssistant: Hello\n\nAssistant: there\n\nHuman: So?\n\nAssistant:"
    row = {"chosen": start + " yes\n\nAssistant: indeed", "rejected": start + " no"}
    record = FORMATS["dialogues"].convert(row)
    assert isinstance(record, Record)
    assert record.completions == ("yes\nindeed", "no")
    assert [message.content for message in record.prompt] == ["Hi", "Hello\nthere", "So?"]


def test_an_empty_answer_of_a_transcript_and_equal_answers_are_dropped():
    empty = FORMATS["dialogues"].convert({"chosen": HH + " ", "rejected": HH + " no"})
    assert empty == Drop(reason="empty completion")
    for row in (
        {"chosen": HH + " no", "rejected": HH + " no "},
        {"prompt": "Hi", "chosen": "a", "rejected": "a"},
    ):
        assert FORMATS[detect([row]).name].convert(row) == Drop(reason="chosen and rejected are equal")


@pytest.mark.parametrize(
    ("chosen", "rejected", "prompt"),
    [
        ("Q: hi A: yes", "Q: hi A: no", "Q: hi A:"),
        ("Q: hi A: yes", "Q: hi A: yet", "Q: hi A:"),  # never inside a word
        ("one two three", "one two", "one"),
        ("Q\nA", "Q\nB", "Q\n"),
    ],
)
def test_two_texts_part_at_a_word_boundary(chosen, rejected, prompt):
    record = FORMATS["dialogues"].convert({"chosen": chosen, "rejected": rejected})
    assert isinstance(record, Record) and record.prompt == prompt
    assert [prompt + completion for completion in record.completions] == [chosen, rejected]


words = st.lists(st.sampled_from(["a", "b", "ab", " ", "\n"]), max_size=6).map("".join)


@given(shared=words, left=words, right=words)
def test_prompt_and_completions_of_two_texts_make_them_again(shared, left, right):
    chosen, rejected = f"x {shared}{left} y", f"x {shared}{right} z"
    record = FORMATS["dialogues"].convert({"chosen": chosen, "rejected": rejected})
    assert isinstance(record, Record) and isinstance(record.prompt, str)
    assert [record.prompt + completion for completion in record.completions] == [chosen, rejected]
    assert all(completion.strip() for completion in record.completions)


def test_a_few_bad_rows_do_not_hide_the_format():
    good = {"prompt": "Hi", "chosen": "yes", "rejected": "no"}
    assert detect([{"prompt": "Hi", "chosen": "yes"}, good, good]).name == "pairs"


def test_the_table_has_every_format_that_the_options_name():
    assert {"auto", *FORMATS} == set(FormatName.__args__)
    assert all(name == form.name for name, form in FORMATS.items())
