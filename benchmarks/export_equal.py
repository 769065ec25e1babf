"""Every export of a LoRA run against the run itself: greedy text and log-probabilities.

    python benchmarks/export_equal.py [--run RUN] [--folder FOLDER] [--llama_python PYTHON] [--json]

Without --run, three steps of BNF with LoRA are trained first. The exports `merged`, `adapter` and `gguf` are read by
plain transformers and peft; the GGUF file also by llama.cpp's server, where PYTHON (this one if not given) has
`xllamacpp`. A prompt of the chat template is continued greedily by each. Log-probabilities are those of all tokens of
the vocabulary at each position of the run's own continuation; for llama.cpp those of the tokens that it chose. The
exit status is 1 if a text differs or a difference is above its tolerance.
"""

import argparse
import json
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from peft import AutoPeftModelForCausalLM
from transformers import AutoModelForCausalLM

from preftune.cli.main import main as preftune
from preftune.model.load import load_model, load_tokenizer, resolve_model
from preftune.model.whole_model import LoadOptions

PROMPTS = ("What is the capital of France?", "Write one sentence about the sea.", "Count from 1 to 5.")
TOLERANCE = {"merged": 1e-4, "adapter": 1e-4, "gguf": 1e-3, "gguf in llama.cpp": 0.05}  # nats
SERVE = """
import sys, time
import xllamacpp
settings = xllamacpp.CommonParams()
settings.model.path, settings.port = sys.argv[1], int(sys.argv[2])
settings.n_ctx, settings.n_parallel, settings.warmup = 512, 1, False
settings.cpuparams.n_threads = 1
server = xllamacpp.Server(settings)
while True:
    time.sleep(60)
"""


def train(model: str, folder: Path) -> Path:
    """A run of three LoRA steps on a few pairs."""
    rows = [
        {"prompt": text, "chosen": f"Gladly. {text[:12]}", "rejected": "No, I will not."} for text in PROMPTS
    ]
    (folder / "pairs.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    words = ["--data", f"{folder}/pairs.jsonl", "--model", model, "--output", f"{folder}/run"]
    words += ["--objective", "bnf", "--lora.rank", "8", "--learning_rate", "1e-3", "--max_steps", "3"]
    if preftune(["train", *words, "--batch_size", "3", "--eval_fraction", "0"]):
        sys.exit("the run failed")
    return folder / "run"


@torch.no_grad()
def continued(model: Any, ids: list[int], count: int) -> list[int]:
    """`count` tokens, each the most probable."""
    for _ in range(count):
        ids = [*ids, int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax())]
    return ids[-count:]


@torch.no_grad()
def log_probs(model: Any, ids: list[int], count: int) -> torch.Tensor:
    """Of all tokens of the vocabulary at the last `count` positions that predict a token of `ids`."""
    logits = model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -count - 1 : -1]
    return logits.float().log_softmax(-1)


def ask_llama(port: int, ids: list[int], count: int) -> tuple[list[int], list[float]]:
    """The tokens that llama.cpp chooses at temperature 0, and their log-probabilities."""
    body = {"prompt": ids, "n_predict": count, "temperature": 0.0, "n_probs": 1, "ignore_eos": False}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.build_opener(urllib.request.ProxyHandler({})).open(request, timeout=300) as reply:
        found = json.load(reply)["completion_probabilities"]
    return [one["id"] for one in found], [one["logprob"] for one in found]


