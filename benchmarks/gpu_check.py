"""All that a machine with a GPU must show, step by step, without a network: a JSON object per step.

    python benchmarks/gpu_check.py                        # one CUDA device
    python benchmarks/gpu_check.py --device cpu --tiny    # rehearsal: trainings and the small benchmark on a CPU

Steps: tests of models (`tests`), trainings of a tiny model (`train:...`), the benchmark against TRL and the
plain baseline (`benchmark`, benchmarks/gpu.py). The exit status is 1 if a step fails.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.folders import PAIRS, save_tiny_model, write_rows  # noqa: E402

TRAININGS = {
    "bf16": "--precision bf16",
    "bf16-weights": "--precision bf16 --optim.weights bf16",
    "lora": "--precision bf16 --lora_r 4",
    "recompute": "--precision bf16 --gradient_checkpointing true",
    "live-reference": "--precision bf16 --reference.mode live",
    "segments": "--precision bf16 --layout.attention segments",
    "sdpa": "--precision bf16 --layout.attention sdpa",
    "dry-run": "--precision bf16 --dry-run",
}
ON_GPU = {
    "varlen": "--precision bf16 --layout.attention varlen",
    "flex": "--precision bf16 --layout.attention flex",
}


def steps(folder: Path, device: str, tiny: bool) -> Iterator[tuple[str, list[str]]]:
    """Names and commands."""
    python, gpu = sys.executable, device.startswith("cuda")
    if not tiny:
        yield "tests", [python, "-m", "pytest", "-q", "-x", "tests/model", "tests/oracles"]
    model, pairs = save_tiny_model(folder / "tiny"), write_rows(folder / "pairs.jsonl", PAIRS)
    common = [
        python,
        "-m",
        "preftune",
        "train",
        "--data",
        str(pairs),
        "--model",
        str(model),
        "--device",
        device,
    ]
    for name, words in (TRAININGS | (ON_GPU if gpu else {})).items():
        more = ["--output", str(folder / name), "--max_steps", "4", "--save_every", "2", *words.split()]
        yield f"train:{name}", common + more
    yield "train:resume", [python, "-m", "preftune", "train", "--resume", str(folder / "bf16")]
    small = ["--device", device, "--steps", "1", "--minutes", "2"] if tiny else []
    yield "benchmark", [python, "benchmarks/gpu.py", "--json", *small, *(["--tiny"] if tiny else [])]


def cut_back(run: Path) -> None:
    """As if the run had been interrupted after its first checkpoint."""
    shutil.rmtree(run / "final", ignore_errors=True)
    for path in sorted((run / "checkpoints").iterdir())[1:]:
        shutil.rmtree(path)
    (run / "status.json").write_text(json.dumps({"state": "interrupted", "step": 2, "message": ""}))


def run_step(name: str, command: Sequence[str], seconds: float) -> dict[str, object]:
    """What a command did: status, time, its last lines, and what it printed as JSON."""
    started = time.perf_counter()
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
        status, text = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired:
        status, text = 124, f"no end after {seconds:.0f} s"
    lines = text.strip().splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")] if name == "benchmark" else []
    layout = next((line for line in lines if line.startswith("layout:")), "")
    last = lines[-6:] if status or not found else []
    return {
        "step": name,
        "status": status,
        "seconds": round(time.perf_counter() - started, 1),
        "layout": layout,
        "measured": found,
        "last_lines": last,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tiny", action="store_true", help="without the tests, with the small benchmark")
    parser.add_argument("--only", nargs="+", help="beginnings of the names of steps")
    parser.add_argument("--minutes", type=float, default=10, help="at most for a step")
    settings = parser.parse_args()
    failed = False
    with tempfile.TemporaryDirectory() as scratch:
        for name, command in steps(Path(scratch), settings.device, settings.tiny):
            if settings.only and not name.startswith(tuple(settings.only)):
                continue
            if name == "train:resume":
                cut_back(Path(scratch) / "bf16")
            found = run_step(name, command, settings.minutes * 60)
            failed |= found["status"] != 0
            print(json.dumps(found), flush=True)
    sys.exit(failed)


if __name__ == "__main__":
    main()
