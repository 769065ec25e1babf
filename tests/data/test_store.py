"""The token store: what is read back is what was written, nothing damaged is used, and memory does not grow
with the rows.
"""

import json
import os
import subprocess
import sys
import threading
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.data.record_file import Places, RecordFile
from preftune.data.signals import derive
from preftune.data.store import JoinedGroups, SomeGroups, StoredGroups, StoreWriter, read_meta
from preftune.data.store_key import store_key
from preftune.errors import DataError, StorageError
from preftune.types import Group, Message, Record
from tests.data import tokenizers_for_tests as made

PAIR = {"prompt": "Hello", "chosen": "I am fine", "rejected": "The sea"}


@pytest.fixture(scope="module")
def chat():
    return made.byte_tokenizer(made.CHATML, eos="<|im_end|>")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "tokens"


def write(path, rows):
    path.write_text("\n".join(map(json.dumps, rows)))
    return path


def plain(group: Group) -> dict[str, object]:
    """For comparison: arrays as lists, with what they hold; a mask that is true everywhere is none."""
    values = {each.name: getattr(group, each.name) for each in fields(group)}
    masks = values.pop("scored")
    arrays = {
        "prompt": [group.prompt],
        "completions": group.completions,
        "masks": () if all(map(np.all, masks)) else masks,
    }
    return values | {
        name: [(one.dtype.name, one.flags.writeable, one.tolist()) for one in some]
        for name, some in arrays.items()
    }


ids = st.lists(st.integers(0, 2**31 - 1), min_size=1, max_size=5)


@st.composite
def groups(draw):
    completions = [np.array(one, dtype=np.int32) for one in draw(st.lists(ids, max_size=3))]
    count = len(completions)
    masks = [
        np.array(draw(st.lists(st.booleans(), min_size=len(one), max_size=len(one)))) for one in completions
    ]
    several = st.lists(st.tuples(*[st.integers(0, count - 1)] * 2), max_size=3) if count else st.just([])
    pairs = tuple(draw(several))
    some = draw(st.booleans())
    numbers = st.none() | st.floats(allow_nan=False)
    return dict(
        prompt=np.array(draw(ids), dtype=np.int32),
        completions=tuple(completions),
        pairs=pairs,
        scored=tuple(masks) if some else (),
        origin=draw(st.text(max_size=5)),
        probabilities=tuple(draw(st.lists(st.floats(0, 1), min_size=len(pairs), max_size=len(pairs))))
        if some
        else (),
        labels=tuple(draw(st.lists(st.sampled_from([1, -1, None]), min_size=count, max_size=count)))
        if some
        else (),
        rewards=tuple(draw(st.lists(numbers, min_size=count, max_size=count))) if some else (),
        sources=tuple(draw(st.lists(st.integers(0, 2), min_size=count, max_size=count))) if some else (),
    )


@settings(max_examples=20, deadline=None)
@given(some=st.lists(groups(), min_size=1, max_size=4))
def test_what_is_read_is_what_was_written(some, tmp_path_factory):
    some = [Group(**values) for values in some]
    folder = tmp_path_factory.mktemp("store")
    writer = StoreWriter(folder)
    for group in some:
        writer.add(group)
    writer.finish({"more": 1})
    stored = StoredGroups(folder, certain=False)
    assert [plain(group) for group in stored] == [plain(group) for group in some]
    assert (read_meta(folder) or {})["more"] == 1
    assert plain(stored[-1]) == plain(some[-1]) and len(stored) == len(some)
    assert writer.num_scored == sum(sum(group.num_scored) for group in some)
    for view in (stored[::-1], SomeGroups(groups=stored, places=np.arange(len(some))[::-1])):
        assert [plain(group) for group in view] == [plain(group) for group in some[::-1]]
    both = JoinedGroups(first=stored, second=some)
    assert (
        [plain(group) for group in both]
        == [plain(group) for group in both[::1]]
        == [plain(group) for group in [*some, *some]]
    )
    with pytest.raises(IndexError):
        stored[len(some)]


MESSAGES = [Message(role=role, content=content) for role in ("user", "tool") for content in ("", "a")]
turns = st.lists(st.sampled_from(MESSAGES), min_size=1, max_size=3).map(tuple)
records = st.builds(
    dict,
    prompt=st.sampled_from(["a", "b", ""]) | turns,
    completions=st.lists(st.text(max_size=3) | turns, max_size=3).map(tuple),
    rewards=st.lists(st.none() | st.floats(allow_nan=False), max_size=2).map(tuple),
    origin=st.text(max_size=3),
    columns=st.dictionaries(
        st.text(max_size=3), st.none() | st.integers() | st.lists(st.text(max_size=2), max_size=2), max_size=2
    ),
)


