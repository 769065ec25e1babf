"""Malformed input: each is told with file, row, field, what was got; or skipped and counted."""

import gzip
import json

import pytest

from preftune.data.options import DataOptions
from preftune.data.records import load_records
from preftune.errors import DataError

GOOD = {
    "pairs": {"prompt": "Hi", "chosen": "yes", "rejected": "no"},
    "dialogues": {
        "chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}],
        "rejected": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "no"}],
    },
    "transcripts": {
        "chosen": "\n\nHuman: Hi\n\nAssistant: yes",
        "rejected": "\n\nHuman: Hi\n\nAssistant: no",
    },
    "labels": {"prompt": "Hi", "completion": "yes", "label": True},
    "messages": {
        "messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "yes"}],
        "label": True,
    },
    "scored": {"prompt": "Hi", "completions": ["a", "b"], "rewards": [1.0, 2.0]},
    "ranked": {"prompt": "Hi", "answers": [{"answer": "a", "rank": 1}, {"answer": "b", "rank": 2}]},
    "groups": {"prompt": "Hi", "completions": ["a", "b"], "pairs": [[0, 1]], "sources": ["data", "policy"]},
}


def user(content):
    return {"role": "user", "content": content}


def bot(content):
    return {"role": "assistant", "content": content}


# (the good row that it changes, the change or the raw line, what the error says)
ROWS = {
    "broken JSON": ("pairs", '{"prompt": "Hi", "chosen": oops}', 'broken JSON .*chosen": oops'),
    "cut off JSON": ("pairs", '{"prompt": "Hi", "cho', "broken JSON"),
    "two objects in a line": ("pairs", '{"prompt": "a"} {"prompt": "b"}', "broken JSON .Extra data"),
    "not UTF-8": ("pairs", b'{"prompt": "H\xff"}', r"not UTF-8 at byte \d+ of the file"),
    "a list": ("pairs", "[1, 2]", r"not an object; got list \[1, 2\]"),
    "a number": ("pairs", "3", "not an object; got int 3"),
    "nested too deeply": ("pairs", "[" * 100_000, "cannot be read"),
    "a number of too many digits": ("pairs", '{"prompt": ' + "1" * 5000 + "}", "cannot be read"),
    "missing field": (
        "pairs",
        {"rejected": ...},
        "field rejected is missing; got the columns prompt, chosen",
    ),
    "null": ("pairs", {"chosen": None}, "field chosen is missing; got null"),
    "number for text": ("pairs", {"chosen": 3}, "field chosen has the wrong type; got int 3; expected text"),
    "number for a prompt": ("pairs", {"prompt": 3.5}, "field prompt is not a dialogue; got float 3.5"),
    "empty completion": ("pairs", {"chosen": ""}, "field chosen is empty"),
    "blank completion": ("pairs", {"rejected": " \n"}, "field rejected is empty"),
    "probability above 1": (
        "pairs",
        {"probability": 1.5},
        r"field probability is not a probability; got float 1.5; expected a number in \[0, 1\]",
    ),
    "probability below 0": ("pairs", {"chosen_probs": "-0.1"}, "field chosen_probs is not a probability"),
    "probability in words": ("dialogues", {"chosen_prob": "high"}, "field chosen_prob is not a number"),
    "surrogate": ("pairs", '{"prompt": "Hi", "chosen": "\\ud800", "rejected": "no"}', "surrogate"),
    "surrogate in a turn": (
        "pairs",
        '{"prompt": [{"role": "user", "content": "\\ud800"}], "chosen": "yes", "rejected": "no"}',
        r"field prompt\[0\].content holds half of a surrogate pair",
    ),
    "prompt ends with the assistant": (
        "pairs",
        {"prompt": [user("Hi"), bot("so")]},
        "prompt does not end with a turn of the user",
    ),
    "empty list of turns": ("pairs", {"prompt": []}, r"field prompt is not a dialogue; got list \[\]"),
    "a turn that is text": ("pairs", {"prompt": ["Hi"]}, r"prompt\[0\] is not a turn; got str 'Hi'"),
    "a turn without content": ("pairs", {"prompt": [{"role": "user"}]}, "field content is missing"),
    "unknown role": (
        "pairs",
        {"prompt": [{"role": "wizard", "content": "Hi"}]},
        r"role of prompt\[0\] .*got 'wizard'",
    ),
    "an image": ("pairs", {"prompt": [user([{"type": "image", "url": "x"}])]}, "part that is not text"),
    "ended for too few": (
        "scored",
        {"ended": [True]},
        "field ended does not state .*expected 2 times true or false",
    ),
    "ended as text": ("scored", {"ended": ["yes", "no"]}, "field ended does not state"),
    "tools": ("pairs", {"tools": [{"title": "f"}]}, r"tool tools\[0\] has no name"),
    "dialogues of other prompts": (
        "pairs",
        {"chosen": [user("Hi"), bot("a")], "rejected": [user("Ho"), bot("b")]},
        "prompts of chosen and rejected differ; got in turn 1 user: 'Hi' and user: 'Ho'",
    ),
    "dialogues of another prompt": (
        "pairs",
        {"chosen": [user("Ho"), bot("a")], "rejected": [user("Ho"), bot("b")]},
        "prompt is not the one that chosen and rejected repeat",
    ),
    "two system texts": (
        "pairs",
        {"system": "a", "prompt": [{"role": "system", "content": "b"}, user("Hi")]},
        "two system texts",
    ),
    "chosen ends with the user": (
        "dialogues",
        {"chosen": [user("Hi"), user("Ho")]},
        "chosen does not end with a turn of the assistant",
    ),
    "no shared turns": ("dialogues", {"chosen": [bot("a")], "rejected": [bot("b")]}, "share no prompt"),
    "other turns before": (
        "dialogues",
        {"chosen": [user("Ho"), bot("a")]},
        "prompts of chosen and rejected differ",
    ),
    "text and turns": ("dialogues", {"chosen": "yes"}, "not of one kind; got str 'yes' and list"),
    "transcript ends with the human": (
        "transcripts",
        {"chosen": "\n\nHuman: Hi\n\nAssistant: a\n\nHuman: b"},
        "does not end with a turn of the assistant",
    ),
    "transcripts part early": (
        "transcripts",
        {"chosen": "\n\nHuman: Ho\n\nAssistant: a"},
        "prompts of chosen and rejected differ",
    ),
    "no common beginning": ("transcripts", {"chosen": "abc", "rejected": "xyz"}, "share no prompt"),
    "common beginning inside a word": (
        "transcripts",
        {"chosen": "abc", "rejected": "abd"},
        "share no prompt",
    ),
    "label maybe": (
        "labels",
        {"label": "maybe"},
        "label in label is not understood; got str 'maybe'; expected true or false",
    ),
    "label as list": ("labels", {"label": [True]}, "not understood"),
    "completion of two turns": (
        "labels",
        {"completion": [bot("a"), bot("b")]},
        "not one answer of the assistant",
    ),
    "messages end with the user": (
        "messages",
        {"messages": [user("Hi")]},
        "messages does not end with a turn of the assistant",
    ),
    "messages hold only an answer": (
        "messages",
        {"messages": [bot("Hi")]},
        "messages before the last answer does not end",
    ),
    "messages are text": ("messages", {"messages": "Hi"}, "messages is not a dialogue; got str 'Hi'"),
    "NaN": (
        "scored",
        '{"prompt": "Hi", "completions": ["a", "b"], "rewards": [1, NaN]}',
        r"rewards\[1\] is not finite; got float nan",
    ),
    "infinity": (
        "scored",
        '{"prompt": "Hi", "completions": ["a", "b"], "rewards": [-Infinity, 1]}',
        r"rewards\[0\] is not finite",
    ),
    "too large": ("scored", {"rewards": [10**400, 1]}, r"rewards\[0\] is not finite"),
    "reward in words": ("scored", {"rewards": ["good", 1]}, r"rewards\[0\] is not a number; got str 'good'"),
    "too few rewards": ("scored", {"rewards": [1.0]}, "different lengths; got 2 and 1"),
    "no completions": ("scored", {"completions": []}, "completions is not a list of completions"),
    "an empty one of several": ("scored", {"completions": ["a", ""]}, r"completions\[1\] is empty"),
    "entry without rank": (
        "ranked",
        {"answers": [{"answer": "a", "rank": 1}, {"answer": "b"}]},
        "field rank is missing; got the columns answer",
    ),
    "entry without text": (
        "ranked",
        {"answers": [{"rank": 1}, {"answer": "b", "rank": 2}]},
        "field completion is missing",
    ),
    "a pair of one": (
        "groups",
        {"pairs": [[0, 1], [1]]},
        r"pairs\[1\] is not a pair of completions; got list \[1\]; expected .* from 0 to 1",
    ),
    "a pair out of range": ("groups", {"pairs": [[0, 2]]}, r"pairs\[0\] is not a pair of completions"),
    "a pair before the first": ("groups", {"pairs": [[-1, 0]]}, r"pairs\[0\] is not a pair of completions"),
    "a pair with itself": ("groups", {"pairs": [[1, 1]]}, r"pairs\[0\] is not a pair of completions"),
    "a pair of booleans": ("groups", {"pairs": [[True, False]]}, r"pairs\[0\] is not a pair of completions"),
    "pairs that are text": ("groups", {"pairs": "0,1"}, "field pairs is not a list; got str '0,1'"),
    "too few sources": (
        "groups",
        {"sources": ["data"]},
        "field sources does not fit; .* expected a list of 2 values",
    ),
    "sources that are text": ("groups", {"sources": "xy"}, "field sources does not fit"),
    "unknown source": (
        "groups",
        {"sources": ["data", "human"]},
        r"sources\[1\] does not state who wrote .*got str 'human'; expected data, policy or reference",
    ),
    "probabilities of too few pairs": ("groups", {"probabilities": []}, "field probabilities does not fit"),
    "a group's probability above 1": (
        "groups",
        {"probabilities": [2]},
        r"probabilities\[0\] is not a probability",
    ),
    "a group of nothing known": ("groups", {"pairs": ..., "sources": ...}, "field pairs is missing"),
    "entry that is text": (
        "ranked",
        {"answers": [{"answer": "a", "rank": 1}, "b"]},
        r"answers\[1\] is not an object; got str 'b'",
    ),
}


