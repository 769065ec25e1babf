"""Errors as users read them."""

from collections.abc import Callable
from typing import Any

import pytest

from preftune.errors import PreftuneError


def refusal(call: Callable[..., Any], *args: Any, **kwargs: Any) -> str:
    """The sentence with which a call is refused."""
    with pytest.raises(PreftuneError) as caught:
        call(*args, **kwargs)
    return str(caught.value)
