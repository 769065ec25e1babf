"""What a person sees while a run works: a bar with the time left on a terminal, now and then a line
elsewhere.
"""

import sys
import time
from dataclasses import dataclass, field

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from preftune.terminal import clean_terminal


@dataclass(kw_only=True)
class Reporter:
    """Progress and notes on standard error, so that standard output stays for results. Where that is no terminal,
    a phase has a line every `line_seconds` at most.
    """

    quiet: bool = False
    line_seconds: float = 15.0
    console: Console = field(default_factory=lambda: Console(file=sys.stderr, highlight=False))
    _bar: Progress | None = None
    _phase: str = ""
    _started: float = 0.0
    _first: int = 0
    _told: float = 0.0

    def note(self, text: str) -> None:
        if self.quiet:
            return
        try:
            self.console.print(clean_terminal(text), markup=False, soft_wrap=True)
        except OSError:  # the terminal was closed: the run matters more than its output
            self.quiet, self._bar = True, None

    def update(self, phase: str, done: int, total: int, detail: str = "") -> None:
        """`done` of `total` of a phase; a new phase (best started with what is already done) has its
        own bar.
        """
        if self.quiet:
            return
        if phase != self._phase:
            self.close()
            self._phase, self._started, self._first = phase, time.monotonic(), done
            self._told = self._started
            if self.console.is_terminal:
                self._bar = Progress(
                    TextColumn("{task.description}"),
                    BarColumn(),
                    MofNCompleteColumn(),
                    TimeElapsedColumn(),
                    TextColumn("left"),
                    TimeRemainingColumn(),
                    TextColumn("{task.fields[detail]}"),
                    console=self.console,
                )
                self._bar.add_task(phase, total=total, detail="")
                self._bar.start()
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=done, total=total, detail=detail)
        else:
            self._line(phase, done, total, detail)
        if done >= total:
            self.close()

    def _line(self, phase: str, done: int, total: int, detail: str) -> None:
        now = time.monotonic()
        if done < total and now - self._told < self.line_seconds:
            return
        self._told = now
        left = (now - self._started) / max(done - self._first, 1) * (total - done)
        time_left = f", {left:.0f} s left" if done < total else f" in {now - self._started:.0f} s"
        self.note(f"{phase} {done}/{total}{time_left}" + (f"  {detail}" if detail else ""))

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar, self._phase = None, ""
