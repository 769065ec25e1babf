"""Rows as people really have them: read right, or refused with a flag that makes them readable."""

import json
import re

import pytest

from preftune.data.options import DataOptions
from preftune.data.records import load_records
from preftune.errors import DataError
from tests.data.layouts import ASK, BAD, GOOD, bot, said, user

ONE = {"prompt": ASK, "completion": GOOD}
PAIR = {"prompt": ASK, "chosen": GOOD, "rejected": BAD}
AB = {"prompt": ASK, "response_a": GOOD, "response_b": BAD}
TWO = {"prompt": ASK, "response_1": GOOD, "response_2": BAD}
MANY = {"prompt": ASK, "completions": [GOOD, BAD]}
CALL = json.dumps({"name": "weather", "arguments": {"town": "Ghent"}})


def load(tmp_path, rows, **options):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_records(path, DataOptions(**options))


def shown(completion):
    return completion if isinstance(completion, str) else completion[-1].content


def last_turn(completion):
    assert not isinstance(completion, str)
    return completion[-1]


def signal(record):
    """What a record says: its pairs, else its labels, else its rewards."""
    texts = [shown(completion) for completion in record.completions]
    if record.pairs:
        return {(texts[i], texts[j]) for i, j in record.pairs}
    known = record.labels or record.rewards
    return dict(zip(texts, known, strict=True)) if known else {}


OVER = {(GOOD, BAD)}
UNDER = {(BAD, GOOD)}
READ = {
    "capitals": ({"Prompt": ASK, "Chosen": GOOD, "Rejected": BAD}, OVER),
    "blanks": ({" prompt ": ASK, "chosen ": GOOD, " rejected": BAD}, OVER),
    "camel case": ({"prompt": ASK, "chosenResponse": GOOD, "rejectedResponse": BAD}, OVER),
    "hyphens": ({"prompt": ASK, "response-1": GOOD, "response-2": BAD, "preference": "response-1"}, OVER),
    "label in capitals": ({"PROMPT": ASK, "COMPLETION": GOOD, "LABEL": "FALSE"}, {GOOD: -1}),
    "side behind": ({"prompt": ASK, "text_chosen": GOOD, "text_rejected": BAD}, OVER),
    "scores with a hyphen": ({**PAIR, "chosen-rating": 4.5, "rejected-rating": 3}, OVER),
    "a score that is NaN": ({**PAIR, "chosen_score": float("nan"), "rejected_score": 3}, OVER),
    "ratings of generations": ({**PAIR, "generations": [BAD, GOOD], "rating": [1.0, 5.0]}, OVER),
    "a list in rating": (
        {"instruction": ASK, "generations": [GOOD, BAD], "rating": [5, 1]},
        {GOOD: 5, BAD: 1},
    ),
    "ratings as text": (
        {"instruction": ASK, "generations": [GOOD, BAD], "ratings": ["5", "1"]},
        {GOOD: 5, BAD: 1},
    ),
    "one rating missing": (
        {"instruction": ASK, "generations": [GOOD, BAD], "ratings": [5, None]},
        {GOOD: 5, BAD: None},
    ),
    "thumb with a skin tone": ({**ONE, "label": "👍🏽"}, {GOOD: 1}),
    "Thumbs Down": ({**ONE, "label": "Thumbs Down"}, {GOOD: -1}),
    "winner A": ({**AB, "winner": "A"}, OVER),
    "winner model_b": ({**AB, "winner": "model_b"}, UNDER),
    "winner [[B]]": ({**AB, "winner": "[[B]]"}, UNDER),
    "winner is the text": ({**AB, "preferred": BAD}, UNDER),
    "winner 2": ({**TWO, "winner": 2}, UNDER),
    "winner 1.0": ({**TWO, "winner": "1.0"}, OVER),
    "votes": ({**AB, "votes_a": 9, "votes_b": 2}, {GOOD: 9, BAD: 2}),
    "a score behind the answer": ({**TWO, "response_1_score": 2, "response_2_score": 1}, {GOOD: 2, BAD: 1}),
    "ranks": ({**MANY, "ranks": [1, 2]}, {GOOD: -1, BAD: -2}),
    "function_call": (
        {
            "conversations": [said("human", ASK), said("function_call", CALL), said("observation", "rain")],
            "chosen": said("gpt", GOOD),
            "rejected": said("gpt", BAD),
        },
        OVER,
    ),
    "role ai": ({"messages": [user(), {"role": "AI", "content": GOOD}], "label": True}, {GOOD: 1}),
    "weight 1": ({**PAIR, "weight": 1}, OVER),
    "the system again": ({**PAIR, "question": ASK}, OVER),
}


