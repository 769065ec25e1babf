"""From a file of rows to token ids: rows per second and peak memory, here and in TRL.

    python benchmarks/preparation.py [--rows 50000] [--method dpo|kto] [--turns 3] [--processes 2] [--json]
                                     [--memory-rows 10000 200000] [--model smollm2-135m-instruct]
    python benchmarks/preparation.py --base FOLDER [--rows 20000] [--turns 7]

The second form compares this checkout with another one (`git worktree add FOLDER COMMIT`) instead of TRL: both
prepare the same file in turn, and the ratio of their speeds is printed with its 95% interval.

Rows are made up: dialogues of one to three questions, their words drawn from the prompts that the package
ships, common words more often than rare ones. Both sides run in fresh processes, in turn, the order turned
round each time. What is timed:

    preftune       `prepare`: reading the JSON lines, finding pairs or labels, template, tokens, the proof of
    each boundary, the
                   token store on disk. The store is made anew each time.
    preftune-again the same once the store is there
    preftune-tokens  what TRL's clock counts, and our store: the rows have been read and turned into records
    before it starts trl            `_prepare_dataset` of its DPO or KTO trainer and nothing else, with
    `dataset_num_proc`; the rows are in an
                   Arrow file before the clock starts, and nothing is filtered by length

The ids must be the same in every row, apart from what TRL keeps behind the end-of-turn token, or the
comparison stops. Processor time is that of the process and its children. Memory is the peak of the process
beyond what it held before it began; for TRL, whose workers come and go, that of the largest process.
"""

import argparse
import gc
import hashlib
import json
import math
import os
import random
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np

VARIANTS = ("preftune", "preftune-again", "preftune-tokens", "trl")


def words() -> list[str]:
    """Distinct words of the shipped prompts, in the order of their first use."""
    text = (files("preftune") / "commands" / "demo_prompts.jsonl").read_text(encoding="utf-8")
    return list(dict.fromkeys(re.findall(r"[A-Za-z]{2,}[,.?!]?", text)))


def write_rows(path: Path, count: int, method: str) -> None:
    """Rows of dpo: prompt, chosen, rejected; of kto: prompt, completion, label. A word's chance falls with
    its place.
    """
    draw, vocabulary = random.Random(0), words()
    weights = [1 / (place + 10) for place in range(len(vocabulary))]
    pool = draw.choices(vocabulary, weights, k=1 << 20)

    def text(fewest: int, most: int) -> str:
        start, length = draw.randrange(len(pool) - most), draw.randint(fewest, most)
        return " ".join(pool[start : start + length])

    with path.open("w") as file:
        for number in range(count):
            turns = [{"role": "user", "content": f"{number}: {text(5, 40)}"}]
            for _ in range(draw.randint(0, 2)):
                turns += [
                    {"role": "assistant", "content": text(10, 60)},
                    {"role": "user", "content": text(5, 40)},
                ]
            answers = [[{"role": "assistant", "content": text(10, 80)}] for _ in range(2)]
            row: dict[str, Any] = {"prompt": turns}
            row |= (
                {"completion": answers[0], "label": number % 2 == 0}
                if method == "kto"
                else {"chosen": answers[0], "rejected": answers[1]}
            )
            file.write(json.dumps(row) + "\n")


# --- the two sides, each in a process of its own ---


def digest(rows: Iterable[tuple[Iterable[int], ...]]) -> str:
    found = hashlib.blake2b(digest_size=16)
    for row in rows:
        for ids in row:
            array = np.asarray(ids, dtype="<i4")
            found.update(len(array).to_bytes(4, "little") + array.tobytes())
    return found.hexdigest()


def peak() -> float:
    """MiB of the largest process so far: this one or one of its children."""
    return (
        max(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        / 1024
    )


def processor() -> float:
    return sum(sum(resource.getrusage(who)[:2]) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))


def run_ours(settings: argparse.Namespace) -> dict[str, Any]:
    from preftune.data.options import DataOptions
    from preftune.data.prepare import prepare
    from preftune.model.load import LoadOptions, load_tokenizer, resolve_model

    tokenizer = load_tokenizer(resolve_model(settings.model), LoadOptions())
    signal = "labels" if settings.method == "kto" else "pairs"
    before, wall, cpu = peak(), time.perf_counter(), processor()
    prepared = prepare(settings.file, tokenizer, signal, DataOptions(max_length=1 << 20))
    wall, cpu, after = time.perf_counter() - wall, processor() - cpu, peak()
    found = digest((group.prompt, *group.completions) for group in prepared.groups)
    return {
        "wall": wall,
        "cpu": cpu,
        "memory": after - before,
        "digest": found,
        "tokens": prepared.report.num_tokens,
    }


