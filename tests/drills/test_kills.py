"""SIGKILL at a random moment: repeated or resumed, a command gives what it would have given. Four of five kills of a
run come after its first step.

`make drills` kills a hundred times, `make test` once for each kind of command.
"""

import json
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.drills.conftest import KILL, Command
from tests.folders import metric_rows, same_bits, timeless, weights_of, write_rows

TASTE = "def taste(prompts, completions, **columns):\n    return [float(c.count('e')) for c in completions]\n"
ON_POLICY = "--source on-policy --objective rloo --max_new_tokens 4 --num_completions 2"
TRAIN = "--batch_size 4 --learning_rate 1e-3 --eval_fraction 0.25 --save_every 1"


@pytest.fixture(scope="module")
def files(tmp_path_factory, tiny_folder, pairs_file) -> dict[str, str]:
    """Paths by name."""
    root = tmp_path_factory.mktemp("files")
    prompts = [{"prompt": f"Say {word}.", "answer": "\ud800"} for word in ("sea", "poem", "tea", "snow")]
    drawn = [{**row, "completions": ["One e.", "Three eee.", "None"]} for row in prompts]
    scored = [{**row, "rewards": [1.0, 3.0, 0.0]} for row in drawn * 200]
    (root / "taste.py").write_text(TASTE)
    return {
        "model": str(tiny_folder),
        "pairs": pairs_file,
        "prompts": write_rows(root / "prompts.jsonl", prompts),
        "drawn": write_rows(root / "drawn.jsonl", drawn * 20),
        "scored": write_rows(root / "scored.jsonl", scored),
        "taste": f"{root / 'taste.py'}:taste",
    }


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A kind of command: its words, `{name}` a path; what its output holds; how it is repeated."""

    words: str
    read: Callable[[Path], object]
    output: str = "run"
    again: Callable[[Path], list[str] | None] = field(default=lambda path: None)


def read_run(path: Path) -> object:
    logs = [path / name for name in ("completions.jsonl", "tokens.jsonl")]
    texts = [log.read_text() for log in logs if log.is_file()]
    return timeless(metric_rows(path)), texts, weights_of(path / "final"), (path / "report.html").is_file()


def read_rounds(path: Path) -> object:
    return [weights_of(run / "train" / "final") for run in sorted(path.glob("round-*"))]


def read_comparison(path: Path) -> object:
    assert (path / "comparison.html").is_file()
    return [timeless(metric_rows(run.parent)) for run in sorted(path.rglob("result.json"))]


def read_lab(path: Path) -> object:
    def timed(pairs: list[tuple[str, object]]) -> dict[str, object]:
        return {name: value for name, value in pairs if "seconds" not in name}

    assert (path / "result.svg").is_file()
    return json.loads((path / "result.json").read_text(), object_pairs_hook=timed)["objectives"]


def resumed(path: Path) -> list[str] | None:
    return ["train", "--resume", str(path)] if (path / "config.yaml").is_file() else None


def repeated_file(path: Path) -> list[str] | None:
    """A file that is there is whole: the command was killed between its last write and its end."""
    return ["report", "--help"] if path.exists() else None


def file_kind(words: str) -> Kind:
    return Kind(words=words, read=Path.read_bytes, output="out.jsonl", again=repeated_file)


def train_kind(words: str) -> Kind:
    return Kind(words=f"train --model {{model}} {TRAIN} {words}", read=read_run, again=resumed)


KINDS = {
    "offline": train_kind("--data {pairs} --objective dpo --epochs 4"),
    "lora": train_kind("--data {pairs} --objective bnf --epochs 4 --lora.rank 2"),
    "on-policy": train_kind(f"--data {{prompts}} {ON_POLICY} --reward {{taste}} --epochs 4"),
    "iterate": Kind(
        words="iterate --model {model} --prompts {prompts} --reward {taste} --rounds 2 --objective sft "
        "--selection best-of-n --max_new_tokens 4",
        read=read_rounds,
    ),
    "sample": file_kind("sample --model {model} --prompts {prompts} --max_new_tokens 6"),
    "reward": file_kind("reward {drawn} --reward {taste} --rows_per_call 1"),
    "select": file_kind("select {scored} --selection best-vs-worst"),
    "compare": Kind(
        words="compare --model {model} --data {pairs} --objectives dpo,bnf --steps 2 --seeds 2 --rates [0.001] "
        "--batch_size 4 --eval_fraction 0.25",
        read=read_comparison,
    ),
    "lab": Kind(
        words="lab run r1 --objectives bnf,dpo --loop.steps 20 --seeds 2 --rates [0.01] --workers 1",
        read=read_lab,
    ),
}

TRIES = 20  # a signal at a random moment of the whole command's duration seldom comes too late
IN_SETUP = (
    0.2  # share of the kills of a training run during set-up; the others come after its first logged step
)


@dataclass(kw_only=True)
class Whole:
    """What a command gives without a kill, and its seconds: before its log changes (or in all), and after that."""

    content: object
    setup: float
    training: float


WHOLE: dict[str, Whole] = {}


def log_of(output: Path) -> tuple[int, int] | None:
    """Size and time of a run's log, which change with the first step; None without a log."""
    log = output / "metrics.jsonl"
    return (log.stat().st_size, log.stat().st_mtime_ns) if log.is_file() else None


