"""A tokens.jsonl as training and diagnosis write it."""

from pathlib import Path

from .runs import write_lines

SPOKEN = ("A", " robin", " sings", ",", "\n", "\n\t", "  ", "early", " &", " small", "", "é", ".", "<|im_end|>")
MOVES = (0.0, 0.04, -0.05, 0.2, -0.15, 0.5, -0.7, 1.5, -2.0, 4.0, -5.0, 0.01, -0.02, 0.3)


def row_of(run: str, pair: int, side: str, texts: tuple[str, ...] = SPOKEN, prompt: str = "<|im_start|>user\nName a bird.") -> dict:
    moves = [MOVES[(i + pair) % len(MOVES)] * (1 if side == "chosen" else -1) for i in range(len(texts))]
    tokens = [{"text": text, "logp": -6.0 + move, "ref_logp": -6.0} for text, move in zip(texts, moves, strict=True)]
    return {"run": run, "pair": pair, "side": side, "origin": "pairs.jsonl:1", "prompt": prompt, "tokens": tokens}


def write_tokens(folder: Path, *, runs: tuple[str, ...] = ("run",), num_pairs: int = 5, texts: tuple[str, ...] = SPOKEN,
                 prompt: str = "<|im_start|>user\nName a bird.") -> None:
    write_lines(folder / "tokens.jsonl", [
        row_of(run, pair, side, texts, prompt) for run in runs for pair in range(num_pairs) for side in ("chosen", "rejected")
    ])
