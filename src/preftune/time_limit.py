"""A call with a time limit."""

import contextvars
import queue
import threading
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


class Overdue(Exception):
    """The work was not done in time."""


def run_apart(work: Callable[[], T], seconds: float | None) -> T:
    """What `work` gives in a separate thread, where it may start an event loop whatever runs here; raises
    Overdue.

    A thread cannot be stopped: work that is overdue continues until it returns or the process ends, which does
    not wait for it. Work that never lets go of the interpreter's lock cannot be found overdue.
    """
    outcome: queue.SimpleQueue[tuple[Any, BaseException | None]] = queue.SimpleQueue()
    context = contextvars.copy_context()

    def run() -> None:
        try:
            outcome.put((context.run(work), None))
        except BaseException as error:  # handed over, whatever it is: nothing else here would report it
            outcome.put((None, error))

    threading.Thread(target=run, daemon=True, name="preftune-reward").start()
    try:
        value, error = outcome.get(timeout=seconds)
    except queue.Empty:
        raise Overdue from None
    if error is not None:
        raise error
    return value
