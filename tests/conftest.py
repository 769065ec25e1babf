"""Shared by all tests: deterministic torch, no network, a cache of its own."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch


@pytest.fixture(autouse=True)
def _deterministic():
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory, monkeypatch):
    """Reference caches of a test stay out of the user's; the bundled model is looked up where the user has it."""
    monkeypatch.setenv("PREFTUNE_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))