@pytest.mark.parametrize("case", READ)
def test_an_unusual_row_is_read(tmp_path, case):
    row, expected = READ[case]
    (record,) = load(tmp_path, [row]).records
    assert signal(record) == expected


REFUSED = {
    "pos, neg": ({"prompt": ASK, "pos": GOOD, "neg": BAD}, "chosen=pos,rejected=neg", OVER),
    "y_w, y_l": ({"prompt": ASK, "y_l": BAD, "y_w": GOOD}, "chosen=y_w,rejected=y_l", OVER),
    "good_reply": ({"query": ASK, "bad_reply": BAD, "good_reply": GOOD}, "chosen=good_reply", OVER),
    "accepted": (
        {"prompt": ASK, "accepted": GOOD, "rejected": BAD},
        "chosen=accepted,rejected=rejected",
        OVER,
    ),
    "lists of turns": (
        {"messages": [user()], "positive_messages": [[bot(GOOD)]], "negative_messages": [[bot(BAD)]]},
        "chosen=positive_messages,rejected=negative_messages",
        OVER,
    ),
    "isGood": ({**ONE, "isGood": False}, "label=isGood", {GOOD: -1}),
    "thumbs-up": ({**ONE, "thumbs-up": False}, "label=thumbs-up", {GOOD: -1}),
    "passed": ({**ONE, "passed": False}, "label=passed", {GOOD: -1}),
    "upvoted": ({**ONE, "upvoted": True}, "label=upvoted", {GOOD: 1}),
    "output and thumbs": (
        {"input": ASK, "output": GOOD, "thumbs": "down"},
        "completion=output,label=thumbs",
        {GOOD: -1},
    ),
    "answer and stars": (
        {"input": ASK, "output": GOOD, "stars": 4},
        "completion=output,reward=stars",
        {GOOD: 4},
    ),
    "rating inside": ({**ONE, "meta": {"rating": 1}}, "reward=meta.rating", {GOOD: 1}),
    "rating in JSON text": ({**ONE, "meta": '{"rating": 1}'}, "reward=meta.rating", {GOOD: 1}),
    "votes of a list": ({**MANY, "votes": [9, 1]}, "rewards=votes", {GOOD: 9, BAD: 1}),
    "ranking of a list": ({**MANY, "ranking": [1, 2]}, "ranks=ranking", {GOOD: -1, BAD: -2}),
    "thumbs of entries": (
        {"prompt": ASK, "responses": [{"text": GOOD, "thumbs": "up"}, {"text": BAD, "thumbs": "down"}]},
        "completions=responses.text,labels=responses.thumbs",
        {GOOD: 1, BAD: -1},
    ),
    "scores of entries": (
        {"prompt": ASK, "samples": [{"text": GOOD, "quality": 2}, {"text": BAD, "quality": 1}]},
        "completions=samples.text,rewards=samples.quality",
        {GOOD: 2, BAD: 1},
    ),
    "thoughts apart": (
        {**ONE, "thinking": "It flows.", "label": True},
        "reasoning_content=thinking",
        {GOOD: 1},
    ),
    "system_instruction": ({**PAIR, "system_instruction": "Be brief."}, "system=system_instruction", OVER),
    "functions": ({**PAIR, "functions": [{"name": "weather"}]}, "tools=functions", OVER),
    "knowledge": ({**PAIR, "knowledge": "Rivers flow."}, "prompt=knowledge+prompt", OVER),
}


