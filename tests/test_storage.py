"""A file is written whole or not at all."""

import os

import pytest

from preftune.errors import StorageError
from preftune.storage import locked, new_file, whole_file


def test_it_takes_the_place_of_what_was_there(tmp_path):
    path = tmp_path / "new" / "page.html"
    for text in ("one", "two"):
        with whole_file(path, "write the page") as file:
            file.write_text(text)
            assert file.suffix == ".html" and file.parent == path.parent
            assert not path.exists() or path.read_text() == "one"
        assert path.read_text() == text
    assert list(path.parent.iterdir()) == [path]


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "page.html"
    path.write_text("whole")
    for error, told in ((OSError(28, "No space left"), StorageError), (ValueError("a bug"), ValueError)):
        with pytest.raises(told), whole_file(path, "write the page") as file:
            file.write_text("ha")
            raise error
        assert path.read_text() == "whole" and list(tmp_path.iterdir()) == [path]


def test_a_folder_that_cannot_be(tmp_path):
    (tmp_path / "file").touch()
    for path in (tmp_path / "file" / "page.html", tmp_path / "file" / "deep" / "page.html"):
        with (
            pytest.raises(StorageError, match=r"Cannot write the page at .*page\.html"),
            whole_file(path, "write the page"),
        ):
            pass


def test_the_next_process_removes_what_a_killed_one_left_of_the_file(tmp_path):
    """Its own file only: that of an output with a longer name may be of a process that is still writing."""
    left = tmp_path / ".out.123-0a1b2c3d.tmp.jsonl"
    others = [tmp_path / ".out.a.123-0a1b2c3d.tmp.jsonl", tmp_path / ".out.123-0a1b2c3d.tmp.json"]
    for path in (left, *others):
        path.write_text("x")
    with new_file(str(tmp_path / "out.jsonl"), overwrite=False):
        assert not left.exists()
        assert all(path.exists() for path in others)


def test_a_pipe_in_the_place_of_a_lock_is_no_lock(tmp_path):
    os.mkfifo(tmp_path / ".lock")
    with pytest.raises(StorageError, match="is no file; got a pipe"), locked(tmp_path / ".lock", "it"):
        pass