@settings(max_examples=20, deadline=None)
@given(some=st.lists(records, max_size=5), keyed=st.lists(st.booleans(), min_size=5, max_size=5))
def test_records_come_back_and_those_of_a_key_together(some, keyed):
    some = [Record(**values) for values in some]
    waiting, places = RecordFile(), Places()
    order: dict[object, list[int]] = {}
    for index, record in enumerate(some):
        waiting.append(record)
        places.add("x" if keyed[index] else None, record)
        order.setdefault(record.prompt if keyed[index] else index, []).append(index)
    waiting.finish()
    assert [waiting[index] for index in range(len(waiting))] == some
    members, ends = places.groups()
    assert [part.tolist() for part in np.split(members, ends[:-1])] == (list(order.values()) or [[]])
    waiting.close()


def test_rows_far_apart_are_joined_in_the_order_of_the_first(tmp_path, chat):
    rows = [{"prompt": f"p{k % 3}", "completion": f"answer {k}", "label": k < 3} for k in (2, 0, 1, 5, 4, 3)]
    path = write(tmp_path / "a.jsonl", rows)
    prepared = prepare(path, chat, "pairs", DataOptions())
    assert [group.origin for group in prepared.groups] == [f"{path}:1", f"{path}:2", f"{path}:3"]
    assert [chat.decode(group.completions[1]) for group in prepared.groups] == [
        f"answer {k}<|im_end|>" for k in (5, 3, 4)
    ]
    assert prepared.report.derived is not None and prepared.report.derived.merged == 3
    in_memory, report = derive(prepared.records, "pairs")
    assert [record.origin for record in in_memory] == [
        group.origin for group in prepared.groups
    ] and report.merged == 0


# --- the cache ---


def contents(prepared):
    return [plain(group) for group in prepared.groups], prepared.report, prepared.bad_rows


def test_a_second_preparation_reads_the_store_and_tells_the_same(tmp_path, chat, cache, monkeypatch):
    path = write(
        tmp_path / "a.jsonl",
        [PAIR, {"prompt": 1}, {**PAIR, "probability": 0.25}, {**PAIR, "chosen": "The sea"}],
    )
    options = DataOptions(bad_rows="skip")
    first = prepare(path, chat, "pairs", options)
    assert [folder.name for folder in cache.iterdir()] == [store_key(str(path), chat, "pairs", options)]
    monkeypatch.setattr("preftune.data.render.Renderer.render_all", None)  # nothing is rendered again
    again = prepare(path, chat, "pairs", options)
    assert contents(again) == contents(first) and again.records == first.records
    assert [group.probabilities for group in again.groups] == [(1.0,), (0.25,)]


def test_whatever_changes_the_groups_gives_another_store(tmp_path, chat):
    path, options = write(tmp_path / "a.jsonl", [PAIR]), DataOptions()
    keys = [store_key(str(path), chat, "pairs", options)]
    keys += [
        store_key(str(path), chat, "labels", options),
        store_key(str(path), chat, "pairs", replace(options, max_length=9)),
    ]
    other = made.byte_tokenizer(made.CHATML, eos="<|im_end|>")
    other.add_tokens(["sea"])
    keys += [store_key(str(path), other, "pairs", options)]
    others = [made.byte_tokenizer(template, eos="<|im_end|>") for template in (None, made.LLAMA3)]
    keys += [
        store_key(str(path), one, "pairs", options) for one in (*others, made.byte_tokenizer(made.CHATML))
    ]
    write(path, [PAIR, PAIR])
    keys += [store_key(str(path), chat, "pairs", options), store_key(str(tmp_path), chat, "pairs", options)]
    write(tmp_path / "b.jsonl", [PAIR])
    keys += [store_key(str(tmp_path), chat, "pairs", options)]
    assert None not in keys and len(set(keys)) == len(keys)


def test_what_cannot_be_told_is_not_kept(tmp_path, chat, cache):
    path = write(tmp_path / "a.jsonl", [PAIR])
    clock = made.byte_tokenizer("{{ strftime_now('%Y') }}" + made.CHATML)
    assert (
        store_key(str(path), clock, "pairs", DataOptions())
        is store_key("owner/name", chat, "pairs", DataOptions())
        is None
    )
    assert len(prepare(path, clock, "pairs", DataOptions()).groups) == 1 and not cache.exists()


@pytest.mark.parametrize("name", ["tokens", "heads", "index", "meta.json"])
def test_a_damaged_store_is_made_anew(name, tmp_path, chat, cache):
    path = write(tmp_path / "a.jsonl", [PAIR] * 3)
    before = contents(prepare(path, chat, "pairs", DataOptions()))
    (folder,) = cache.iterdir()
    whole = (folder / name).read_bytes()
    for damage in (whole[:-1], bytes([whole[0] ^ 1]) + whole[1:], None):
        (folder / name).unlink() if damage is None else (folder / name).write_bytes(damage)
        assert read_meta(folder) is None
        assert contents(prepare(path, chat, "pairs", DataOptions())) == before
        assert read_meta(folder) is not None and [each.name for each in cache.iterdir()] == [folder.name]


