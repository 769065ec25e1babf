"""Rows from every kind of source, in order, with their numbers."""

import gzip
import json

import datasets
import pyarrow as pa
import pyarrow.parquet
import pytest

from preftune.data import files
from preftune.data.options import DataOptions
from preftune.data.read import read_rows
from preftune.errors import ConfigError, DataError

ROWS = [{"prompt": f"p{k}", "chosen": 'yes, or\n"so"', "rejected": "nö"} for k in range(3)]


def rows_of(source, **options):
    return [(row.number, row.value) for row in read_rows(str(source), DataOptions(**options))]


def write(path, text):
    data = text if isinstance(text, bytes) else text.encode()
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


LINES = "\n".join(json.dumps(row) for row in ROWS)


def table(sign: str) -> str:
    rows = (f'p{k}{sign}"yes, or\n""so"""{sign}nö\n' for k in range(3))
    return f"prompt{sign}chosen{sign}rejected\n" + "".join(rows)


TABLE = table(",")
TEXTS = {
    "a.jsonl": LINES,
    "b.jsonl.gz": LINES,
    "c.json": json.dumps(ROWS),
    "d.json": json.dumps(ROWS, indent=2),
    "e.json.gz": json.dumps({"version": 1, "data": ROWS}),
    "f.json": LINES,
    "g.csv": TABLE,
    "h.JSONL": LINES + "\n",
    "i.json": "\ufeff " + json.dumps(ROWS),
    "j.csv": "\ufeff" + TABLE,
    "k.csv.gz": TABLE,
    "m.csv": table(";"),
    "n.csv": table("\t"),
    "o.tsv": table("\t"),
    "l.json": json.dumps({"train": ROWS, "test": ROWS[:1]}),
}


@pytest.mark.parametrize("name", TEXTS)
def test_text_files(tmp_path, name):
    assert rows_of(write(tmp_path / name, TEXTS[name])) == list(enumerate(ROWS, start=1))


def test_a_json_file_of_splits(tmp_path):
    path = write(tmp_path / "a.json", TEXTS["l.json"])
    assert rows_of(path, split="test") == [(1, ROWS[0])]


def test_lines_are_numbered_as_an_editor_does(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES.replace("\n", "\n\n"))
    assert [number for number, _ in rows_of(path)] == [1, 3, 5]


def test_parquet_and_arrow(tmp_path):
    table = pa.Table.from_pylist(ROWS)
    pyarrow.parquet.write_table(table, tmp_path / "a.parquet")
    with pa.OSFile(str(tmp_path / "b.arrow"), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    with pa.OSFile(str(tmp_path / "c.arrow"), "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    for name in ("a.parquet", "b.arrow", "c.arrow"):
        assert rows_of(tmp_path / name) == list(enumerate(ROWS, start=1))


def test_saved_data_sets(tmp_path):
    whole = datasets.Dataset.from_list(ROWS)
    whole.save_to_disk(str(tmp_path / "one"))
    datasets.DatasetDict(train=whole, test=whole.select([2])).save_to_disk(str(tmp_path / "two"))
    assert rows_of(tmp_path / "one") == rows_of(tmp_path / "two") == list(enumerate(ROWS, start=1))
    assert rows_of(tmp_path / "two", split="test") == [(1, ROWS[2])]
    for name in ("one", "two"):
        with pytest.raises(DataError, match="has no split dev"):
            rows_of(tmp_path / name, split="dev")


def test_a_folder_gives_the_files_of_the_split(tmp_path):
    (tmp_path / "data").mkdir()
    for name in (
        "train-0.jsonl",
        "train-1.jsonl",
        "test.jsonl",
        ".train.jsonl",
        "dataset_info.json",
        "train.txt",
    ):
        write(tmp_path / "data" / name, json.dumps({"prompt": name}))
    assert [row["prompt"] for _, row in rows_of(tmp_path)] == ["train-0.jsonl", "train-1.jsonl"]
    assert [row["prompt"] for _, row in rows_of(tmp_path, split="test")] == ["test.jsonl"]
    with pytest.raises(DataError, match="no split dev; got the splits test, train"):
        rows_of(tmp_path, split="dev")


def test_train_is_all_files_where_no_split_is_named(tmp_path):
    for name in ("b.jsonl", "a.jsonl"):
        write(tmp_path / name, json.dumps({"prompt": name}))
    assert [row["prompt"] for _, row in rows_of(tmp_path)] == ["a.jsonl", "b.jsonl"]
    write(tmp_path / "test.jsonl", json.dumps({"prompt": "test"}))
    with pytest.raises(DataError, match="no split train; got the splits test"):
        rows_of(tmp_path)


def test_train_prefs_is_not_train(tmp_path):
    for name in ("train_prefs-0.jsonl", "train-0.jsonl"):
        write(tmp_path / name, json.dumps({"prompt": name}))
    assert [row["prompt"] for _, row in rows_of(tmp_path)] == ["train-0.jsonl"]
    assert [row["prompt"] for _, row in rows_of(tmp_path, split="train_prefs")] == ["train_prefs-0.jsonl"]


@pytest.mark.parametrize("name", ["a.jsonl", "c.json", "g.csv"])
def test_a_split_of_a_single_file_is_an_error(tmp_path, name):
    with pytest.raises(ConfigError, match="split does not apply"):
        rows_of(write(tmp_path / name, TEXTS[name]), split="test")


def test_max_rows(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES + "\n{broken")
    assert rows_of(path, max_rows=2) == [(1, ROWS[0]), (2, ROWS[1])]


def test_columns_are_renamed(tmp_path):
    path = write(
        tmp_path / "a.jsonl", json.dumps({"winner": "w", "rejected": "r", "prompt": "old", "q": "new"})
    )
    row = {"chosen": "w", "rejected": "r", "prompt": "new", "prompt (replaced)": "old"}
    assert rows_of(path, columns={"chosen": "winner", "prompt": "q"}) == [(1, row)]


def test_a_file_is_read_as_it_is_asked_for(tmp_path):
    path = write(tmp_path / "a.jsonl", LINES)
    rows = read_rows(str(path), DataOptions())
    assert next(rows).number == 1
    path.write_text("")  # what was not read yet need not be there
    rows.close()


def test_a_line_that_is_too_long_is_passed_over(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MAX_LINE_BYTES", 100)
    long = json.dumps({"prompt": "x" * 350})
    path = write(
        tmp_path / "a.jsonl", "\n".join([json.dumps({"prompt": "a"}), long, json.dumps({"prompt": "b"})])
    )
    values = [value for _, value in rows_of(path)]
    assert values[0] == {"prompt": "a"} and values[2] == {"prompt": "b"}
    assert isinstance(values[1], DataError) and "row 2: the line is too long" in str(values[1])


def test_a_hub_id_without_the_hub_is_told_at_once():
    with pytest.raises(DataError, match=r"owner/name.*the hub is switched off.*local file or folder"):
        rows_of("owner/name")
    with pytest.raises(DataError, match=r"owner/name:config"):
        rows_of("owner/name:config")
