"""The account of columns, the user's names for them, and what is never guessed."""

import json
import random

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from preftune.data.column_kinds import SEEMS_PREFERENCE, kind_of, values_look_like_labels
from preftune.data.column_map import mapped, parse_columns, rules_of
from preftune.data.options import FIELDS, DataOptions
from preftune.data.records import load_records
from preftune.data.signals import derive
from preftune.errors import ConfigError, DataError

ROW = {"prompt": "Name a river.", "completion": "The Rhine."}


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def load(tmp_path, rows, passed=False, **options):
    return load_records(write(tmp_path / "rows.jsonl", rows), DataOptions(**options), passed=passed)


def test_every_column_has_a_role(tmp_path):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b", "id": 1, "rating": 3, "seen": None}]
    loaded = load(tmp_path, rows, ignore="rating")
    assert loaded.columns == {
        "prompt": "prompt",
        "chosen": "chosen completion",
        "rejected": "rejected completion",
        "id": "not used",
        "seen": "not used",
        "rating": "ignored",
    }
    assert load(tmp_path, rows, passed=True).columns["rating"] == "passed to reward functions"


def test_roles_have_the_names_of_the_file(tmp_path):
    rows = [{"q": "p", "meta": {"ctx": "c"}, "better": "a", "worse": "b", "id": 1}]
    columns = load(tmp_path, rows, columns="prompt=meta.ctx+q,chosen=better,rejected=worse").columns
    assert columns == {
        "meta.ctx+q": "prompt",
        "better": "chosen completion",
        "worse": "rejected completion",
        "id": "not used",
    }
    rows = [{"prompt": "p", "answer": "a", "thumbs": "up"}, {"prompt": "p", "answer": "b", "thumbs": "down"}]
    columns = load(tmp_path, rows, columns="label=thumbs{up:1,down:-1}").columns
    assert columns == {"prompt": "prompt", "answer": "completion", "thumbs": "label"}


def test_a_column_that_appears_late_stops_too(tmp_path):
    rows = [{"prompt": "p", "chosen": "a", "rejected": "b"}] * 40
    with pytest.raises(DataError, match=r"the column winner is not used.*--rows\.ignore winner"):
        load(tmp_path, [*rows, {**rows[0], "winner": "b"}])


@pytest.mark.parametrize(
    ("name", "seems"),
    [
        ("rating", "preference information"),
        ("thumbsUp", "preference information"),
        ("is_good", "preference information"),
        ("overall_helpfulness", "preference information"),
        ("context", "a part of the prompt"),
        ("response_b", "an answer"),
        ("chosen_model", ""),
        ("id", ""),
        ("num_tokens", ""),
        ("in_gsm8k_train", ""),
    ],
)
def test_what_a_name_looks_like(name, seems):
    assert kind_of(name, "completions") == seems


def test_what_values_look_like():
    assert values_look_like_labels(["👍", "👎"], "pairs") and values_look_like_labels(
        ["up", "down"], "labels"
    )
    assert values_look_like_labels([True, False], "completions")
    assert not values_look_like_labels([True, False], "pairs")  # a flag about something else
    assert not values_look_like_labels(["yes", "text"], "completions")


def test_what_is_unlabelled_teaches_nothing_until_the_user_says_so(tmp_path):
    loaded = load(tmp_path, [ROW])
    assert loaded.census == {"unlabelled": 1}
    with pytest.raises(DataError, match=r"1 records: unlabelled completions.*--rows\.format completions"):
        derive(loaded.records, "labels")
    said = load(tmp_path, [ROW], format="completions")
    assert said.census == {"preferred": 1} and said.records[0].labels == (1,)


