"""Tiny random models made in memory, one per architecture family, with weights large enough that leaks show."""

from types import MethodType

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedModel,
    Qwen3Config,
)

from preftune.model.attention_segments import SEGMENTS
from preftune.types import Group

VOCAB = 64
ENDS = dict(bos_token_id=1, eos_token_id=2, pad_token_id=0)


def model_sizes(hidden: int = 32, inner: int = 48, layers: int = 2, heads: int = 4) -> dict[str, int]:
    """Of a configuration of transformers; two query heads share a key head."""
    sizes = dict(hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers)
    return sizes | dict(num_attention_heads=heads, num_key_value_heads=(heads + 1) // 2)


_SHAPE = dict(vocab_size=VOCAB, **model_sizes(), head_dim=8, **ENDS, max_position_embeddings=256)

CONFIGS = {
    "llama": lambda: LlamaConfig(**_SHAPE),
    "qwen3": lambda: Qwen3Config(**_SHAPE),
    "qwen3_sliding": lambda: Qwen3Config(
        **_SHAPE, sliding_window=5, use_sliding_window=True, max_window_layers=1
    ),
    "gemma3": lambda: Gemma3TextConfig(
        **_SHAPE,
        sliding_window=5,
        layer_types=["sliding_attention", "full_attention"],
        final_logit_softcapping=4.0,
    ),
    "gemma2": lambda: Gemma2Config(
        **_SHAPE, sliding_window=5, attn_logit_softcapping=3.0, final_logit_softcapping=4.0
    ),
    "mistral": lambda: MistralConfig(**_SHAPE, sliding_window=5),
    "granite": lambda: GraniteConfig(**_SHAPE, logits_scaling=3.0),
    "gpt2": lambda: GPT2Config(vocab_size=VOCAB, n_embd=32, n_layer=2, n_head=4, n_positions=256, **ENDS),
}


def _norm_in_fp64(module, x):
    """Hugging Face's RMSNorm computes in fp32 whatever the dtype, which would hide errors of 1e-8 in fp64
    tests.
    """
    epsilon = module.variance_epsilon if "variance_epsilon" in vars(module) else module.eps
    scale = 1.0 + module.weight if "Gemma" in type(module).__name__ else module.weight
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * scale


def tiny_model(
    name: str = "llama", dtype: torch.dtype = torch.float32, seed: int = 0, std: float = 0.25
) -> PreTrainedModel:
    """Every weight matrix drawn with a large spread, so that attention is far from uniform."""
    attention = "eager" if name == "gemma2" else SEGMENTS
    config = CONFIGS[name]()
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention).to(dtype).eval()
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.copy_(torch.randn(parameter.shape, generator=random) * std)
    if dtype == torch.float64:
        for module in model.modules():
            if type(module).__name__.endswith("RMSNorm"):
                module.forward = MethodType(_norm_in_fp64, module)
    return model


def random_groups(seed: int = 0, num_groups: int = 4, most: int = 14, completions: int = 3) -> list[Group]:
    """Ragged groups, prompts of 1 to `most` tokens and completions of 1 to `most`."""
    random = np.random.default_rng(seed)

    def ids(length: int) -> np.ndarray:
        return random.integers(3, VOCAB, length).astype(np.int32)

    return [
        Group(
            prompt=ids(int(random.integers(1, most))),
            completions=tuple(
                ids(int(random.integers(1, most))) for _ in range(int(random.integers(2, completions + 1)))
            ),
            pairs=((0, 1),),
            origin=f"rows:{number + 1}",
        )
        for number in range(num_groups)
    ]
