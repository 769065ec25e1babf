"""Flags that a refusal names make the file readable when they are followed to the letter; places of answers;
turns in other shapes.
"""

import json
import re
import shlex

import pytest

from preftune.data.options import DataOptions
from preftune.data.records import load_records
from preftune.errors import DataError
from tests.data.layouts import ASK, BAD, GOOD, bot, user

OVER = {(GOOD, BAD)}
THREE = {"prompt": ASK, "responses": ["A hat.", GOOD, BAD]}


def load(tmp_path, rows, name="rows.jsonl", **options):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return load_records(path, DataOptions(**options))


def texts(record):
    return [text if isinstance(text, str) else text[-1].content for text in record.completions]


def pairs_of(loaded):
    return {
        (texts(record)[good], texts(record)[bad]) for record in loaded.records for good, bad in record.pairs
    }


def labels_of(loaded):
    return {
        text: label
        for record in loaded.records
        for text, label in zip(texts(record), record.labels or record.rewards, strict=False)
    }


def followed(tmp_path, rows, message):
    """What is read with the first flags of the message, as a shell passes them on."""
    flags = re.search(r"(?:--rows\.\w+ (?:'[^']*'|\S+) ?)+", message)
    assert flags is not None, message
    words = shlex.split(flags[0].rstrip(". "))
    options = {
        name.removeprefix("--rows."): value.rstrip(".,")
        for name, value in zip(words[::2], words[1::2], strict=True)
    }
    return load(tmp_path, rows, **options)


ADVICE = {
    "StackExchange, j and k": ([{"qid": 1, "question": ASK, "response_j": GOOD, "response_k": BAD}], OVER),
    "HelpSteer3, edits": (
        [{"context": [user()], "original_response": BAD, "edited_response": GOOD, "feedback": ["f"]}],
        OVER,
    ),
    "TL;DR, a place and nested texts": (
        [
            {
                "info": {"id": "t3", "post": ASK},
                "summaries": [{"text": BAD, "policy": "p"}, {"text": GOOD, "policy": "q"}],
                "choice": 1,
                "worker": "w",
            }
        ],
        OVER,
    ),
    "x, y_w, y_l": ([{"x": ASK, "y_w": GOOD, "y_l": BAD}], OVER),
    "left, right": ([{"prompt": ASK, "left": GOOD, "right": BAD, "choice": "left"}], OVER),
    "lists of one": ([{"query": ASK, "pos": [GOOD], "neg": [BAD]}], OVER),
    "objects on both sides": (
        [{"prompt": ASK, "chosen": {"response": GOOD}, "rejected": {"response": BAD}}],
        OVER,
    ),
    "a label for the order": (
        [
            {"prompt": ASK, "chosen": GOOD, "rejected": BAD, "label": 1},
            {"prompt": ASK, "chosen": BAD, "rejected": GOOD, "label": 0},
        ],
        OVER,
    ),
    "a label as a place": (
        [
            {"prompt": ASK, "responses": [GOOD, BAD], "label": 0},
            {"prompt": ASK, "responses": [BAD, GOOD], "label": 1},
        ],
        OVER,
    ),
    "places from 1": (
        [
            {"prompt": ASK, "responses": [GOOD, BAD], "best": 1},
            {"prompt": ASK, "responses": [BAD, GOOD], "best": 2},
        ],
        OVER,
    ),
    "likes with a comment": (
        [{"query": ASK, "answer": GOOD, "feedback_rating": "like", "feedback_content": "It is right."}],
        {GOOD: 1},
    ),
    "several ratings": ([{"prompt": ASK, "response": GOOD, "helpfulness": 4, "correctness": 3}], {GOOD: 4}),
    "a log of requests": (
        [
            {
                "request": {"messages": [user()]},
                "response": {"choices": [{"message": bot(GOOD)}]},
                "thumbs": "up",
            }
        ],
        {GOOD: 1},
    ),
    "a question in an object": ([{"prompt": {"text": ASK, "id": 3}, "chosen": GOOD, "rejected": BAD}], OVER),
    "a history that is text": ([{"prompt": ASK, "history": "Hi.", "chosen": GOOD, "rejected": BAD}], OVER),
}


