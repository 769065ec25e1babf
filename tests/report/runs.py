"""A synthetic run folder, as training writes it."""

import json
import math
import random
from pathlib import Path

import yaml

CONFIG = {
    "model": "smollm2-135m-instruct",
    "data": "preferences.jsonl",
    "objective": {"name": "bnf"},
    "optim": {"learning_rate": 2e-06},
    "seed": 0,
    "batch_size": 8,
    "epochs": 2,
    "environment": {
        "preftune": "0.1.0",
        "torch": "2.13.0",
        "transformers": "5.23.0",
        "python": "3.11.2",
        "git": "9346766",
        "device": "cpu",
        "num_parameters": 134515008,
        "layout": {"rows": "flat", "attention": "segments", "reason": ""},
    },
}
PROMPTS = [
    "Name three birds.",
    "Why is the sky blue?",
    "Write a haiku about rain.",
    "What is 17 times 4?",
    "How do I boil an egg?",
    "Explain what a verb is to a child of six.",
    "Give me a synonym of “quick”.",
]
WORDS = (
    "a",
    "robin",
    "sings",
    "in",
    "early",
    "light",
    "and",
    "small",
    "rain",
    "falls",
    "where",
    "eggs",
    "boil",
)


def write_lines(path: Path, rows: list[dict]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def train_row(step: int, rng: random.Random, speed: float) -> dict:
    gain = speed * (1 - math.exp(-step / 25))
    chosen, rejected = 1.8 * gain + rng.gauss(0, 0.35), -2.3 * gain + rng.gauss(0, 0.45)
    return {
        "step": step,
        "phase": "train",
        "loss": 0.69 - 0.25 * gain + rng.gauss(0, 0.03),
        "epoch": step / 32,
        "grad_norm": 3 * math.exp(rng.gauss(0, 0.25)),
        "learning_rate": 2e-6 * min(1, step / 6) * (1 - step / 65),
        "num_tokens": 1450 * step,
        "step_time": 4.2 + rng.gauss(0, 0.2),
        "tokens_per_second": 345 + rng.gauss(0, 12),
        "log_ratios/chosen": chosen,
        "log_ratios/rejected": rejected,
        "logps/chosen": -82 + chosen,
        "logps/rejected": -95 + rejected,
        "rewards/chosen": 0.1 * chosen,
        "rewards/rejected": 0.1 * rejected,
        "rewards/margins": 0.1 * (chosen - rejected),
        "rewards/accuracies": min(1.0, 0.5 + 0.35 * gain),
        "bnf/weight": 0.97 - 0.12 * gain + rng.gauss(0, 0.01),
        "entropy": None,
    }


def eval_row(step: int, rng: random.Random, speed: float) -> dict:
    row = train_row(step, rng, speed)
    keys = ("loss", "log_ratios/chosen", "log_ratios/rejected", "rewards/margins", "rewards/accuracies")
    return {"step": step, "phase": "eval", "epoch": step / 32} | {f"eval_{key}": row[key] for key in keys}


def sample_rows(rng: random.Random, num_prompts: int, num_samples: int, speed: float) -> list[dict]:
    rows = []
    for stage, lift in (("before", 0.0), ("after", 0.35 * speed)):
        for prompt_index in range(num_prompts):
            for sample_index in range(num_samples):
                ended = rng.random() < 0.3 + lift
                words = rng.randint(6, 24 if ended else 60)
                rows.append(
                    {
                        "stage": stage,
                        "step": 0 if stage == "before" else 64,
                        "prompt_index": prompt_index,
                        "sample_index": sample_index,
                        "prompt": PROMPTS[prompt_index % len(PROMPTS)],
                        "completion": " ".join(rng.choice(WORDS) for _ in range(words))
                        + ("." if ended else ""),
                        "reward": round(rng.gauss(0.2 + lift, 0.25) - words / 200, 4),
                        "ended": ended,
                        "num_tokens": int(words * 1.3),
                    }
                )
    return rows


def build_run(
    folder: Path,
    *,
    steps: int = 64,
    num_prompts: int = 24,
    num_samples: int = 2,
    seed: int = 0,
    speed: float = 1.0,
    objective: dict | None = None,
) -> Path:
    """A finished run with everything in it; tests then take away or spoil what they are about."""
    rng = random.Random(seed)
    folder.mkdir(parents=True)
    config = CONFIG | {"seed": seed} | ({"objective": objective} if objective else {})
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
    metrics = [eval_row(0, rng, speed)]
    for step in range(1, steps + 1):
        metrics.append(train_row(step, rng, speed))
        if step % 8 == 0:
            metrics.append(eval_row(step, rng, speed))
    write_lines(folder / "metrics.jsonl", metrics)
    write_lines(folder / "samples.jsonl", sample_rows(rng, num_prompts, num_samples, speed))
    (folder / "data_report.json").write_text(
        json.dumps(
            {
                "lines": [
                    "256 records read from preferences.jsonl, 256 used.",
                    "256 pairs; chosen 41.2 tokens on average, rejected 47.9.",
                ]
            }
        )
    )
    (folder / "status.json").write_text(json.dumps({"state": "finished", "message": "", "step": steps}))
    (folder / "final").mkdir()
    return folder


def sample(stage: str, index: int, reward: float | None, sample_index: int = 0, **more: object) -> dict:
    """A line of samples.jsonl for prompt `index`, with the given fields replaced."""
    return {
        "stage": stage,
        "step": 0,
        "prompt_index": index,
        "sample_index": sample_index,
        "prompt": f"prompt text {index}",
        "completion": f"{stage} {index} {sample_index}",
        "reward": reward,
        "ended": True,
        "num_tokens": 10,
        **more,
    }


HOSTILE = "<script>alert(1)</script></style></title><b onmouseover=alert(2)>\"'`& $\\frac{1}{0}$ $x_"
TRICKS = (  # what a token may hold
    "<script>alert(4)</script>",
    "</style>",
    "</span><img src=x onerror=alert(5)>",
    '" onmouseover="alert(6)',
    "&lt;b&gt;",
    "&#x3C;i>",
    "javascript:alert(7)",
    "\u202eright to left",
    "nul\x00",
    "\x1b[31mred",
    "{{ 7*7 }}",
    "]]>",
    "<!--",
    "```",
    "~~~",
    "\u2028",
)
HOSTILE_NAME = "<script>alert(3)< $x_1$ &amp; {{ 7*7 }}"


def spoil(folder: Path) -> Path:
    """Puts text that tries to be markup wherever the outside can put text; returns the folder under its new
    name.
    """
    write_lines(
        folder / "samples.jsonl",
        [sample(stage, 0, 1.0, prompt=HOSTILE, completion=HOSTILE) for stage in ("before", "after")],
    )
    write_lines(
        folder / "metrics.jsonl",
        [
            {
                "step": 1,
                "phase": "train",
                "loss": 1.0,
                HOSTILE: 2.0,
                f"{HOSTILE}/chosen": 1.0,
                "\u65e5\u672c": 1.0,
            }
        ],
    )
    (folder / "config.yaml").write_text(
        json.dumps(
            {
                "model": HOSTILE,
                "data": HOSTILE,
                "objective": {"name": HOSTILE, HOSTILE: HOSTILE},
                "environment": {"x": HOSTILE},
            }
        )
    )
    (folder / "status.json").write_text(json.dumps({"state": "failed", "message": HOSTILE}))
    (folder / "data_report.json").write_text(json.dumps({"lines": [HOSTILE]}))
    return folder.rename(folder.with_name(HOSTILE_NAME))
