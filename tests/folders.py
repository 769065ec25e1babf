"""A tiny model as a folder on disk, with its tokenizer, and the small files that runs on it learn from."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from preftune.objectives.dpo import DPO
from preftune.train.optim import OptimOptions
from preftune.train.options import TrainConfig
from tests.data.tokenizers_for_tests import CHATML, byte_tokenizer
from tests.models import model_sizes

PAIRS = [
    {
        "prompt": f"Question {k}: what is {word}?",
        "chosen": f"It is {word}.",
        "rejected": f"No idea about {word} at all.",
    }
    for k, word in enumerate(
        ("the sea", "a poem", "Paris", "France", "the capital", "a blue sea", "tea", "snow"), 1
    )
]
SCORED = [
    {
        "prompt": row["prompt"],
        "completions": [row["chosen"], row["rejected"], "Well."],
        "rewards": [1.0, 0.0, 0.5],
    }
    for row in PAIRS
]


def save_tiny_model(folder: Path, seed: int = 0, std: float = 0.1) -> Path:
    """A two-layer Llama with random weights and a byte tokenizer that writes ChatML; the vocabularies are of
    one size.
    """
    tokenizer = byte_tokenizer(CHATML, eos="<|im_end|>")
    end = tokenizer.convert_tokens_to_ids("<|im_end|>")
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        **model_sizes(),
        head_dim=8,
        bos_token_id=1,
        eos_token_id=end,
        pad_token_id=0,
        max_position_embeddings=512,
        tie_word_embeddings=False,
    )
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").float().eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * std)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_rows(path: Path, rows: Sequence[Mapping[str, object]]) -> str:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


def metric_rows(run: Path) -> list[dict]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def timeless(rows: Sequence[Mapping[str, object]]) -> list[dict]:
    """Metric rows without what depends on the clock."""
    clock = {"step_time", "tokens_per_second", "collect_time", "mfu", "eval_mfu", "sample_mfu"}
    return [{k: v for k, v in row.items() if k not in clock} for row in rows]


def tiny_config(model: Path, data: str, output: Path, **settings: Any) -> TrainConfig:
    """Settings under which the tiny model learns a file of pairs in a few steps."""
    optim = settings.pop("optim", {})
    chosen: dict[str, Any] = {
        "batch_size": 4,
        "epochs": 2.0,
        "eval_fraction": 0.25,
        "objective": DPO(),
    } | settings
    return TrainConfig(
        data=str(data),
        output=str(output),
        model=str(model),
        optim=OptimOptions(**{"learning_rate": 3e-3, "schedule": "constant"} | optim),
        **chosen,
    )


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    """Every tensor of a folder's safetensors files: of the model or adapter, and of the value head if there
    is one.
    """
    paths = list(folder.glob("*.safetensors"))
    assert paths
    return {name: tensor for path in paths for name, tensor in load_file(path).items()}


def same_bits(one: Mapping[str, torch.Tensor], two: Mapping[str, torch.Tensor]) -> bool:
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