@pytest.mark.parametrize("case", ADVICE)
def test_advice_works_when_it_is_followed_to_the_letter(tmp_path, case):
    rows, expected = ADVICE[case]
    with pytest.raises(DataError) as error:
        load(tmp_path, rows)
    loaded = followed(tmp_path, rows, str(error.value))
    assert (pairs_of(loaded) if isinstance(expected, set) else labels_of(loaded)) == expected
    assert not loaded.stop


def test_advice_repeats_the_flags_that_were_given(tmp_path):
    rows = [{"ask": ASK, "good": GOOD, "bad": BAD, "votes": 3}]
    with pytest.raises(DataError, match=r"prompt=ask,chosen=good,rejected=bad --rows\.ignore votes"):
        load(tmp_path, rows, columns="prompt=ask", ignore="votes")


def test_the_flags_of_a_long_advice_are_whole(tmp_path):
    rows = [
        {"prompt": ASK, "good": GOOD, "bad": BAD, **{f"rating_of_the_annotator_{k}": k for k in range(2, 30)}}
    ]
    with pytest.raises(DataError) as error:
        load(tmp_path, rows)
    assert pairs_of(followed(tmp_path, rows, str(error.value))) == OVER


def test_no_advice_guesses_what_words_mean(tmp_path):
    rows = [{"prompt": ASK, "completion": GOOD, "quality": word} for word in ("fine", "poor")]
    with pytest.raises(DataError, match=r"'label=quality\{fine:\?,poor:\?\}' with a value for each \?"):
        load(tmp_path, rows)


@pytest.mark.parametrize(
    ("first", "second"),
    [(0, 1), ("0", "1"), (0.0, 1.0), ("A", "B"), (GOOD, GOOD), ("model_a", "model_b"), ("first", "second")],
)
@pytest.mark.parametrize("name", ["best", "chosen_idx", "winner", "preferred", "bestIndex"])
def test_the_place_of_the_best_answer(tmp_path, name, first, second):
    rows = [
        {"prompt": ASK, "responses": [GOOD, BAD], name: first},
        {"prompt": ASK, "responses": [BAD, GOOD], name: second},
    ]
    loaded = load(tmp_path, rows)
    assert loaded.format == "indexed" and pairs_of(loaded) == OVER and name in loaded.columns


@pytest.mark.parametrize(
    ("columns", "expected"),
    [
        ({"best": 1, "x": 0}, {(GOOD, "A hat."), (GOOD, BAD)}),
        ({"best": 1, "worst": 2}, {(GOOD, "A hat."), (GOOD, BAD), ("A hat.", BAD)}),
        ({"chosen": 1, "rejected": 2}, {(GOOD, BAD)}),
        ({"winner": "m2", "models": ["m1", "m2", "m3"]}, {(GOOD, "A hat."), (GOOD, BAD)}),
    ],
)
def test_places_of_several_answers(tmp_path, columns, expected):
    zero = {"prompt": "Hi", "responses": ["x", "y"], "best": 0}  # so that places count from 0
    loaded = load(tmp_path, [{**THREE, **columns}, zero])
    assert pairs_of(loaded) == expected | {("x", "y")}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([{**THREE, "best": 1}], "never 0, so they could be counted from 0 or 1"),
        ([{**THREE, "best": 3}], "not the place of one of the responses"),
        ([{**THREE, "best": -1}], "not the place"),
        ([{**THREE, "best": 0.5}], "not the place"),
        ([{**THREE, "chosen": 0, "rejected": 0}], "the best and the worst completion are the same"),
        ([{**THREE, "best": True}], "best"),
    ],
)
def test_places_that_are_not_certain_are_refused_even_where_bad_rows_are_skipped(tmp_path, rows, words):
    with pytest.raises(DataError, match=re.compile(words, re.IGNORECASE)):
        load(tmp_path, [*rows, {**THREE, "best": 2}], bad_rows="skip")


def test_a_tie_among_answers_is_counted(tmp_path):
    loaded = load(tmp_path, [{**THREE, "best": 0}, {**THREE, "best": "tie"}])
    assert loaded.census["ties"] == 1 and len(loaded.records) == 1