def wait_for_step(command: Command, output: Path, before: tuple[int, int] | None) -> None:
    """Until the command logs a step, or has ended."""
    while command.is_alive and log_of(output) == before:
        time.sleep(0.002)


def phase_of(output: Path, before: tuple[int, int] | None) -> str:
    """What a killed command was doing."""
    if log_of(output) == before:
        return "set-up"
    if any((output / "checkpoints").glob(".writing-*")):
        return "checkpoint"
    if any(output.glob(".final-*")):
        return "final model"
    return "after training" if (output / "final").exists() else "steps"


def wait_for_moment(command: Command, output: Path, whole: Whole, chance: random.Random) -> float:
    """Until a random moment of a random phase; returns the moment from which the delay counts."""
    if whole.training and chance.random() > IN_SETUP:
        wait_for_step(command, output, log_of(output))
        begun = time.monotonic()
        time.sleep(chance.uniform(0.0, whole.training))
        return begun
    time.sleep(chance.uniform(0.0, whole.setup))
    return command.started


def equal(one: object, two: object) -> bool:
    """The same numbers; tensors bit for bit."""
    if isinstance(one, dict) and one and all(hasattr(value, "dtype") for value in one.values()):
        return same_bits(one, two)
    if isinstance(one, list | tuple):
        return len(one) == len(two) and all(map(equal, one, two))
    return one == two


@pytest.mark.parametrize("name", KINDS)
def test_a_killed_command_gives_what_it_would_have_given(
    name, kill, files, forks, tmp_path, chance, record_property
):
    """At least one signal ends the command: a command that ended before its signal is started afresh."""
    kind = KINDS[name]

    def started(folder: Path, words: list[str] | None = None) -> Command:
        folder.mkdir(exist_ok=True)
        words = words or [*kind.words.format(**files).split(), "--output", str(folder / kind.output)]
        return forks.start(words, PREFTUNE_CACHE=str(folder / "cache"))

    if name not in WHOLE:
        command, output = started(tmp_path / "whole"), tmp_path / "whole" / kind.output
        if kind.again is resumed:
            wait_for_step(command, output, None)
        stepped = time.monotonic()
        assert command.wait() == 0, command.said
        times = [stepped - command.started, time.monotonic() - stepped]
        setup, training = times if kind.again is resumed else (sum(times), 0.0)
        WHOLE[name] = Whole(content=kind.read(output), setup=setup, training=training)
    whole, phases, resumptions = WHOLE[name], Counter[str](), 0

    for number in range(TRIES):
        folder = tmp_path / f"cut-{number}"
        output = folder / kind.output
        command = started(folder)
        for _ in range(chance.randint(1, 2)):
            before = log_of(output)
            begun = wait_for_moment(command, output, whole, chance)
            command.send(KILL)
            took = time.monotonic() - begun
            if (status := command.wait()) == 0:  # the whole command was measured on a busier machine
                if begun == command.started:
                    whole.setup = min(whole.setup, took)
                else:
                    whole.training = min(whole.training, took)
                break
            assert status == -KILL, command.said
            phases[phase_of(output, before)] += 1
            again = kind.again(output)
            resumptions += again is not None and again[0] == "train"
            command = started(folder, again)
        assert command.wait() == 0, command.said
        assert equal(kind.read(output), whole.content)
        left = {path.name for path in folder.rglob(".*") if "cache" not in path.relative_to(folder).parts}
        assert left <= ({".out.jsonl.lock"} if kind.again is repeated_file else set())
        if phases:
            break
    assert phases
    counts = {"delivered": phases.total(), "with --resume": resumptions}
    record_property("kills", {"kind": name, **counts, **(phases if kind.again is resumed else {})})