def written(tmp_path, case):
    good, change, _ = ROWS[case]
    if isinstance(change, dict):
        change = json.dumps({key: value for key, value in (GOOD[good] | change).items() if value is not ...})
    line = change if isinstance(change, bytes) else change.encode()
    rest = json.dumps(GOOD[good]).encode()
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b"\n".join([rest, line, rest, rest]))
    return path


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row_is_told_with_file_and_row(tmp_path, case):
    path = written(tmp_path, case)
    with pytest.raises(DataError, match=ROWS[case][2]) as error:
        load_records(path, DataOptions())
    assert str(error.value).startswith(f"{path}, row 2: ")
    assert "bad_rows" in str(error.value) and len(str(error.value)) < 700


@pytest.mark.parametrize("case", ROWS)
def test_a_bad_row_is_skipped_and_counted(tmp_path, case):
    path = written(tmp_path, case)
    loaded = load_records(path, DataOptions(bad_rows="skip"))
    (bad,) = loaded.bad_rows
    assert (bad.file, bad.row, len(loaded.records), loaded.num_rows) == (str(path), 2, 3, 4)
    assert bad.message.startswith(f"{path}, row 2: ")
    assert [record.origin for record in loaded.records] == [f"{path}:{row}" for row in (1, 3, 4)]


