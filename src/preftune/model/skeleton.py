"""A model without its weights, to send to processes that will get a part of each weight: bytes, and back."""

import io
import pickle
from typing import Any

import torch
from torch import nn

_MARK = "preftune.parameter"


class _Writer(pickle.Pickler):
    """Writes a parameter as its number, shape, type, and whether it trains; one that is met again, as the same
    number.
    """

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self._numbers: dict[int, int] = {}

    def persistent_id(self, obj: Any) -> Any:
        if not isinstance(obj, nn.Parameter):
            return None
        number = self._numbers.setdefault(id(obj), len(self._numbers))
        return _MARK, number, tuple(obj.shape), obj.dtype, obj.requires_grad


class _Reader(pickle.Unpickler):
    """Reads parameters onto the meta device, which has no memory."""

    def __init__(self, file: io.BytesIO):
        super().__init__(file)
        self._made: dict[int, nn.Parameter] = {}

    def persistent_load(self, pid: Any) -> nn.Parameter:
        mark, number, shape, dtype, trains = pid
        assert mark == _MARK
        if number not in self._made:
            empty = torch.empty(shape, dtype=dtype, device="meta")
            self._made[number] = nn.Parameter(empty, requires_grad=trains)
        return self._made[number]


def skeleton(thing: Any) -> bytes:
    """An object with models inside, without the values of their parameters. What cannot be pickled raises the
    errors of pickle.
    """
    file = io.BytesIO()
    _Writer(file).dump(thing)
    return file.getvalue()


def from_skeleton(content: bytes) -> Any:
    """The object, its parameters on the meta device. For content of this run's own processes only."""
    return _Reader(io.BytesIO(content)).load()