@pytest.mark.parametrize("case", REFUSED)
def test_the_advice_makes_the_row_readable(tmp_path, case):
    row, advice, expected = REFUSED[case]
    with pytest.raises(DataError) as error:
        load(tmp_path, [row])
    message = str(error.value)
    assert advice in message
    columns = re.search(r"--rows\.columns (\S+?)\.? ", message)
    assert columns is not None, message
    (record,) = load(tmp_path, [row], columns=columns[1].rstrip(".;")).records
    assert signal(record) == expected


IGNORED = {
    "a nested winner": ({**PAIR, "meta": {"winner": "b"}}, "meta.winner"),
    "a rating of a turn": ({**PAIR, "prompt": [{**user(), "rating": 1}]}, "prompt.rating"),
    "a score of an answer": ({**PAIR, "chosen": [{**bot(GOOD), "score": 1}]}, "chosen.score"),
    "a flag of an entry": (
        {
            "prompt": ASK,
            "completions": [{"text": GOOD, "score": 2, "is_safe": False}, {"text": BAD, "score": 1}],
        },
        "completions.is_safe",
    ),
    "files of a turn": ({**PAIR, "prompt": [{**user(), "attachments": ["a.txt"]}]}, "prompt.attachments"),
    "a rating beside the messages": (
        {
            "input": {"messages": [user()], "rating": 3},
            "preferred_output": [bot(GOOD)],
            "non_preferred_output": [bot(BAD)],
        },
        "input.rating",
    ),
    "a third answer": ({**TWO, "response_3": "A hat.", "winner": 1}, "response_3"),
    "a weight": ({**PAIR, "weight": 0.0}, "weight"),
    "a swapped pair": ({**PAIR, "swapped": True}, "swapped"),
    "a preference": ({**PAIR, "Preference": "rejected"}, "Preference"),
    "another question": ({**PAIR, "question": "Name a hill."}, "question"),
}


@pytest.mark.parametrize("case", IGNORED)
def test_a_column_that_is_not_used_can_be_ignored(tmp_path, case):
    row, name = IGNORED[case]
    with pytest.raises(
        DataError, match=f"column {re.escape(name)} is not used.*--rows.ignore {re.escape(name)}"
    ):
        load(tmp_path, [row])
    loaded = load(tmp_path, [row], ignore=name)
    assert loaded.columns[name] == "ignored" and signal(loaded.records[0])