def test_bad_rows_of_a_table_are_skipped_one_by_one(tmp_path):
    path = tmp_path / "a.csv"
    path.write_bytes(b"prompt,chosen,rejected\na,b,c\na,\xff,c\na,b\na,,c\na,b,c\n")
    loaded = load_records(path, DataOptions(bad_rows="skip"))
    assert [bad.row for bad in loaded.bad_rows] == [2, 3, 4]
    assert [record.origin for record in loaded.records] == [f"{path}:1", f"{path}:5"]


LINE = json.dumps(GOOD["pairs"]).encode()
FILES = {
    "empty": ("a.jsonl", b"", "is empty"),
    "blank": ("a.jsonl", b"\n\n", "holds no rows"),
    "empty list": ("a.json", b"[]", "holds no rows"),
    "unknown kind": ("a.xlsx", b"x", r"cannot be read; got \.xlsx; expected \.json"),
    "damaged gzip": ("a.jsonl.gz", b"not gzip", "gzip file is damaged"),
    "cut off gzip": ("a.jsonl.gz", gzip.compress(LINE * 1000)[:-20], "gzip file is damaged or cut off"),
    "damaged inside": ("a.jsonl.gz", gzip.compress(LINE)[:20] + b"\x00" * 20, "gzip file is damaged"),
    "broken list": ("a.json", b"[" + LINE + b", {oops}]", "row 2: broken JSON .*oops"),
    "list without end": ("a.json", b"[" + LINE, "row 1: broken JSON"),
    "trailing comma": ("a.json", b"[" + LINE + b",]", "row 2: broken JSON"),
    "no list inside": ("a.json", b'{"a": 1}', "no list of rows found; got an object with the keys"),
    "two lists inside": ("a.json", b'{"a": [{"x": 1}], "b": [{"x": 1}]}', "The lists are a, b"),
    "a text": ("a.json", b'"text"', "no list of rows found; got str"),
    "UTF-16": ("a.json", '[{"prompt": "Hi"}]'.encode("utf-16"), "not UTF-8 at byte 0"),
    "no format": (
        "a.jsonl",
        b'{"foo": 1, "bar": 2}',
        r"row 1: No format fits these rows; got the columns foo, bar; expected .*prompt, chosen, rejected",
    ),
    "open quote": ("a.csv", b'prompt,chosen,rejected\na,b,"c\n', "row 1: broken CSV"),
    "few cells": (
        "a.csv",
        b"prompt,chosen,rejected\na,b\n",
        r"row 1: wrong number of cells; got 2; expected 3",
    ),
    "repeated column": ("a.csv", b"prompt,chosen,chosen\na,b,c\n", "column name appears twice"),
    "not UTF-8 in a table": (
        "a.csv",
        b"prompt,chosen,rejected\na,b,c\na,\xff,c\n",
        "row 2: the text is not UTF-8 at byte 31",
    ),
    "not UTF-8 in a header": ("a.csv", b"prompt,chosen,rej\xff\na,b,c\n", "not UTF-8 at byte 17"),
    "damaged parquet": ("a.parquet", b"PAR1 and so on", "damaged or of another kind"),
    "damaged arrow": ("a.arrow", b"ARROW and so on", "damaged or of another kind"),
    "damaged saved set": ("state.json", b"{}", "saved data set is damaged"),
}