def run_tokens(settings: argparse.Namespace) -> dict[str, Any]:
    from preftune.data.fit import fit
    from preftune.data.options import DataOptions
    from preftune.data.record_file import RecordFile
    from preftune.data.records import RecordReader
    from preftune.data.render import make_renderer
    from preftune.data.store import StoredGroups, StoreWriter
    from preftune.model.load import LoadOptions, load_tokenizer, resolve_model

    tokenizer, records = load_tokenizer(resolve_model(settings.model), LoadOptions()), RecordFile()
    for record in RecordReader(settings.file, DataOptions()):
        records.append(record)
    records.finish()
    gc.disable()  # as `prepare` does
    with tempfile.TemporaryDirectory() as folder:
        before, wall, cpu = peak(), time.perf_counter(), processor()
        renderer, writer = make_renderer(tokenizer, many=True), StoreWriter(Path(folder))
        for group in renderer.render_all(records[index] for index in range(len(records))):
            fitted = (
                None
                if isinstance(group, Exception)
                else fit(group, max_length=1 << 20, truncation="drop", bos=renderer.bos)
            )
            assert fitted is not None and fitted.group is not None
            writer.add(fitted.group)
        writer.finish({})
        wall, cpu, after = time.perf_counter() - wall, processor() - cpu, peak()
        found = digest((group.prompt, *group.completions) for group in StoredGroups(Path(folder), False))
    records.close()
    return {"wall": wall, "cpu": cpu, "memory": after - before, "digest": found}


def run_trl(settings: argparse.Namespace) -> dict[str, Any]:
    os.environ["HF_HUB_OFFLINE"] = "1"
    from datasets import Dataset, disable_progress_bars
    from trl import DPOTrainer, KTOTrainer

    from preftune.model.load import LoadOptions, load_tokenizer, resolve_model

    disable_progress_bars()
    tokenizer = load_tokenizer(resolve_model(settings.model), LoadOptions())
    dataset = Dataset.from_json(str(settings.file), cache_dir=str(Path(settings.file).parent / "arrow"))
    kind = KTOTrainer if settings.method == "kto" else DPOTrainer
    trainer: Any = object.__new__(kind)  # its weights and its loop have no part in this
    trainer._tokenizer = tokenizer
    trainer.calculate_KL, trainer.desirable_weight, trainer.undesirable_weight = False, 1.0, 1.0
    options = argparse.Namespace(
        dataset_num_proc=settings.processes,
        max_length=None,
        truncation_mode="keep_start",
        per_device_train_batch_size=8,
    )
    before, wall, cpu = peak(), time.perf_counter(), processor()
    ready = trainer._prepare_dataset(dataset, tokenizer, options, "train")
    wall, cpu, after = time.perf_counter() - wall, processor() - cpu, peak()
    names = ("completion_ids",) if settings.method == "kto" else ("chosen_ids", "rejected_ids")
    end = tokenizer.eos_token_id

    def cut(ids: list[int]) -> list[int]:
        return ids[: len(ids) - ids[::-1].index(end)]

    found = digest((row["prompt_ids"], *(cut(row[name]) for name in names)) for row in ready)
    return {"wall": wall, "cpu": cpu, "memory": after - before, "digest": found}


# --- the comparison ---


def child(
    variant: str, file: Path, settings: argparse.Namespace, cache: str, root: Path | None = None
) -> dict[str, Any]:
    """One measurement in a process of its own; `root` is another checkout, whose code is measured."""
    own = {} if root is None else {"PYTHONPATH": str(root / "src")}
    command = [
        sys.executable,
        __file__ if root is None else str(root / "benchmarks" / "preparation.py"),
        "--child",
        variant,
        "--file",
        str(file),
        "--method",
        settings.method,
        "--model",
        settings.model,
        "--processes",
        str(settings.processes),
    ]
    bundled = os.path.join(
        os.environ.get("PREFTUNE_CACHE", os.path.expanduser("~/.cache/preftune")), "models"
    )
    os.makedirs(bundled, exist_ok=True)  # the first use of a machine unpacks the model there
    os.path.lexists(f"{cache}/models") or os.symlink(bundled, f"{cache}/models")
    result = subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, "PREFTUNE_CACHE": cache, **own}
    )
    if result.returncode:
        sys.exit(f"{variant} failed:\n{result.stderr[-3000:]}")
    return json.loads(result.stdout.splitlines()[-1])