WRONG = {
    "winner 1 of a and b": ({**AB, "winner": 1}, r"end in a and b.*'winner=winner\{1:\?,OTHER:\?\}'"),
    "winner -1": ({**TWO, "winner": -1}, "a number with a sign could be a strength"),
    "winner true": ({**AB, "winner": True}, "true or false does not say which answer"),
    "winner both_bad": ({**AB, "winner": "both_bad"}, "tie"),
    "winner of a third model": ({**AB, "model_a": "x", "model_b": "y", "winner": "z"}, "not understood"),
    "words for a strength": (
        {**AB, "preference_strength": "much better"},
        r"'winner=preference_strength\{much better:\?,OTHER:\?\}'",
    ),
    "scores against the winner": (
        {**AB, "winner": "b", "score_a": "9", "score_b": "2"},
        "contradict the verdict",
    ),
    "ratings against the pair": (
        {**PAIR, "generations": [GOOD, BAD], "rating": [1, 5]},
        "rating contradicts the pair",
    ),
    "votes against the pair": ({**PAIR, "chosen_votes": 1, "rejected_votes": 5}, "contradict the pair"),
    "ranks against scores": (
        {
            "prompt": ASK,
            "completions": [{"text": GOOD, "score": 2, "rank": 2}, {"text": BAD, "score": 1, "rank": 1}],
        },
        "ranks in completions contradict the scores",
    ),
    "two answers, no verdict": (AB, "chosen=response_a,rejected=response_b"),
    "an earlier label": (
        {"messages": [user(), {**bot("x"), "label": False}, user(), {**bot(GOOD), "label": True}]},
        "An earlier turn of messages has a label too",
    ),
    "an empty label": ({**ONE, "label": ""}, "label is empty"),
    "three labels of a list": (
        {"prompt": ASK, "completions": [GOOD, BAD, "x"], "labels": [1, 0, -1]},
        r"'labels=labels\{1:1,0:0,-1:-1\}'",
    ),
    "an image": (
        {**PAIR, "prompt": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
        "a part that is not text",
    ),
    "two weights": (
        {"messages": [user(), {**bot(GOOD), "weight": 1, "train": False}]},
        "two different weights",
    ),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_row_that_says_two_things_is_refused(tmp_path, case):
    row, words = WRONG[case]
    with pytest.raises(DataError, match=words):
        load(tmp_path, [row])


def test_labels_of_a_list_can_be_mapped(tmp_path):
    row = {"prompt": ASK, "completions": [GOOD, BAD, "x"], "labels": [1, 0, -1]}
    (record,) = load(tmp_path, [row], columns="labels=labels{1:1,0:0,-1:-1}").records
    assert record.labels == (1, None, -1)


@pytest.mark.parametrize(
    ("first", "last", "prompt", "answers"),
    [
        (None, None, 3, [GOOD]),
        (0, 1, 3, [GOOD]),
        (0, None, 3, [GOOD]),
        (1, 1, 1, ["Hello.", GOOD]),
        (None, 1, 1, ["Hello.", GOOD]),
        (1, 0, 1, ["Hello.", GOOD]),
    ],
)
@pytest.mark.parametrize("name", ["weight", "train", "loss"])
def test_weights_say_where_the_completion_begins(tmp_path, name, first, last, prompt, answers):
    """As OpenAI has it: where turns have weights, an answer without one is learned from."""
    turns: list[dict] = [user("Hi."), bot("Hello."), user(), bot(GOOD)]
    for place, weight in ((1, first), (3, last)):
        if weight is not None:
            turns[place] = {**turns[place], name: weight if name == "weight" else bool(weight)}
    (record,) = load(tmp_path, [{"messages": turns}], format="completions").records
    (completion,) = record.completions
    written = (
        [completion]
        if isinstance(completion, str)
        else [t.content for t in completion if t.role == "assistant"]
    )
    assert (len(record.prompt), written) == (prompt, answers)
    if not isinstance(completion, str):
        assert [turn.weight for turn in completion if turn.role == "assistant"][-1] == last


def test_reasoning_among_parts_of_the_content_is_kept(tmp_path):
    thought = {"type": "thinking", "thinking": [{"type": "text", "text": "It flows."}]}
    row = {
        **PAIR,
        "chosen": [{"role": "assistant", "content": [thought, {"type": "output_text", "text": GOOD}]}],
    }
    (record,) = load(tmp_path, [row]).records
    turn = last_turn(record.completions[0])
    assert (turn.content, turn.reasoning) == (GOOD, "It flows.")


def test_reasoning_of_a_column_is_kept(tmp_path):
    (record,) = load(tmp_path, [{**ONE, "reasoning_content": "It flows.", "label": 1}]).records
    turn = last_turn(record.completions[0])
    assert (turn.content, turn.reasoning) == (GOOD, "It flows.")


def test_the_account_has_the_names_of_the_user(tmp_path):
    loaded = load(tmp_path, [{"Prompt": ASK, "chosen ": GOOD, "Rejected": BAD, "Lang": "en"}])
    assert loaded.columns == {
        "Prompt": "prompt",
        "chosen ": "chosen completion",
        "Rejected": "rejected completion",
        "Lang": "not used",
    }


def test_a_name_that_stands_twice_is_left_alone(tmp_path):
    with pytest.raises(DataError, match=r"column Prompt is not used.*a part of the prompt"):
        load(tmp_path, [{**PAIR, "Prompt": "Another."}])


def test_numbers_of_two_kinds_are_labels_where_nothing_else_is(tmp_path):
    rows = [{**ONE, "flag": flag} for flag in (0, 1)]
    with pytest.raises(DataError, match=r"column flag is not used.*label=flag"):
        load(tmp_path, rows)
    assert load(tmp_path, [{**PAIR, "flag": flag} for flag in (0, 1)]).census == {"pairs": 2}