@pytest.mark.parametrize("case", FILES)
def test_a_bad_file_is_told_by_its_name(tmp_path, case):
    name, data, words = FILES[case]
    (tmp_path / name).write_bytes(data)
    source = tmp_path if name == "state.json" else tmp_path / name
    with pytest.raises(DataError, match=words) as error:
        load_records(source, DataOptions())
    assert str(source) in str(error.value)


ENCODED = {
    "UTF-16": ("a.csv", "prompt,chosen,rejected\na,b,c\n".encode("utf-16"), "UTF-16"),
    "UTF-32": ("a.json", '[{"prompt": "Hi"}]'.encode("utf-32"), "UTF-32"),
    "cp1252 in a table": ("a.csv", "prompt,chosen,rejected\ncafé,“b”,c\n".encode("cp1252"), "cp1252"),
    "cp1252 in lines": ("a.jsonl", '{"prompt": "50\xa0€"}\n'.encode("cp1252"), "cp1252"),
    "UTF-8 with a damaged byte": (
        "a.csv",
        "prompt,chosen,rejected\ncafé,b\xfc,c\n".encode().replace(b"\xbc", b""),
        None,
    ),
    "binary": ("a.jsonl", b'{"prompt": "\x00\x01\xff"}\n', None),
}


@pytest.mark.parametrize("case", ENCODED)
def test_the_encoding_that_reads_the_bytes_is_named(tmp_path, case):
    name, data, encoding = ENCODED[case]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(DataError, match="not UTF-8") as error:
        load_records(tmp_path / name, DataOptions())
    told = f"`iconv -f {encoding} -t UTF-8 FILE > NEW`" if encoding else "ave the file as UTF-8"
    assert told in str(error.value) and ("iconv" in str(error.value)) == bool(encoding)


@pytest.mark.parametrize("name", ["nothing.jsonl", "data/nothing.jsonl", "nothing", "./a/b"])
def test_a_missing_file_is_no_hub_id(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match="does not exist"):
        load_records(name, DataOptions())


def test_an_empty_folder(tmp_path):
    with pytest.raises(DataError, match="holds no data files"):
        load_records(tmp_path, DataOptions())


def test_a_column_that_is_not_there(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINE)
    with pytest.raises(
        DataError, match=r"row 1: the column winner .*got the columns prompt, chosen, rejected"
    ):
        load_records(path, DataOptions(columns={"chosen": "winner"}))


def test_only_bad_rows_are_an_error_even_when_skipping(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("{oops\n{oops\n")
    with pytest.raises(DataError, match=r"2 bad rows, the first: .*row 1: broken JSON"):
        load_records(path, DataOptions(bad_rows="skip"))
    with pytest.raises(DataError, match=r"no row can be used.* 2 bad rows, the first"):
        load_records(path, DataOptions(bad_rows="skip", format="pairs"))


def test_a_format_that_was_asked_for_is_not_guessed(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(LINE)
    assert load_records(path, DataOptions(format="prompts")).format == "prompts"
    with pytest.raises(DataError, match="field completion is missing"):
        load_records(path, DataOptions(format="labels"))
