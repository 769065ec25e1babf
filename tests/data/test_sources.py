"""Where rows come from: splits of folders, damaged Arrow files, tables by columns, the hub row by row, memory."""

import json

import datasets
import huggingface_hub
import numpy as np
import pandas
import pyarrow
import pytest
import yaml

from preftune.cli.settings import parse_settings
from preftune.data.memory import memory_source
from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.data.read import read_rows
from preftune.data.records import load_records
from preftune.data.signals import derive
from preftune.errors import ConfigError, DataError
from preftune.train.options import TrainConfig
from preftune.types import Record
from tests.data.tokenizers_for_tests import CHATML, word_tokenizer

ROWS = [{"prompt": f"p{k}", "chosen": "a b", "rejected": "c"} for k in range(4)]


def prompts(source, **options):
    return [row.value["prompt"] for row in read_rows(str(source), DataOptions(**options))]


# --- splits ---


@pytest.mark.parametrize(
    ("files", "split", "read"),
    [
        (["train_easy", "train_hard", "test_easy"], "train", None),
        (["train_easy", "train_hard", "test_easy"], "train_hard", ["train_hard"]),
        (["train-00000-of-00002", "train-00001-of-00002", "test"], "train", [0, 1]),
        (["hh_train", "hh_test"], "train", ["hh_train"]),
        (["train_prefs", "test_prefs"], "train", None),
        (["train_prefs"], "train", ["train_prefs"]),
        (["test"], "train", None),
        (["part-1", "part-2"], "train", ["part-1", "part-2"]),
        (["train/0", "test/0"], "test", ["test/0"]),
        (["data/train_sft", "data/train_prefs"], "train_sft", ["data/train_sft"]),
    ],
)
def test_a_folder_never_mixes_splits(tmp_path, files, split, read):
    for name in files:
        path = tmp_path / f"{name}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps({"prompt": name}))
    if read is None:
        with pytest.raises(DataError, match=f"has no split {split}; got the splits"):
            prompts(tmp_path, split=split)
    else:
        assert prompts(tmp_path, split=split) == [files[k] if isinstance(k, int) else k for k in read]


# --- files ---


@pytest.mark.parametrize("kind", ["stream", "file"])
def test_a_damaged_arrow_file_is_an_error_and_never_ends_the_process(tmp_path, kind):
    table = pyarrow.Table.from_pylist([{"prompt": f"question {k}", "chosen": "yes" * k} for k in range(40)])
    path = tmp_path / "rows.arrow"
    write = pyarrow.ipc.new_stream if kind == "stream" else pyarrow.ipc.new_file
    with write(path, table.schema) as writer:
        writer.write_table(table)
    whole = path.read_bytes()
    assert len(prompts(path)) == 40
    rng = np.random.default_rng(0)
    told = 0
    for _ in range(60):
        damaged = bytearray(whole)
        start = int(rng.integers(len(whole) - 16))
        damaged[start : start + 16] = rng.bytes(16)
        path.write_bytes(damaged)
        try:
            prompts(path)
        except DataError as error:
            told += "damaged or of another kind" in str(error)
    assert told > 20
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match="damaged or of another kind"):
        prompts(path)


def test_a_table_by_columns_is_rows(tmp_path):
    path = tmp_path / "rows.json"
    for table in (
        {"prompt": ["p", "q"], "chosen": ["a", "b"]},
        {"prompt": {"0": "p", "1": "q"}, "chosen": {"0": "a", "1": "b"}},
    ):
        path.write_text(json.dumps(table))
        assert prompts(path) == ["p", "q"]
    path.write_text(json.dumps({"prompt": ["p", "q"], "chosen": ["a"]}))
    with pytest.raises(DataError, match="no list of rows found"):
        prompts(path)


def test_a_key_that_stands_twice_is_an_error(tmp_path):
    for name in ("rows.jsonl", "rows.json"):
        path = tmp_path / name
        path.write_text('{"prompt": "p", "prompt": "q"}')
        with pytest.raises(DataError, match="the key prompt twice"):
            load_records(path, DataOptions())