def one_turn(order: list[str], file: Path, settings: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """Both sides once, and ours a second time with its store, and a third time from records."""
    found: dict[str, dict[str, Any]] = {}
    for side in order:
        with tempfile.TemporaryDirectory() as cache:
            found[side] = child(side, file, settings, cache)
            if side == "preftune":
                found["preftune-again"] = child(side, file, settings, cache)
                found["preftune-tokens"] = child("preftune-tokens", file, settings, cache)
    if len({one["digest"] for one in found.values()}) > 1:
        sys.exit("The two sides do not give the same ids: nothing to compare")
    return found


def measure(settings: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, settings.rows, settings.method)
        turns = [
            one_turn([["preftune", "trl"], ["trl", "preftune"]][turn % 2], file, settings)
            for turn in range(settings.turns)
        ]
        memory: dict[str, dict[str, float]] = {}
        for count in settings.memory_rows:
            write_rows(file, count, settings.method)
            memory[str(count)] = {
                name: one["memory"] for name, one in one_turn(["preftune", "trl"], file, settings).items()
            }
    rates = {name: [settings.rows / turn[name]["wall"] for turn in turns] for name in VARIANTS}
    ratios = {
        ours: {kind: [turn["trl"][kind] / turn[ours][kind] for turn in turns] for kind in ("wall", "cpu")}
        for ours in ("preftune", "preftune-tokens")
    }
    return {
        "rows": settings.rows,
        "method": settings.method,
        "tokens": turns[0]["preftune"]["tokens"],
        "rows_per_s": rates,
        "cpu_s": {name: [turn[name]["cpu"] for turn in turns] for name in VARIANTS},
        "ratio_to_trl": ratios,
        "memory_mib": memory,
    }


def against_base(settings: argparse.Namespace) -> dict[str, Any]:
    """Speed of this checkout over that of another, by the clock and in processor time, one ratio for each turn."""
    here, base = Path(__file__).parents[1], Path(settings.base).resolve()
    ratios: dict[str, list[float]] = {"wall": [], "cpu": []}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "rows.jsonl"
        write_rows(file, settings.rows, settings.method)
        for turn in range(settings.turns):
            found = {}
            for root in [(here, base), (base, here)][turn % 2]:
                with tempfile.TemporaryDirectory() as cache:
                    found[root] = child("preftune", file, settings, cache, root)
            if found[here]["digest"] != found[base]["digest"]:
                sys.exit("The two checkouts do not give the same ids: nothing to compare")
            for kind, values in ratios.items():
                values.append(found[base][kind] / found[here][kind])
    return {"rows": settings.rows, "method": settings.method, "ratio_to_base": ratios}


def base_sentences(result: dict[str, Any]) -> list[str]:
    from preftune.stats import mean_interval

    lines = []
    for kind, ratios in result["ratio_to_base"].items():
        interval = mean_interval([math.log(ratio) for ratio in ratios])
        mean, low, high = (math.exp(value) for value in (interval.mean, interval.low, interval.high))
        told = {"wall": "by the clock", "cpu": "in processor time"}[kind]
        lines.append(
            f"{result['method']}, {result['rows']} rows: {mean:.3f} times the speed of the base {told} "
            f"({low:.3f} to {high:.3f}, {len(ratios)} turns)"
        )
    return lines


def sentences(result: dict[str, Any]) -> list[str]:
    """The result for people."""
    rows = result["rows"]
    lines = [f"{result['method']}: {rows} rows, {result['tokens']} tokens"]
    for name, rates in result["rows_per_s"].items():
        cpu = statistics.median(result["cpu_s"][name])
        spread = f"{min(rates):.0f} to {max(rates):.0f}"
        lines.append(
            f"{name}: {statistics.median(rates):.0f} rows/s ({spread}), {cpu:.1f} s of processor time"
        )
    for ours, kinds in result["ratio_to_trl"].items():
        for kind, ratios in kinds.items():
            told = {"wall": "by the clock", "cpu": "in processor time"}[kind]
            spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
            lines.append(f"{ours}: {statistics.median(ratios):.2f} times the speed of trl {told} ({spread})")
    for count, memory in result["memory_mib"].items():
        lines.append(
            f"peak memory beyond the start, {count} rows: "
            + ", ".join(f"{k} {v:.0f} MiB" for k, v in memory.items())
        )
    return lines


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--method", choices=("dpo", "kto"), default="dpo")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--processes", type=int, default=2, help="TRL's dataset_num_proc")
    parser.add_argument("--memory-rows", type=int, nargs="*", default=[])
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--base", help="another checkout to compare with, instead of TRL")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", choices=("preftune", "preftune-tokens", "trl"), help=argparse.SUPPRESS)
    parser.add_argument("--file", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    settings = parsed()
    if settings.child:
        sides = {"preftune": run_ours, "preftune-tokens": run_tokens, "trl": run_trl}
        print(json.dumps(sides[settings.child](settings)))
        return
    result = against_base(settings) if settings.base else measure(settings)
    told = base_sentences if settings.base else sentences
    print(json.dumps(result) if settings.json else "\n".join(told(result)))


if __name__ == "__main__":
    main()
