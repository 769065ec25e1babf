"""Whether libraries have the versions of constraints.txt, for tests of what other versions do otherwise."""

from functools import cache
from importlib.metadata import version
from pathlib import Path

import pytest


@cache
def _versions() -> dict[str, str]:
    lines = (Path(__file__).parents[1] / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return dict(line.split("==") for line in lines if "==" in line and not line.startswith("#"))


def pinned(*names: str) -> bool:
    return all(version(name).split("+")[0] == _versions()[name] for name in names)


def needs_pinned(*names: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(not pinned(*names), reason=f"of {' and '.join(names)} as in constraints.txt")
