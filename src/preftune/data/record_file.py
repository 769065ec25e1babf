"""A temporary file of records: memory holds a few bytes per record, whatever the length of its texts."""

import hashlib
import json
import os
import pickle
import tempfile
from array import array
from collections.abc import Sequence
from contextlib import suppress

import numpy as np

from preftune.errors import storage_error
from preftune.types import Completion, Message, Record, ToolCall, TurnExtras

_BUFFER = 1 << 20  # bytes that are written at once
_READ = 1 << 16  # bytes that are read at once: records are requested in their order, mostly


class RecordFile:
    """Records in a temporary file without a name, which is gone with the process: written once, then read by
    number.

    In memory stay eight bytes of each record.
    """

    def __init__(self) -> None:
        self._ends = array("q")  # of each record's bytes
        self._read, self._read_from = b"", 0  # what was read last, and where it begins
        try:
            self._file = tempfile.TemporaryFile(buffering=_BUFFER)  # noqa: SIM115 (open until `close`)
        except OSError as error:
            raise storage_error("keep rows for a while", tempfile.gettempdir(), error) from error

    def __len__(self) -> int:
        return len(self._ends)

    def append(self, record: Record) -> None:
        content = pickle.dumps(_packed(record), protocol=5)  # read back by this process alone
        try:
            self._file.write(content)
        except OSError as error:
            raise storage_error("keep rows for a while", tempfile.gettempdir(), error) from error
        self._ends.append((self._ends[-1] if self._ends else 0) + len(content))

    def finish(self) -> None:
        """Everything is written; from now on records are read."""
        try:
            self._file.flush()
        except OSError as error:
            raise storage_error("keep rows for a while", tempfile.gettempdir(), error) from error

    def __getitem__(self, index: int) -> Record:
        start, end = self._ends[index - 1] if index else 0, self._ends[index]
        if not self._read_from <= start <= end <= self._read_from + len(self._read):
            self._read, self._read_from = os.pread(self._file.fileno(), max(end - start, _READ), start), start
        return _unpacked(pickle.loads(self._read[start - self._read_from : end - self._read_from]))

    def close(self) -> None:
        with suppress(OSError):  # what a full disk left in the buffer: the error was raised when it was met
            self._file.close()


def _packed(record: Record) -> tuple:
    """Plain tuples, which are much quicker to write and read than objects."""
    prompt = (
        record.prompt if isinstance(record.prompt, str) else [_packed_turn(turn) for turn in record.prompt]
    )
    texts = [
        text if isinstance(text, str) else [_packed_turn(turn) for turn in text]
        for text in record.completions
    ]
    return (
        prompt,
        texts,
        record.pairs,
        record.probabilities,
        record.labels,
        record.rewards,
        record.ended,
        record.sources,
        record.origin,
        dict(record.columns),
        record.tools,
        record.chat_template_kwargs,
    )


def _packed_turn(turn: Message) -> tuple:
    extras = turn.extras
    if extras is None:
        return turn.role, turn.content
    calls = [(call.name, call.arguments, call.id) for call in extras.tool_calls]
    return (
        turn.role,
        turn.content,
        (extras.reasoning, calls, extras.name, extras.tool_call_id, extras.weight),
    )


def _unpacked(values: tuple) -> Record:
    prompt, texts, pairs, probabilities, labels, rewards, ended, sources, origin, columns, tools, kwargs = (
        values
    )
    completions: tuple[Completion, ...] = tuple(
        [text if isinstance(text, str) else _turns(text) for text in texts]
    )
    return Record(
        prompt=prompt if isinstance(prompt, str) else _turns(prompt),
        completions=completions,
        pairs=pairs,
        probabilities=probabilities,
        labels=labels,
        rewards=rewards,
        ended=ended,
        sources=sources,
        tools=tools,
        chat_template_kwargs=kwargs,
        origin=origin,
        columns=columns,
    )


def _turns(values: Sequence[tuple]) -> tuple[Message, ...]:
    return tuple(
        [
            Message(role=value[0], content=value[1])
            if len(value) == 2
            else Message(role=value[0], content=value[1], extras=_extras(*value[2]))
            for value in values
        ]
    )


def _extras(
    reasoning: str, calls: Sequence[tuple[str, str, str]], name: str, tool_call_id: str, weight: float | None
) -> TurnExtras:
    return TurnExtras(
        reasoning=reasoning,
        tool_calls=tuple(
            [ToolCall(name=called, arguments=arguments, id=call) for called, arguments, call in calls]
        ),
        name=name,
        tool_call_id=tool_call_id,
        weight=weight,
    )


class Places:
    """Which records, by number, belong together, found from a key of each; 16 bytes of each are kept.

    Records without a key stay alone. The order is that of each first record.
    """

    def __init__(self) -> None:
        self._keys = bytearray()
        self._alone = bytearray()  # a byte for each record

    def add(self, name: str | None, record: Record) -> None:
        """The next record: its key is the name and its prompt; without a name it stays alone."""
        self._alone.append(name is None)
        if name is not None:
            prompt = record.prompt
            turns = prompt if isinstance(prompt, str) else [_packed_turn(turn) for turn in prompt]
            key = [name, turns, record.tools, record.chat_template_kwargs]
            self._keys += hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest()

    def groups(self) -> tuple[np.ndarray, np.ndarray]:
        """(members, ends): the numbers of all records, group by group, and where each group ends among them."""
        alone = np.frombuffer(self._alone, dtype=bool)
        if not len(alone):
            return np.arange(0), np.arange(0)
        keyed = np.flatnonzero(~alone)
        first = np.arange(len(alone))  # of each record, the first record of its group
        halves = np.frombuffer(self._keys, dtype="<u8").reshape(-1, 2)
        order = np.lexsort((halves[:, 1], halves[:, 0]))  # stable: of equal keys the first record comes first
        if len(order):
            fresh = np.append(True, (halves[order[1:]] != halves[order[:-1]]).any(axis=1))
            starts = order[np.flatnonzero(fresh)]
            first[keyed[order]] = keyed[starts[np.cumsum(fresh) - 1]]
        members = np.argsort(first, kind="stable")
        return members, np.flatnonzero(np.append(first[members][1:] != first[members][:-1], True)) + 1