def llama_rows(
    python: str, path: Path, prompts: Sequence[list[int]], texts: Sequence[list[int]], truth: Sequence[Any]
) -> tuple[bool, float]:
    """Whether llama.cpp writes the same tokens, and the largest difference of their log-probabilities."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = subprocess.Popen(
        [python, "-c", SERVE, path, str(port)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 300
        while True:
            try:
                with socket.create_connection(("127.0.0.1", port), 1):
                    replies = [ask_llama(port, prompt, len(texts[0])) for prompt in prompts]
                    break
            except OSError:
                if server.poll() is not None or time.monotonic() > deadline:
                    sys.exit("llama.cpp's server did not start")
                time.sleep(0.5)
    finally:
        server.kill()
        server.wait()
    same = all(ids == text[: len(ids)] for (ids, _), text in zip(replies, texts, strict=True))
    apart = max(
        abs(value - float(truth[k][place, token]))
        for k, (ids, values) in enumerate(replies)
        for place, (token, value) in enumerate(zip(ids, values, strict=True))
    )
    return same, apart


def compare(run: Path, folder: Path, count: int, llama: str | None) -> list[dict[str, Any]]:
    for target in TOLERANCE:
        if (folder / target).is_dir() or " " in target:  # kept by an earlier command
            continue
        if preftune(["export", str(run), "--to", target, "--output", f"{folder}/{target}"]):
            sys.exit(f"the export {target} failed")
    source = resolve_model(str(run))
    model, tokenizer = load_model(source, LoadOptions()), load_tokenizer(source, LoadOptions())
    prompts: list[list[int]] = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True, return_dict=False
        )
        for text in PROMPTS
    ]  # type: ignore[assignment]
    texts = [continued(model, ids, count) for ids in prompts]
    truth = [log_probs(model, [*ids, *text], count) for ids, text in zip(prompts, texts, strict=True)]
    del model
    load = {
        "merged": lambda: AutoModelForCausalLM.from_pretrained(folder / "merged", dtype=torch.float32),
        "adapter": lambda: AutoPeftModelForCausalLM.from_pretrained(folder / "adapter", dtype=torch.float32),
        "gguf": lambda: AutoModelForCausalLM.from_pretrained(
            folder / "gguf", gguf_file="model.gguf", dtype=torch.float32
        ),
    }
    rows = []
    for name, loaded in load.items():
        other: Any = loaded().eval()
        same = [continued(other, ids, count) for ids in prompts] == texts
        found = [log_probs(other, [*ids, *text], count) for ids, text in zip(prompts, texts, strict=True)]
        apart = max(float((a - b).abs().max()) for a, b in zip(found, truth, strict=True))
        rows.append({"export": name, "same_text": same, "largest_difference": apart})
    if llama is not None:
        same, apart = llama_rows(llama, folder / "gguf" / "model.gguf", prompts, texts, truth)
        rows.append({"export": "gguf in llama.cpp", "same_text": same, "largest_difference": apart})
    return rows


def has_llama(python: str) -> bool:
    return subprocess.run([python, "-c", "import xllamacpp"], capture_output=True).returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--run")
    parser.add_argument("--model", default="smollm2-135m-instruct")
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument(
        "--folder", type=Path, help="keep the run and its exports here, and reuse those that are there"
    )
    parser.add_argument("--llama_python", default=sys.executable)
    parser.add_argument("--json", action="store_true")
    settings = parser.parse_args()
    with TemporaryDirectory() as scratch:
        folder = settings.folder or Path(scratch)
        folder.mkdir(parents=True, exist_ok=True)
        kept = folder / "run" / "final"
        run = (
            Path(settings.run)
            if settings.run
            else kept.parent
            if kept.is_dir()
            else train(settings.model, folder)
        )
        llama = settings.llama_python if has_llama(settings.llama_python) else None
        rows = compare(run, folder, settings.tokens, llama)
    if settings.json:
        print(json.dumps(rows, indent=2))
    else:
        for row in rows:
            text = "the same" if row["same_text"] else "ANOTHER"
            limit = TOLERANCE[row["export"]]
            print(
                f"{row['export']:20} greedy text {text:8}  largest difference of a log-probability "
                f"{row['largest_difference']:.2g} nats (at most {limit:g})"
            )
        if llama is None:
            print(f"llama.cpp was not compared: {settings.llama_python} has no xllamacpp")
    return int(any(not r["same_text"] or not r["largest_difference"] <= TOLERANCE[r["export"]] for r in rows))


if __name__ == "__main__":
    sys.exit(main())