SHAPES = {
    "exchanges (Capybara)": [{"input": "Hi.", "output": "Hello."}, {"input": ASK, "output": GOOD}],
    "JSON text of exchanges": json.dumps(
        [{"input": "Hi.", "output": "Hello."}, {"input": ASK, "output": GOOD}]
    ),
    "human and assistant": [{"human": "Hi.", "assistant": "Hello."}, {"human": ASK, "assistant": GOOD}],
    "speaker and text": [
        {"speaker": speaker, "text": text}
        for speaker, text in (("user", "Hi."), ("ai", "Hello."), ("user", ASK), ("ai", GOOD))
    ],
    "role and value": [
        {"role": role, "value": text}
        for role, text in (("user", "Hi."), ("bot", "Hello."), ("user", ASK), ("chatbot", GOOD))
    ],
}


@pytest.mark.parametrize("shape", SHAPES)
def test_turns_in_other_shapes(tmp_path, shape):
    (record,) = load(tmp_path, [{"conversation": SHAPES[shape], "label": True}]).records
    assert [turn.content for turn in record.prompt] == ["Hi.", "Hello.", ASK]
    assert [turn.role for turn in record.prompt] == ["user", "assistant", "user"]
    assert texts(record) == [GOOD] and record.labels == (1,)


def test_what_an_exchange_states_besides_is_accounted_for(tmp_path):
    with pytest.raises(DataError, match=r"conversation\.rating"):
        load(tmp_path, [{"conversation": [{"input": ASK, "output": GOOD, "rating": 1}]}])
    (record,) = load(
        tmp_path, [{"conversation": [{"system": "Be brief.", "input": ASK, "output": GOOD}], "label": 1}]
    ).records
    assert record.prompt[0].role == "system"
    with pytest.raises(DataError, match="two different contents"):
        load(tmp_path, [{"messages": [user(), {**bot(GOOD), "text": BAD}], "label": 1}])


def test_an_answer_that_is_JSON_stays_text(tmp_path):
    answer = '[{"input": "x", "output": "y"}]'
    (record,) = load(tmp_path, [{"prompt": ASK, "completion": answer, "label": 1}]).records
    assert record.completions == (answer,)


def test_a_turn_that_is_missing_from_an_arena_list_is_refused(tmp_path):
    """The JSON text of the list must never become the answer."""
    row = {
        "prompt": json.dumps(["Hi.", ASK]),
        "response_a": json.dumps(["Hello.", GOOD]),
        "winner_model_a": 1,
    }
    row |= {"response_b": json.dumps(["Hello.", None]), "winner_model_b": 0, "winner_tie": 0}
    with pytest.raises(DataError, match=r"response_b\[1\]"):
        load(tmp_path, [row])


@pytest.mark.parametrize(
    ("verdict", "better"), [("A>B", GOOD), ("B>A", BAD), ("A>>B", GOOD), ("[[A<B]]", BAD), ("[[A]]", GOOD)]
)
def test_verdicts_of_judges(tmp_path, verdict, better):
    row = {"question": ASK, "response_A": GOOD, "response_B": BAD, "label": verdict}
    assert {good for good, _ in pairs_of(load(tmp_path, [row]))} == {better}
    tie = {**row, "label": "A=B"}
    assert load(tmp_path, [row, tie]).census == {"pairs": 1, "ties": 1}


def test_tab_separated_tables(tmp_path):
    path = tmp_path / "rows.tsv"
    path.write_text(f"prompt\tchosen\trejected\n{ASK}\t{GOOD}, so.\t{BAD}\n", encoding="utf-8")
    assert pairs_of(load_records(path, DataOptions())) == {(f"{GOOD}, so.", BAD)}


def test_the_text_in_answers_that_are_objects_is_named_for_both_sides(tmp_path):
    """Also where the preferred answer has a name that is not of pairs alone."""
    row = {"prompt": ASK, "response": {"answer": GOOD}, "rejected_response": {"answer": BAD}}
    with pytest.raises(DataError) as refused:
        load(tmp_path, [row])
    flag = re.search(r"--rows.columns (\S+?)[.]?(?:\s|$)", str(refused.value))
    assert pairs_of(load(tmp_path, [row], columns=flag[1])) == OVER