def test_a_row_that_stops_leaves_nothing_behind(tmp_path, chat, cache):
    path = write(tmp_path / "a.jsonl", [PAIR, {"prompt": 1}])
    with pytest.raises(DataError):
        prepare(path, chat, "pairs", DataOptions())
    assert not list(cache.iterdir())


def test_several_at_once_make_one_store(tmp_path, chat, cache):
    path, found = write(tmp_path / "a.jsonl", [PAIR] * 50), []

    def once():
        found.append(contents(prepare(path, chat, "pairs", DataOptions())))

    threads = [threading.Thread(target=once) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 4 and all(one == found[0] for one in found) and len(list(cache.iterdir())) == 1


def test_groups_outlive_their_store(tmp_path, chat, cache):
    prepared = prepare(write(tmp_path / "a.jsonl", [PAIR]), chat, "pairs", DataOptions())
    before = contents(prepared)
    for folder in cache.iterdir():
        for file in folder.iterdir():
            file.unlink()
    assert contents(prepared) == before


def test_a_cache_that_cannot_be_written_does_not_stop_anyone(tmp_path, chat, monkeypatch):
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path / "file"))
    assert len(prepare(write(tmp_path / "a.jsonl", [PAIR]), chat, "pairs", DataOptions()).groups) == 1


def test_no_room_is_told_in_a_sentence(tmp_path, chat, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    path = write(tmp_path / "a.jsonl", [PAIR])
    monkeypatch.setattr(StoreWriter, "add", full)
    with pytest.raises(StorageError, match=r"write the token store.*No space left"):
        prepare(path, chat, "pairs", DataOptions())


def test_rows_that_changed_since_are_no_records_of_these_groups(tmp_path, chat):
    path = write(tmp_path / "a.jsonl", [PAIR, PAIR])
    prepared = prepare(path, chat, "pairs", DataOptions())
    assert [record.origin for record in prepared.records] == [f"{path}:1", f"{path}:2"]
    write(path, [PAIR])
    with pytest.raises(DataError, match="has changed since it was read"):
        _ = prepared.records


# --- memory ---

PROGRAM = """
import json, resource, sys
import numpy as np
from preftune.data.options import DataOptions
from preftune.data.prepare import prepare
from preftune.train.sources import OfflineSource, hold_out
from tests.data import tokenizers_for_tests as made
file, count, method = sys.argv[1], int(sys.argv[2]), sys.argv[3]
def row(k):
    prompt = [{"role": "user", "content": f"{k // 2 if method == 'labels' else k}: what is the capital of the sea?"}]
    answers = [[{"role": "assistant", "content": f"The capital of France is Paris {k} {side}."}] for side in "ab"]
    one = {"completion": answers[0], "label": k % 2 == 0}
    return {"prompt": prompt, **(one if method == "labels" else {"chosen": answers[0], "rejected": answers[1]})}
with open(file, "w") as out:
    for k in range(count):
        out.write(json.dumps(row(k)) + "\\n")
prepared = prepare(file, made.byte_tokenizer(made.CHATML, eos="<|im_end|>"), "pairs", DataOptions())
train, held = hold_out(prepared.groups, 0.1, 0)
source = OfflineSource(groups=train, batch_size=8, seed=0)
tokens = sum(len(group.prompt) for group in source.visited(10**9))
assert len(prepared.groups) == (count // 2 if method == "labels" else count) and len(source.take(1)) == 8 and tokens
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


def peak(tmp_path, count, method) -> float:
    """MiB of a fresh process that prepares so many rows, holds some out and walks over the rest."""
    root = Path(__file__).parents[2]
    paths = os.pathsep.join([str(root / "src"), str(root)])
    environment = {**os.environ, "PREFTUNE_CACHE": str(tmp_path / "cache"), "PYTHONPATH": paths}
    result = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tmp_path / f"{count}.jsonl"), str(count), method],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    return float(result.stdout.split()[-1])


@pytest.mark.parametrize(
    ("method", "small", "large"),
    [("labels", 5_000, 25_000), pytest.param("pairs", 10_000, 200_000, marks=pytest.mark.slow)],
)
def test_memory_does_not_grow_with_the_rows(method, small, large, tmp_path):
    """By less than 200 bytes for each further row, of which the texts alone have 250 and the tokens, in
    memory, more than 300.
    """
    grown = peak(tmp_path, large, method) - peak(tmp_path, small, method)
    assert grown * 2**20 < 200 * (large - small)