def test_blanks_around_the_names_of_a_csv_table(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text("prompt, chosen ,rejected\np,a,b\n")
    assert load_records(path, DataOptions()).records[0].completions == ("a", "b")


def test_a_data_set_of_the_hub_is_streamed_into_the_store(tmp_path, monkeypatch):
    """The hub cannot be reached from a test: the library is sent to a local file."""
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    load, asked = datasets.load_dataset, []

    def local(name, config, *, split, streaming, download_config):
        asked.append((name, split, streaming))
        return load("json", data_files={"train": str(path)}, split=split, streaming=streaming)

    monkeypatch.setattr(datasets, "load_dataset", local)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: None)
    prepared = prepare("owner/name", word_tokenizer(CHATML), "pairs", DataOptions(streaming=True))
    assert len(prepared.groups) == 4 and asked == [("owner/name", "train", True)]
    assert prepared.groups[2].pairs == ((0, 1),)
    with pytest.raises(ConfigError, match="streaming has no effect here"):
        prompts(path, streaming=True)


# --- rows in memory ---

SOURCES = {
    "list": lambda: ROWS,
    "generator": lambda: (row for row in ROWS),
    "Dataset": lambda: datasets.Dataset.from_list(ROWS),
    "DataFrame": lambda: pandas.DataFrame(ROWS),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_rows_in_memory(kind):
    """All kinds of the same rows are the same source; its name is honest in the configuration of a run."""
    config = TrainConfig(data=SOURCES[kind](), output="o")
    assert config.data == memory_source(ROWS)
    assert config.data.startswith("in memory (4 rows, digest ")
    loaded = load_records(config.data, config.rows)
    assert [record.prompt for record in loaded.records] == ["p0", "p1", "p2", "p3"]
    assert loaded.records[1].origin == "data:2"
    assert len(prepare(config.data, word_tokenizer(CHATML), "pairs", DataOptions()).groups) == 4


def test_the_name_of_rows_in_memory_survives_a_configuration_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"data": memory_source(ROWS), "output": "o"}))
    config = parse_settings(TrainConfig, ["--config", str(path)], prog="train", description="")
    assert config.data == memory_source(ROWS)


def test_other_rows_are_another_source():
    assert memory_source(ROWS) != memory_source(ROWS[::-1])
    with pytest.raises(DataError, match="not in the memory of this process"):
        load_records("in memory (4 rows, digest 00)", DataOptions())


def test_what_pandas_and_numpy_write_is_read():
    frame = pandas.DataFrame(
        {
            "prompt": ["p", "q"],
            "completions": [np.array(["a", "b"], dtype=object)] * 2,
            "rewards": [np.array([1.0, 0.5])] * 2,
            "score": [float("nan"), pandas.NA],
        }
    )
    records = load_records(memory_source(frame), DataOptions()).records
    assert records[0].completions == ("a", "b") and records[1].rewards == (1.0, 0.5)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "hold no rows"),
        ([1], "Row 1 of the data is not a mapping"),
        ({"train": ROWS}, 'name one, as in data\\["train"\\]'),
        (3, "of a kind that cannot be read; got int"),
    ],
)
def test_what_is_no_data(data, words):
    with pytest.raises(DataError, match=words):
        TrainConfig(data=data, output="o")


def test_a_path_is_a_name(tmp_path):
    assert TrainConfig(data=tmp_path / "a.csv", output="o").data == str(tmp_path / "a.csv")


# --- the number of pairs ---


def test_one_prompt_gives_a_bounded_number_of_pairs():
    texts = tuple(str(k) for k in range(700))
    labels = Record(prompt="p", completions=texts, labels=(1, -1) * 350, origin="f:1")
    with pytest.raises(
        DataError, match=r"f:1: the 700 completions of one prompt give too many pairs; got 122,500"
    ):
        derive([labels], "pairs")
    rewards = Record(prompt="p", completions=texts, rewards=tuple(map(float, range(700))), origin="f:1")
    with pytest.raises(DataError, match=r"got 244,650 pairs made of rewards.*pairing best_worst"):
        derive([rewards], "pairs")
    few, _ = derive([rewards], "pairs", min_gap=500.0)
    assert len(few[0].pairs) == 200 * 201 // 2
    best, _ = derive([rewards], "pairs", pairing="best_worst")
    assert len(best[0].pairs) == 1
