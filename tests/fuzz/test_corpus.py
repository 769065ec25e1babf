"""Over a thousand malformed inputs: each is refused in one sentence or read right; none ends in a traceback or hangs.

`make fuzz` runs all of them, `make test` every tenth, and every third of those written by hand.
"""

import os
import signal
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from preftune.errors import PreftuneError
from tests.fuzz.corpus import Entry, corpus
from tests.fuzz.coverage_guided import TARGETS
from tests.fuzz.readers import read

EVERY = (1, 1) if os.environ.get("FUZZ") else (10, 3)  # of generated inputs, of those written by hand
SECONDS = 20.0  # of processor time for one input
WAIT = 180.0  # seconds for one input on a busy machine
MOST_WORDS = 1500  # characters of a refusal
ENTRIES = corpus()


class Hang(BaseException):
    """An input took too long."""


def outcome(entry: Entry, folder: Path) -> str:
    """refused, read, or what went wrong."""

    def stop(*_: object) -> None:
        raise Hang

    before = {number: signal.signal(number, stop) for number in (signal.SIGALRM, signal.SIGPROF)}
    signal.setitimer(signal.ITIMER_REAL, WAIT)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        read(entry.target, entry.content, folder)
        found = "read"
    except PreftuneError as error:
        found = (
            "refused"
            if "\n" not in str(error).strip() and len(str(error)) <= MOST_WORDS
            else f"words: {error}"
        )
    except Hang:
        found = "hang"
    except AssertionError as error:
        found = f"wrong: {error}"
    except BaseException as error:
        found = f"traceback: {type(error).__name__} {str(error)[:200]}"
    finally:
        for timer in (signal.ITIMER_REAL, signal.ITIMER_PROF):
            signal.setitimer(timer, 0)
        for number, handler in before.items():
            signal.signal(number, handler)
    if entry.expected not in ("either", found):
        return f"unexpected: {found}"
    return found


def test_the_corpus_holds_over_a_thousand_inputs_and_is_the_same_everywhere():
    assert len(ENTRIES) > 1000
    assert [entry.content for entry in corpus()] == [entry.content for entry in ENTRIES]


@pytest.mark.parametrize("target", sorted({entry.target for entry in ENTRIES}))
@pytest.mark.filterwarnings("default")  # a library's warning about an input is no fault
def test_every_input_is_refused_or_read_right(target, tmp_path, record_property):
    mine = [entry for entry in ENTRIES if entry.target == target]
    chosen = [entry for place, entry in enumerate(mine) if place % EVERY[entry.name.startswith("line ")] == 0]
    counts, faults = Counter(), []
    for number, entry in enumerate(chosen):
        folder = tmp_path / str(number)
        folder.mkdir()
        found = outcome(entry, folder)
        counts[found.partition(":")[0]] += 1
        if found not in ("refused", "read"):
            faults.append(f"{entry.target}, {entry.name}: {found}")
    print(f"{target}: {dict(counts)}")
    assert not faults, "\n".join(faults)


@pytest.mark.skipif(not os.environ.get("FUZZ"), reason="make fuzz runs it")
@pytest.mark.parametrize("target", TARGETS)
def test_inputs_found_by_coverage_are_refused_or_read_right(target):
    pytest.importorskip("atheris", reason="atheris is not installed: pip install 'preftune[fuzz]'")
    seconds = os.environ.get("FUZZ_SECONDS", "30")
    words = [sys.executable, "-m", "tests.fuzz.coverage_guided", target, seconds]
    done = subprocess.run(words, capture_output=True, text=True, timeout=int(seconds) + 300)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
