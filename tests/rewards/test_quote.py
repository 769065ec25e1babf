"""The share of a completion that a corpus contains, by hand."""

import pytest

from preftune.errors import ConfigError
from preftune.rewards import resolve_reward


def test_shares_by_hand(tmp_path):
    """Corpus "abcde fgh" with n = 3: abc bcd cde "de " "e f" " fg" fgh."""
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("abcde\n\n fgh")
    reward = resolve_reward(f"quote(corpus={corpus}, n=3)")
    texts = ["abcde", "abcX", "XYZW", "ab", "e   fgh", "abc abc"]
    # abcX: abc of abc bcX; "e fgh": e f, " fg", fgh; "abc abc": abc and abc of abc, "bc ", "c a", " ab", abc
    assert reward(prompts=[""] * 6, completions=texts) == [1, 0.5, 0, None, 1, 2 / 5]


def test_a_folder_is_read_and_files_stay_apart(tmp_path):
    (tmp_path / "a.txt").write_text("abcd")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "b.md").write_text("efgh")
    (tmp_path / "c.bin").write_bytes(b"\xff\xfe")
    reward = resolve_reward(f"quote(corpus={tmp_path}, n=4)")
    assert reward(prompts=[""] * 3, completions=["abcd", "efgh", "cdef"]) == [1, 1, 0]


def test_what_cannot_be(tmp_path):
    (tmp_path / "short.txt").write_text("abc")
    (tmp_path / "bad.txt").write_bytes(b"\xff\xfe\xff")
    for spec, message in {
        f"quote(corpus={tmp_path / 'none'})": "holds no text",
        f"quote(corpus={tmp_path / 'short.txt'})": "shorter than one n-gram",
        f"quote(corpus={tmp_path / 'bad.txt'})": "cannot read",
        f"quote(corpus={tmp_path / 'short.txt'}, n=0)": "n of reward 'quote' is out of range",
    }.items():
        with pytest.raises(ConfigError, match=message):
            resolve_reward(spec)
