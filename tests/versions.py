"""The tests of the core with the oldest and the newest libraries that pyproject.toml allows.

    python tests/versions.py [lowest] [highest] [--folder .versions] [-- PYTEST ARGUMENTS]

Each has an environment of its own, which uv resolves: `lowest` takes the lower bound of each dependency, `highest`
the newest version that the package index has. Tools of the tests are those of constraints.txt. Exits with 1 if
a test fails in either.
"""

import argparse
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESOLUTIONS = {"lowest": "lowest-direct", "highest": "highest"}
TOOLS = ("pytest", "pytest-xdist", "hypothesis", "beartype")
SHOWN = ("torch", "transformers", "tokenizers", "huggingface-hub", "peft", "datasets", "numpy")
CORE = ("objectives", "contracts", "model", "sampling", "data", "train")
OTHER_MACHINES = (  # what needs more than the libraries of the core
    "tests/model/test_quantize.py",
    "tests/train/test_trackers.py",
    "tests/train/test_optimizers.py",
)


def prepared(name: str, folder: Path) -> Path:
    """The interpreter of an environment with the versions of one resolution."""
    place = folder / name
    uv = [sys.executable, "-m", "uv"]
    subprocess.run(
        [*uv, "venv", "--quiet", "--allow-existing", "--python", sys.executable, place], check=True
    )
    tools = [f"{tool}=={version(tool)}" for tool in TOOLS]
    words = ["pip", "install", "--quiet", "--python", place, "--resolution", RESOLUTIONS[name]]
    subprocess.run([*uv, *words, "--editable", f"{ROOT}[fast]", *tools, "pip"], check=True)
    return place / "bin" / "python"


def installed(python: Path) -> dict[str, str]:
    """Library -> version in an environment."""
    code = "import sys; from importlib.metadata import version; print(*map(version, sys.argv[1:]))"
    done = subprocess.run([python, "-c", code, *SHOWN], capture_output=True, text=True, check=True)
    return dict(zip(SHOWN, done.stdout.split(), strict=True))


def tested(python: Path, words: list[str]) -> tuple[int, str]:
    """(status, the last line) of the tests of the core."""
    files = [f"tests/{part}" for part in CORE if (ROOT / "tests" / part).is_dir()]
    left = [f"--ignore={path}" for path in OTHER_MACHINES]
    # Warnings are errors, but what a library of another age deprecates is not ours to change.
    quiet = ["-p", "no:cacheprovider", "-W", "ignore::DeprecationWarning"]
    command = [python, "-m", "pytest", "-q", "-n", "2", "--dist", "loadgroup", *quiet, *files, *left, *words]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    last = ""
    assert process.stdout is not None
    for line in process.stdout:
        print(line, end="", flush=True)
        last = line.strip() if re.search(r"\d+ (passed|failed|error)", line) else last
    return process.wait(), last


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="RESOLUTION", help=" or ".join(RESOLUTIONS))
    parser.add_argument("--folder", type=Path, default=ROOT / ".versions")
    words = sys.argv[1:]
    ours, theirs = (
        (words[: words.index("--")], words[words.index("--") + 1 :]) if "--" in words else (words, [])
    )
    settings = parser.parse_args(ours)
    names = settings.names or list(RESOLUTIONS)
    if unknown := [name for name in names if name not in RESOLUTIONS]:
        parser.error(f"there is no {unknown[0]}; expected {' or '.join(RESOLUTIONS)}")
    lines, worst = [], 0
    for name in names:
        python = prepared(name, settings.folder)
        status, last = tested(python, theirs)
        worst = max(worst, int(status != 0))
        lines.append(f"{name:8} {'; '.join(f'{k} {v}' for k, v in installed(python).items())}: {last}")
    print("\n".join(lines))
    return worst


if __name__ == "__main__":
    sys.exit(main())
