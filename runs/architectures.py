"""Two training steps of every causal architecture of the installed transformers, each by the command line.

    python runs/architectures.py [--only KIND ...] [--json]

A tiny random model of each architecture (tests/architectures.py) is saved with a small tokenizer and trained by
`preftune train --objective dpo --max_steps 2`. An architecture counts as trained if the command ends with status 0 and
logs two steps with finite losses, and as refused if it ends with status 2 and one line. Everything else, a traceback
above all, is a failure and sets the exit status to 1.
"""

import argparse
import contextlib
import io
import json
import math
import sys
import time
import traceback
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.architectures import ARCHITECTURES, NOT_MADE, tiny_architecture
from tests.data.tokenizers_for_tests import CHATML, word_tokenizer
from tests.folders import PAIRS, write_rows

from preftune.cli.main import main as preftune


def outcome(kind: str, folder: Path, data: str) -> str:
    """ "trained", or the refusal, or what failed."""
    model = tiny_architecture(kind)
    model.save_pretrained(folder / "model")
    word_tokenizer(CHATML, eos="<|im_end|>").save_pretrained(folder / "model")
    said = io.StringIO()
    words = ["--model", f"{folder}/model", "--data", data, "--output", f"{folder}/run", "--objective", "dpo"]
    words += ["--max_steps", "2", "--batch_size", "4", "--eval_fraction", "0", "--rows.max_length", "128"]
    try:
        with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
            status = preftune(["train", *words])
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"TRACEBACK {type(error).__name__}: {error} ({where.filename}:{where.lineno})"
    lines = [line for line in said.getvalue().splitlines() if line.startswith("preftune train: ")]
    if status == 2 and len(lines) == 1:
        return lines[0].removeprefix("preftune train: ")
    if status:
        return f"FAILED: status {status}: {said.getvalue()[-300:]}"
    rows = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [row["loss"] for row in rows if row["phase"] == "train"]
    good = len(losses) == 2 and all(map(math.isfinite, losses))
    return "trained" if good else f"FAILED: losses {losses}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    found: dict[str, str] = {}
    start, used = time.monotonic(), time.process_time()
    for kind in settings.only or [kind for kind in ARCHITECTURES if kind not in NOT_MADE]:
        with TemporaryDirectory() as scratch:
            data = write_rows(Path(scratch) / "pairs.jsonl", PAIRS)
            found[kind] = outcome(kind, Path(scratch), data)
        print(f"{kind}: {found[kind]}", flush=True)
    failed = [kind for kind, said in found.items() if said.startswith(("TRACEBACK", "FAILED"))]
    counts = Counter(
        "failed" if k in failed else "trained" if v == "trained" else "refused" for k, v in found.items()
    )
    seconds = (time.monotonic() - start, time.process_time() - used)
    print(
        json.dumps(found)
        if settings.json
        else f"{dict(counts)}, {seconds[0]:.0f} s, {seconds[1]:.0f} s of processor time"
    )
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
