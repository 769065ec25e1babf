"""Whether a long-lived process leaks: runs of a tiny model, one after another, in one process.

    python benchmarks/soak.py --minutes 60 [--json]

A round is an offline run with LoRA, an offline run of all weights, and an on-policy run with a reward function; each
writes checkpoints and a report, and is resumed once. After each round: resident memory, open file descriptors,
threads, and the processor seconds of the round over those of a yardstick: fixed work of the same kind, measured after
the round, since other programs on the machine slow both. The first half is warm-up. Exit status 1 if over the second
half memory grows by 1% or more, descriptors or threads grow, or the rounds slow down by 5% or more.
"""

import argparse
import gc
import json
import os
import random
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import combinations
from pathlib import Path

import numpy as np
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from preftune.cli.main import main as preftune

REWARD = (
    "def taste(prompts, completions, **columns):\n    return [float(c.count('e')) for c in completions]\n"
)
COMMON = "--batch_size 4 --learning_rate 1e-3 --save_every 4 --json"
RUNS = {
    "lora": "--data {pairs} --objective dpo --epochs 4 --eval_fraction 0.25 --lora.rank 2",
    "full": "--data {pairs} --objective bnf --epochs 4 --eval_fraction 0.25",
    "on-policy": "--data {prompts} --source on-policy --objective rloo --reward {reward} --max_new_tokens 8 "
    "--num_completions 2 --epochs 2",
}
WORDS = ["sea", "tea", "snow", "poem", "Paris", "France", "river", "tree", "stone", "cloud", "bread", "wine"]


@dataclass(frozen=True, kw_only=True)
class Sample:
    """The process after a round."""

    minute: float
    memory_mib: float
    descriptors: int
    threads: int
    seconds: float  # of the processor, for the round
    pace: float  # the same over the seconds of the yardstick


def make_model(folder: Path) -> Path:
    """A two-layer Llama with random weights and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {token: k for k, token in enumerate(["<pad>", "<s>", "</s>", *letters])}
    plain = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    plain.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    plain.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=plain, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )
    tokenizer.chat_template = (
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '</s>' }}{% endfor %}"
    )
    tokenizer.chat_template += "{% if add_generation_prompt %}assistant: {% endif %}"
    config = LlamaConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
    )
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_files(root: Path) -> dict[str, str]:
    chance = random.Random(0)
    prompts = [{"prompt": f"What is {chance.choice(WORDS)}?"} for _ in range(16)]
    pairs = [
        {**row, "chosen": "It is here.", "rejected": f"No idea, {chance.choice(WORDS)}."} for row in prompts
    ]
    for name, rows in (("prompts", prompts), ("pairs", pairs)):
        (root / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (root / "taste.py").write_text(REWARD)
    paths = {name: str(root / f"{name}.jsonl") for name in ("prompts", "pairs")}
    return paths | {"reward": f"{root / 'taste.py'}:taste", "model": str(make_model(root / "model"))}


def one_round(root: Path, files: dict[str, str], devnull: Path) -> None:
    import contextlib
    import shutil

    with devnull.open("w") as out, contextlib.redirect_stdout(out), contextlib.redirect_stderr(out):
        for name, words in RUNS.items():
            run = root / name
            shutil.rmtree(run, ignore_errors=True)
            fixed = f"train --model {{model}} --output {run} {COMMON} {words}".format(**files).split()
            if preftune(fixed) != 0:
                raise SystemExit(f"the run {name} failed")
            shutil.rmtree(run / "final")  # as if the process had been killed before the end
            if preftune(["train", "--resume", str(run), "--json"]) != 0:
                raise SystemExit(f"the run {name} could not be resumed")


def yardstick() -> float:
    """Processor seconds of work that is always the same: small tensors, Python objects, JSON."""
    start = time.process_time()
    weights = torch.ones(64, 64, requires_grad=True)
    for number in range(3000):
        loss = (weights @ weights).sum()
        loss.backward()
        weights.grad = None
        json.loads(json.dumps({"step": number, "values": list(range(40))}))
    return time.process_time() - start


def measure(started: float, seconds: float) -> Sample:
    gc.collect()
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return Sample(
        minute=(time.monotonic() - started) / 60,
        memory_mib=pages * os.sysconf("SC_PAGE_SIZE") / 2**20,
        descriptors=len(os.listdir("/proc/self/fd")),
        threads=threading.active_count(),
        seconds=seconds,
        pace=seconds / yardstick(),
    )


def growth(values: Sequence[float]) -> float:
    """Relative change from the beginning to the end of a line through the values, by the median of the slopes of all
    pairs (Theil-Sen): one round that another program disturbed does not decide.
    """
    pairs = combinations(enumerate(values), 2)
    slope = np.median([(later - earlier) / (j - i) for (i, earlier), (j, later) in pairs])
    return float(slope * (len(values) - 1) / np.median(values))


def faults(samples: Sequence[Sample]) -> list[str]:
    """What the second half shows."""
    half = samples[len(samples) // 2 :]
    found = []
    if (more := growth([one.memory_mib for one in half])) >= 0.01:
        found.append(f"memory grows by {more:.2%}")
    if half[-1].descriptors > half[0].descriptors:
        found.append(f"descriptors grow from {half[0].descriptors} to {half[-1].descriptors}")
    if half[-1].threads > half[0].threads:
        found.append(f"threads grow from {half[0].threads} to {half[-1].threads}")
    if (slower := growth([one.pace for one in half])) >= 0.05:
        found.append(f"rounds take {slower:.2%} more")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.environ["PREFTUNE_CACHE"] = str(root / "cache")
        files, started = make_files(root), time.monotonic()
        while time.monotonic() - started < options.minutes * 60 or len(samples) < 8:
            begun = time.process_time()
            one_round(root, files, root / "said.txt")
            samples.append(measure(started, time.process_time() - begun))
            if options.json:
                print(json.dumps(asdict(samples[-1])), flush=True)
    half = samples[len(samples) // 2 :]
    found = faults(samples)
    memory, speed = growth([one.memory_mib for one in half]), growth([one.pace for one in half])
    print(
        f"{samples[-1].minute:.0f} minutes, {len(samples)} rounds: over the second half memory {memory:+.2%} "
        f"({half[0].memory_mib:.0f} to {half[-1].memory_mib:.0f} MiB), descriptors {half[0].descriptors} to "
        f"{half[-1].descriptors}, threads {half[0].threads} to {half[-1].threads}, time of a round {speed:+.2%}",
        *found,
        sep="\n",
        file=sys.stderr if options.json else sys.stdout,
    )
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
