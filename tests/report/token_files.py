"""A tokens.jsonl as training and diagnosis write it, and the numbers of a diagnosis."""

from pathlib import Path

from preftune.report.diagnosis import BARS, DIRECTIONS, KIND_LABELS

from .runs import write_lines

SPOKEN = (
    "A",
    " robin",
    " sings",
    ",",
    "\n",
    "\n\t",
    "  ",
    "early",
    " &",
    " small",
    "",
    "é",
    ".",
    "<|im_end|>",
)
KIND_MEANS = (0.5, -10.0, 9.0, -0.25, 2.0, 3.0, 1e-7)  # as text these would stand in another order
MOVES = (0.0, 0.04, -0.05, 0.2, -0.15, 0.5, -0.7, 1.5, -2.0, 4.0, -5.0, 0.01, -0.02, 0.3)


def row_of(
    run: str,
    pair: int,
    side: str,
    texts: tuple[str, ...] = SPOKEN,
    prompt: str = "<|im_start|>user\nName a bird.",
) -> dict:
    moves = [MOVES[(i + pair) % len(MOVES)] * (1 if side == "chosen" else -1) for i in range(len(texts))]
    tokens = [
        {"text": text, "logp": -6.0 + move, "ref_logp": -6.0} for text, move in zip(texts, moves, strict=True)
    ]
    return {
        "run": run,
        "pair": pair,
        "side": side,
        "origin": "pairs.jsonl:1",
        "prompt": prompt,
        "tokens": tokens,
    }


def write_tokens(
    folder: Path,
    *,
    runs: tuple[str, ...] = ("run",),
    num_pairs: int = 5,
    texts: tuple[str, ...] = SPOKEN,
    prompt: str = "<|im_start|>user\nName a bird.",
) -> None:
    write_lines(
        folder / "tokens.jsonl",
        [
            row_of(run, pair, side, texts, prompt)
            for run in runs
            for pair in range(num_pairs)
            for side in ("chosen", "rejected")
        ],
    )


def interval(mean: float) -> dict:
    return {"mean": mean, "low": mean - 0.1, "high": mean + 0.1, "num": 6}


def diagnosis_content(names: list[str]) -> dict:
    """What diagnosis.json holds, of six pairs, with numbers that grow from run to run."""
    return {
        "data": "pairs.jsonl",
        "num_pairs": 6,
        "num_prompts": 6,
        "quantities": {"log_ratio": "nats"},
        "samples": 0,
        "edges": [-2.0, -0.1, 0.1, 2.0],
        "runs": [_run(name, 1.0 + index) for index, name in enumerate(names)],
        "differences": [
            {side: {name: interval(0.3) for name in BARS} for side in ("chosen", "rejected")}
            for _ in names[1:]
        ],
    }


def _run(name: str, size: float) -> dict:
    kinds = {
        kind: {"share": 0.2, "per_completion": interval(size * value)}
        for kind, value in zip(KIND_LABELS, KIND_MEANS, strict=True)
    }
    side = {
        "intervals": {bar: interval(size) for bar in BARS},
        "pooled": {"gini": 0.4},
        "points": [[0.1 * k, size] for k in range(6)],
        "kinds": {kind: kinds[kind] for kind in list(KIND_LABELS)[:5]},
        "histogram": [0.25, 0.5, 0.25],
        "expectations": {kind: kinds[kind] for kind in list(KIND_LABELS)[5:]},
    }
    return {
        "name": name,
        "sides": {"chosen": side, "rejected": side},
        "directions": {one: interval(0.25) for one in DIRECTIONS},
        "margin": interval(size),
        "accuracy": interval(0.8),
        "samples": None,
        "ches": {"normalized": interval(0.5), "rank_correlation": None},
    }
