"""Shared by all tests: deterministic torch, no network, a cache of its own."""

import os
import signal

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("PREFTUNE_FSYNC", "0")  # no test cuts the power

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.typechecks import check_cheaply

os.environ.pop("COLUMNS", None)  # tables are as wide as in a pipe, whatever the terminal

check_cheaply()
# A shell without job control starts background jobs with SIGINT ignored, and a run respects that. The tests send
# this signal, also to processes that inherit how this one treats it.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")  # how long an example takes says more of the machine than of the code


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _piped_width(monkeypatch):
    """Tables have the width of piped output: readline gives the processes of pytest-xdist COLUMNS=80."""
    monkeypatch.delenv("COLUMNS", raising=False)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Reference caches of a test stay out of the user's; the bundled model is looked up where the user has
    it.
    """
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def advice_can_be_followed(monkeypatch):
    """Every error that a command prints advises flags that this command has, or names the command that has them."""
    from preftune.cli import main as cli
    from tests.advised_flags import impossible_flags

    line = cli.error_line

    def checked(words, error):
        assert not (flags := impossible_flags(words, error.advice)), f"{flags} in: {error}"
        return line(words, error)

    monkeypatch.setattr(cli, "error_line", checked)


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory):
    """A tiny model with its tokenizer, as a folder on disk."""
    from tests.folders import save_tiny_model

    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def pairs_file(tmp_path_factory):
    """Eight pairs of eight prompts."""
    from tests.folders import PAIRS, write_rows

    return write_rows(tmp_path_factory.mktemp("data") / "pairs.jsonl", PAIRS)
