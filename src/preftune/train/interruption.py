"""Signals that ask a run to stop: Ctrl-C, SIGTERM of schedulers, SIGHUP of a terminal that was closed."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

GRACE_SECONDS = 10.0
"""A scheduler signals a process group and its launcher at once, so one request may arrive as several signals.
Only one that comes this long after the first counts as a second request.
"""


class Interruption:
    """Whether a stop was requested. The loop checks after every step, so a request never interrupts the writing of
    a checkpoint or of the final model; only a second request during a step stops the run at once.
    """

    def __init__(self) -> None:
        self._first: float | None = None  # monotonic: a changed system clock has no effect
        self._safe = False

    @property
    def requested(self) -> bool:
        return self._first is not None

    def handle(self, number: int, frame: FrameType | None) -> None:
        """The signal handler."""
        now = time.monotonic()
        if self._first is None:
            self._first = now
        elif not self._safe and now - self._first >= GRACE_SECONDS:
            raise KeyboardInterrupt

    @contextmanager
    def postponed(self) -> Iterator[None]:
        """Within, no number of signals stops the process."""
        before, self._safe = self._safe, True
        try:
            yield
        finally:
            self._safe = before


@contextmanager
def interruption() -> Iterator[Interruption]:
    """Within, signals become requests. A signal that the caller ignores (nohup, a job in the background) stays
    ignored.
    """
    found = Interruption()
    if threading.current_thread() is not threading.main_thread():
        yield found
        return
    numbers = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
    heard = [number for number in numbers if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, found.handle) for number in heard}
    try:
        yield found
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
