"""Commands and files as pages show them, run on a tiny model in the place of the named ones."""

import contextlib
import io
import re
import shlex
from pathlib import Path

from preftune.cli.main import main
from tests.folders import save_tiny_model

MODEL_NAMES = ("HuggingFaceTB/SmolLM2-360M-Instruct", "OWNER/NAME")
BUNDLED = Path("cache", "models", "smollm2-135m-instruct")  # in the home folder of the test


def make_home(folder: Path) -> Path:
    """A folder whose cache holds a tiny model as the bundled one. PREFTUNE_CACHE must name `folder / "cache"`."""
    save_tiny_model(folder / BUNDLED)
    return folder


def run_command(command: str, home: Path) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of a line that begins with `preftune`."""
    words = shlex.split(command, comments=True)[1:]
    words = [str(home / BUNDLED) if word in MODEL_NAMES else word for word in words]
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            status = main(words)
        except SystemExit as stop:  # --print_config and --help
            status = int(stop.code or 0)
    return status, out.getvalue(), err.getvalue()


def fenced(text: str, language: str) -> list[str]:
    """The blocks of a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def commands(text: str) -> list[str]:
    """The `preftune` lines of the bash blocks, in their order."""
    lines = "\n".join(fenced(text, "bash")).replace("\\\n", " ").splitlines()
    return [line.strip() for line in lines if line.strip().startswith("preftune ")]


def files(text: str) -> dict[str, str]:
    """Content of each file that the page shows: a block after a line that ends with its name and a colon."""
    return dict(re.findall(r"`([\w.-]+)`[^\n]*:\n\n```\w+\n(.*?)```", text, re.S))