def test_the_census(tmp_path):
    rows = [{**ROW, "label": label} for label in ("good", "bad", "neutral", "good")]
    assert load(tmp_path, rows).census == {"preferred": 2, "dispreferred": 1, "neutral": 1}
    rows = [{"prompt": "p", "response_a": "x", "response_b": "y", "winner": w} for w in ("a", "tie", "b")]
    assert load(tmp_path, rows).census == {"pairs": 2, "ties": 1}


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([-1, 0, 1], "0 could mean dispreferred or neutral"),
        ([1, 2, 3], "other numbers than 1, 0 and -1"),
        ([1, 0.5], "a rating"),
    ],
)
def test_a_label_column_is_never_folded_and_never_half_used(tmp_path, labels, words):
    """Skipping bad rows must not leave the one half of a column that happens to be readable."""
    rows = [{**ROW, "label": label} for label in labels]
    with pytest.raises(DataError, match=words):
        load(tmp_path, rows, bad_rows="skip")
    said = load(tmp_path, [{**ROW, "label": n} for n in (-1, 0, 1)], columns="label=label{1:1,0:0,-1:-1}")
    assert [record.labels for record in said.records] == [(-1,), (None,), (1,)]


def test_a_reward_beside_labels_must_not_contradict_them(tmp_path):
    good = {**ROW, "completion": "x", "label": True, "reward": 2.0}
    bad = {**ROW, "completion": "y", "label": False, "reward": 1.0}
    assert load(tmp_path, [good, bad]).census == {"preferred": 1, "dispreferred": 1}
    with pytest.raises(DataError, match="contradicts the labels of this prompt"):
        load(tmp_path, [good, {**bad, "reward": 3.0}])


# --- names of columns ---

NESTED = {
    "input": {"messages": ["x"], "tools": [], "id": 3},
    "thumbs": "up",
    "stars": 4,
    "a": "A",
    "b": "B",
    "label": 7,
}


@pytest.mark.parametrize(
    ("given", "field", "value"),
    [
        ("label=thumbs", "label", "up"),
        ("prompt=input.messages", "prompt", ["x"]),
        ("prompt=input.messages.0", "prompt", "x"),
        ("prompt=a+b", "prompt", "A\n\nB"),
        ("label=thumbs{up:1,down:-1}", "label", 1),
        ("label=stars{>=4:1,<=2:-1,3:0}", "label", 1),
        ({"label": {"thumbs": {"up": 1, "down": -1}}}, "label", 1),
        ({"label": {"column": "thumbs", "values": {"UP": True}}}, "label", True),
        ('{"label": "thumbs"}', "label", "up"),
        ({"label": {"7": 0, "8": 1}}, "label", 0),
        ({"label": {"7": 0, "8": -1}}, "label", "neutral"),
    ],
)
def test_names_paths_and_values(given, field, value):
    row = mapped(NESTED, rules_of(parse_columns(given, FIELDS)))
    assert row[field] == value


def test_nothing_of_a_row_is_lost_by_a_name():
    row = mapped(NESTED, rules_of(parse_columns("prompt=input.messages,label=thumbs", FIELDS)))
    assert row == {
        "stars": 4,
        "a": "A",
        "b": "B",
        "label (replaced)": 7,
        "input.id": 3,
        "tools": [],
        "prompt": ["x"],
        "label": "up",
    }


@pytest.mark.parametrize(
    "given",
    [
        "label",
        "label=",
        "nothing=x",
        "label=x{up}",
        "label=x,label=y",
        {"label": 3},
        {"label": {}},
        "{",
        {"label": {"x": {}}},
    ],
)
def test_names_that_are_not_understood(given):
    with pytest.raises(ConfigError, match="data option columns"):
        DataOptions(columns=given)


def test_what_is_not_there_is_an_error(tmp_path):
    for options, words in (
        ({"columns": "label=thumbs"}, "the column thumbs named in columns is not there"),
        ({"columns": "label=completion{up:1}"}, "has no meaning"),
        ({"columns": "prompt=prompt.text"}, "field prompt.text named in columns is not there"),
        ({"ignore": "thumbs"}, "ignore names a column that is not there; got thumbs"),
        ({"streaming": True}, "streaming has no effect"),
    ):
        with pytest.raises((DataError, ConfigError), match=words):
            load(tmp_path, [ROW], **options)
    with pytest.raises(ConfigError, match="both used and ignored"):
        DataOptions(columns="label=x", ignore="x")


# --- no file contradicts itself in silence ---

NAMES = [
    "prompt",
    "question",
    "instruction",
    "input",
    "query",
    "context",
    "messages",
    "conversations",
    "system",
    "history",
    "completion",
    "response",
    "output",
    "answer",
    "text",
    "chosen",
    "rejected",
    "chosen_response",
    "rejected_response",
    "preferred_output",
    "non_preferred_output",
    "rejected_messages",
    "response_a",
    "response_b",
    "response_1",
    "response_2",
    "response_0",
    "answer_0",
    "answer_1",
    "output_1",
    "output_2",
    "winner",
    "preference",
    "preferred",
    "better_response_id",
    "label",
    "labels",
    "kto_tag",
    "reward",
    "score",
    "rating",
    "thumbs",
    "thumbs_up",
    "feedback",
    "is_good",
    "helpfulness",
    "votes",
    "rank",
    "overall_preference",
    "preference_strength",
    "score_a",
    "score_b",
    "score_chosen",
    "score_rejected",
    "margin",
    "probability",
    "completions",
    "answers",
    "generations",
    "rewards",
    "scores",
    "ratings",
    "ranks",
    "source",
    "id",
]
TEXTS = st.sampled_from(["The Rhine.", "A shoe.", "Name a river.", "A hat."])
VALUES = st.one_of(
    TEXTS,
    st.sampled_from(["good", "bad", "up", "down", "a", "b", "tie", "1", "0", "👎"]),
    st.booleans(),
    st.integers(-3, 5),
    st.none(),
    st.lists(TEXTS, min_size=2, max_size=2),
    st.lists(st.integers(-2, 2), min_size=2, max_size=2),
    st.lists(st.booleans(), min_size=2, max_size=2),
    st.sampled_from([0.5, -1.0, "-1", "B", "model_a", "both_bad", "neutral", float("nan")]),
    st.fixed_dictionaries({"rating": st.integers(1, 5)}),
    TEXTS.map(
        lambda text: [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": text}]
    ),
    st.tuples(TEXTS, TEXTS, st.integers(-2, 2)).map(
        lambda one: [{"text": one[0], "score": one[2]}, {"text": one[1], "score": 0}]
    ),
)
SPELLINGS = st.sampled_from(
    [str, str, str.upper, str.title, lambda name: f" {name} ", lambda name: name.replace("_", "-")]
)


def taken_or_none(value):
    """The text of an answer, as a text or as the last of some turns."""
    return value if isinstance(value, str) else value[-1].get("content") if turns_of(value) else None


def turns_of(value):
    return isinstance(value, list) and bool(value) and isinstance(value[-1], dict)


def taken(text):
    return text if isinstance(text, str) else text[-1].content


PROMPTED = st.sampled_from(["prompt", "question", "instruction", "query"])
SIDES = st.sampled_from(
    [("response_a", "response_b"), ("response_1", "response_2"), ("output_1", "output_2")]
)
VERDICTS = st.sampled_from(["a", "b", "A", "tie", 1, 2, 0, -1, "1", "2", "-1", True, "model_a", None])
LABELS = st.sampled_from([True, False, 1, 0, -1, "good", "bad", "up", "down", "neutral", "0", "👎", 2])
NOISE = st.dictionaries(st.sampled_from(NAMES), VALUES, max_size=2)


@st.composite
def usual_rows(draw):
    """Rows of the common layouts, to which other columns are added, or of which one is replaced."""
    row = {draw(PROMPTED): "Name a river."}
    kind = draw(st.sampled_from(["pair", "verdict", "label"]))
    if kind == "pair":
        names = draw(st.sampled_from([("chosen", "rejected"), ("chosen_response", "rejected_response")]))
        row |= dict(zip(names, draw(st.permutations(["The Rhine.", "A shoe."])), strict=True))
    elif kind == "verdict":
        row |= dict(zip(draw(SIDES), draw(st.permutations(["The Rhine.", "A shoe."])), strict=True))
        row[draw(st.sampled_from(["winner", "preference", "preferred"]))] = draw(VERDICTS)
    else:
        row[draw(st.sampled_from(["completion", "response", "output"]))] = draw(TEXTS)
        row[draw(st.sampled_from(["label", "kto_tag"]))] = draw(LABELS)
    return row | draw(NOISE)


ANSWER_IN_A_DIALOGUE = {
    "prompt": "Name a river.",
    "response_1": "The Rhine.",
    "response_2": [{"role": "user", "content": "Name a river."}, {"role": "assistant", "content": "A shoe."}],
    "winner": 2,
}
EMPTY_SECOND_LABEL = {"prompt": "Name a river.", "completion": "The Rhine.", "label": False, "kto_tag": None}


@settings(max_examples=400, deadline=None)
@example(ANSWER_IN_A_DIALOGUE, random.Random(0), str)
@example(EMPTY_SECOND_LABEL, random.Random(0), str)
@given(
    st.one_of(usual_rows(), st.dictionaries(st.sampled_from(NAMES), VALUES, min_size=2, max_size=7)),
    st.randoms(use_true_random=False),
    SPELLINGS,
)
def test_no_preference_contradicts_a_column(tmp_path_factory, row, order: random.Random, spelled):
    names = list(row)
    order.shuffle(names)
    row = {name: row[name] for name in names}
    path = write(
        tmp_path_factory.mktemp("one") / "rows.jsonl", [{spelled(name): row[name] for name in names}]
    )
    try:
        (record,) = load_records(path, DataOptions()).records
    except DataError:
        return  # refused, or no preference
    if not (record.pairs or record.labels or record.rewards):
        return
    assert_agrees(row, record)
    found = load_records(path, DataOptions())
    assert {spelled(name) for name in names} <= found.columns.keys()  # every column has a role
    values = {spelled(name): value for name, value in row.items()}
    unused = {name for name, role in found.columns.items() if role == "not used"}
    full = {name for name in unused if (value := values.get(name)) not in (None, "", []) and value == value}
    assert not {name for name in full if kind_of(name, found.format) == SEEMS_PREFERENCE}


def assert_agrees(row, record):
    """Each column that says which answer is better agrees with what was read."""
    pairs = {(taken(record.completions[i]), taken(record.completions[j])) for i, j in record.pairs}
    better = {good for good, _ in pairs}
    worse = {bad for _, bad in pairs}
    for name in ("chosen", "chosen_response", "preferred_output"):
        if isinstance(row.get(name), str) and pairs and row[name] in better | worse:
            assert row[name] in better
    for name in ("rejected", "rejected_response", "non_preferred_output"):
        if isinstance(row.get(name), str) and pairs and row[name] in better | worse:
            assert row[name] in worse
    for first, second in (
        ("response_a", "response_b"),
        ("response_1", "response_2"),
        ("output_1", "output_2"),
    ):
        sides = {"a": first, "b": second} if first == "response_a" else {"1": first, "2": second}
        for verdict in ("winner", "preference", "preferred"):
            side = str(row.get(verdict))
            if pairs and {taken_or_none(row.get(first)), taken_or_none(row.get(second))} == better | worse:
                assert not side.startswith("-")  # a strength is no name of a side
            named = taken_or_none(row.get(sides.get(side, "")))
            if pairs and side in sides and not isinstance(row[verdict], bool) and named in better | worse:
                assert named in better
    for name in ("label", "kto_tag"):
        value = row.get(name)
        says_nothing = value is None or value == "" or value != value
        if record.labels and not says_nothing and len(record.labels) == 1 and record.labels[0] is not None:
            bad = row[name] in (False, 0, -1, "bad", "down", "0", "👎")
            assert record.labels[0] == (-1 if bad else 1)
    for low, high in (("score_rejected", "score_chosen"),):
        if pairs and isinstance(row.get(low), int) and isinstance(row.get(high), int):
            assert row[low] <= row[high]
    if record.pairs and isinstance(row.get("margin"), int) and not isinstance(row.get("margin"), bool):
        assert row["margin"] >= 0
