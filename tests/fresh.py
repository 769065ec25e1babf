"""What needs a fresh interpreter, such as which modules an import loads."""

import subprocess
import sys


def run_fresh(code: str) -> str:
    """Standard output of Python code; a failure shows its traceback."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout
