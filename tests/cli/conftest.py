"""Shared by the tests of the command line."""

import pytest


@pytest.fixture(autouse=True)
def _advice(advice_can_be_followed):
    """In all tests of this folder."""
