"""Coverage-guided fuzzing of one reader with atheris.

    python -m tests.fuzz.coverage_guided TARGET SECONDS

The corpus entries of the target are the seeds. Stops at the first input that ends in anything but a right reading or a
refusal, and prints it in base64.
"""

import base64
import sys
import tempfile
import warnings
from pathlib import Path

TARGETS = ("data.jsonl", "data.json", "data.csv", "lab", "state", "manifest", "log", "judge")
"""Readers in Python that take microseconds to milliseconds: a server or a whole command would be too slow."""


def fuzz(target: str, seconds: int) -> None:
    import atheris  # type: ignore[import-not-found]

    with atheris.instrument_imports(include=["preftune"]):
        import preftune.data.records
        import preftune.lab.problem
        import preftune.train.checkpoint  # noqa: F401
    from preftune.errors import PreftuneError
    from tests.fuzz.corpus import corpus
    from tests.fuzz.readers import read

    warnings.simplefilter("ignore")  # of libraries, about an input
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        (root / "seeds").mkdir()
        for number, entry in enumerate(entry for entry in corpus() if entry.target == target):
            (root / "seeds" / str(number)).write_bytes(entry.content[:4096])

        def one_input(content: bytes) -> None:
            try:
                read(target, content, root)
            except PreftuneError:
                return
            except BaseException:
                print(f"{target}: {base64.b64encode(content).decode()}", flush=True)
                raise

        options = [f"-max_total_time={seconds}", "-timeout=20", "-max_len=4096", f"-artifact_prefix={root}/"]
        atheris.Setup([sys.argv[0], *options, str(root / "seeds")], one_input)
        atheris.Fuzz()


if __name__ == "__main__":
    fuzz(sys.argv[1], int(sys.argv[2]))
