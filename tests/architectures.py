"""A tiny random model of every causal language model architecture that the installed transformers knows."""

import copy
import inspect
import re
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from preftune.errors import ModelError
from preftune.model.attention_segments import with_fitting_attention
from preftune.model.layout import LayoutOptions
from preftune.model.load import LoadOptions, load_model
from preftune.model.proof import check_trains, choose_layout

VOCAB = 320
OPTIONS = LayoutOptions(micro_batch_tokens=120)

ARCHITECTURES = tuple(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)

_LAYERS = 2
_SIZES: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "n_embd": 32,
    "n_embed": 32,
    "d_model": 32,
    "dim": 32,
    "emb_dim": 32,
    "embedding_size": 32,
    "word_embed_proj_dim": 32,
    "input_embedding_size": 32,
    "output_embedding_size": 32,
    "attention_hidden_size": 32,
    "dim_model": 32,
    "intermediate_size": 48,
    "n_inner": 48,
    "ffn_dim": 48,
    "ffn_hidden_size": 48,
    "dim_ff": 48,
    "dff": 48,
    "d_inner": 48,
    "d_ff": 48,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "shared_intermediate_size": 16,
    "expert_ffn_hidden_size": 16,
    "intermediate_size_mlp": 48,
    "num_hidden_layers": _LAYERS,
    "num_layers": _LAYERS,
    "attention_chunk_size": 16,
    "n_layer": _LAYERS,
    "n_layers": _LAYERS,
    "encoder_layers": _LAYERS,
    "decoder_layers": _LAYERS,
    "num_encoder_layers": _LAYERS,
    "num_decoder_layers": _LAYERS,
    "num_attention_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_encoder_attention_heads": 4,
    "num_decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "dim_head": 8,
    "rotary_dim": 8,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "n_ctx": 128,
    "max_target_positions": 128,
    "max_source_positions": 128,
    "max_sequence_length": 128,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_nope_head_dim": 8,
    "qk_rope_head_dim": 8,
    "v_head_dim": 8,
    "n_routed_experts": 4,
    "num_experts": 4,
    "num_local_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "experts_per_token": 2,
    "moe_k": 2,
    "moe_topk": 2,
    "n_group": 1,
    "topk_group": 1,
    "n_shared_experts": 1,
    "num_shared_experts": 1,
    "first_k_dense_replace": 1,
    "state_size": 8,
    "ssm_state_size": 8,
    "mamba_d_state": 8,
    "mamba_d_ssm": 32,
    "mamba_d_head": 8,
    "mamba_n_heads": 8,
    "mamba_head_dim": 8,
    "mamba_num_heads": 8,
    "n_mamba_heads": 1,
    "mamba_headdim": 8,
    "time_step_rank": 4,
    "mamba_dt_rank": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_v_heads": 4,
    "num_qk_heads": 4,
    "lru_width": 32,
    "chunk_size": 16,
    "mamba_chunk_size": 16,
    "sliding_window": 5,
    "local_window_size": 5,
    "window_size": 5,
    "hidden_size_per_layer_input": 8,
    "vocab_size_per_layer_input": VOCAB,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    "decoder_start_token_id": 1,
}

_MLA = {"num_key_value_heads": 4, "head_dim": 8}
_LAYER_KINDS = {"layer_types": ["linear_attention", "full_attention"], "num_hidden_layers": 2}
OVERRIDES: dict[str, dict[str, Any]] = {
    "axk1": _MLA,
    "axk2": _MLA,
    "bamba": {"mamba_expand": 2, "attn_layer_indices": [1]},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {
            kind: {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}
            for kind in ("sliding_attention", "full_attention")
        },
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 1e4, "clip_qkv": 8.0},
        "ffn_config": {"ffn_hidden_size": 16, "moe_num_experts": 4, "moe_top_k": 2},
    },
    "deepseek_v2": _MLA,
    "deepseek_v3": _MLA,
    "deepseek_v32": _MLA | {"index_topk": 8, "index_head_dim": 16, "index_n_heads": 2},
    "deepseek_v4": {
        "o_groups": 2,
        "o_lora_rank": 8,
        "index_topk": 8,
        "index_head_dim": 16,
        "index_n_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 16,
    },
    "dots3_note_text": _MLA,
    "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8, "lm_head_multiplier": 0.5},
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "laurel_rank": 4,
    },
    "gemma4_text": {"global_head_dim": 8, "num_kv_shared_layers": 0},
    "gemma4_unified_text": {"global_head_dim": 8, "num_kv_shared_layers": 0},
    "glm4_moe_lite": _MLA,
    "glm_moe_dsa": _MLA | {"index_topk": 8, "index_head_dim": 16, "index_n_heads": 2},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "inkling_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "sliding_window_size": 5,
        "rel_extent": 16,
        "d_rel": 4,
    },
    "inkling2_text": {
        "swa_num_attention_heads": 4,
        "swa_num_key_value_heads": 2,
        "swa_head_dim": 8,
        "sliding_window_size": 5,
        "rel_extent": 16,
        "d_rel": 4,
    },
    "kimi_linear": _MLA | {"linear_head_dim": 8, "linear_num_heads": 4},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": _MLA | {"zero_expert_num": 2},
    "mamba2": {"hidden_size": 32, "num_heads": 8, "head_dim": 8, "n_groups": 2},
    "minicpm3": _MLA,
    "nemotron_h": {
        "moe_shared_expert_intermediate_size": 16,
        "n_groups": 2,
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
    },
    "roc_bert": {
        "pronunciation_vocab_size": 16,
        "shape_vocab_size": 16,
        "pronunciation_embed_dim": 16,
        "shape_embed_dim": 16,
    },
    "xmod": {"default_language": "en_XX", "languages": ["en_XX"]},
    "youtu": _MLA,
    "zamba": {
        "num_hidden_layers": 5,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid"],
        "n_mamba_heads": 2,
        "num_key_value_heads": 4,
    },
    "zamba2": {
        "num_hidden_layers": 5,
        "layers_block_type": ["mamba", "mamba", "hybrid", "mamba", "hybrid"],
        "n_mamba_heads": 8,
        "adapter_rank": 4,
        "num_key_value_heads": 4,
    },
    "zaya": {"num_experts_per_tok": 1},
    "reformer": {"is_decoder": True, "axial_pos_embds": False, "attn_layers": ["local", "local"]},
}
"""What a configuration wants beyond the sizes above."""

_DECODERS = {"is_decoder": True}
_PARTS: dict[str, dict[str, Any]] = {"vision_config": {"image_size": 28, "patch_size": 14}}


def config_of(kind: str) -> Any:
    """A small configuration of this model type; of a multimodal model, all of its parts are small."""
    return _small(CONFIG_MAPPING[kind], OVERRIDES.get(kind, {}))


def _small(config_class: Any, more: dict[str, Any]) -> Any:
    default = config_class()
    known = set(inspect.signature(config_class.__init__).parameters) | set(vars(default))
    chosen = {name: value for name, value in _SIZES.items() if name in known}
    for name in getattr(config_class, "sub_configs", {}):
        part = type(getattr(default, name, None))
        if part is not type(None) and name not in more:
            own = OVERRIDES.get(getattr(part, "model_type", ""), {})
            chosen[name] = _small(part, own if own else _PARTS.get(name, {}))
    if "is_decoder" in known and "is_encoder_decoder" not in chosen:
        chosen |= _DECODERS
    return config_class(**chosen | more)


def tiny_architecture(kind: str, seed: int = 0, std: float = 0.2) -> PreTrainedModel:
    """The model with a large spread of weights, so that leaks between sequences show."""
    config = config_of(kind)
    torch.manual_seed(seed)
    model_class = MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]

    def make(attention: str) -> Any:
        return AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=attention)

    model = with_fitting_attention(make, model_class, config).float().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1 and parameter.is_floating_point():
                parameter.normal_(std=std)
    return model


NOT_MADE = {
    "blt": "not tested: its hash tables of 3 million rows cannot be made small",
    "dots3_note": "not tested: its vision and audio parts cannot be made small",
    "gemma3n": "not tested: transformers makes its vision part with the package timm",
    "gemma4_assistant": "not tested: it drafts tokens for another model and is none by itself",
    "gemma4_unified_assistant": "not tested: it drafts tokens for another model and is none by itself",
    "musicgen": "not tested: transformers cannot make its decoder from the configuration of the whole",
    "musicgen_melody": "not tested: transformers cannot make its decoder from the configuration of the whole",
    "phi4_multimodal": "not tested: its vision and audio parts cannot be made small",
    "zamba": "not tested: transformers' own forward fails on a small configuration",
    "zamba2": "not tested: transformers' own forward fails on a small configuration",
}
"""Architectures without a tiny model."""

TABLE = Path(__file__).resolve().parent.parent / "docs" / "models.md"
HEADING = "\n## All architectures\n"
_WORDS = {
    "flat": "exact with prefix sharing",
    "shared": "exact with prefix sharing, in rows under a mask",
    "packed": "exact with packed rows",
    "single": "exact with single rows",
    "alone": "exact with single rows, one at a time",
    "": "refused",
}


def result(sharing: str, reason: str) -> tuple[str, str]:
    """The words of the page for a layout and the reason for it."""
    words = "not tested" if reason.startswith("not tested: ") else _WORDS[sharing]
    shown = reason.removeprefix("not tested: ")
    if "; got " in shown:  # an error: the reason alone
        shown = shown.split("; got ")[1].split("; expected ")[0]
    shown = " ".join(re.sub(r" \(by .*? relative\)", "", shown).replace("|", " ").split())
    return words, shown


def documented() -> dict[str, tuple[str, str]]:
    """The result and the reason of each model type on the page."""
    section = TABLE.read_text(encoding="utf-8").split(HEADING)[1]
    found: dict[str, tuple[str, str]] = {}
    for line in section.splitlines():
        if "| `" in line:
            words, reason, kinds = (cell.strip() for cell in line.strip("| ").split(" | "))
            found |= dict.fromkeys(re.findall(r"`(\S+)`", kinds), (words, "" if reason == "-" else reason))
    return found


def make_table(results: dict[str, tuple[str, str]]) -> str:
    """A row for each result with its reason, and the model types that have it."""
    order = [*_WORDS.values(), "not tested"]
    rows = []
    for words, reason in sorted(set(results.values()), key=lambda pair: (order.index(pair[0]), pair[1])):
        kinds = " ".join(f"`{kind}`" for kind in results if results[kind] == (words, reason))
        rows.append(f"| {words} | {reason or '-'} | {kinds} |")
    return "\n".join(rows) + "\n"


def compute_results() -> dict[str, tuple[str, str]]:
    """The result of each architecture, from tiny models that are saved and loaded."""
    results: dict[str, tuple[str, str]] = {}
    for kind in ARCHITECTURES:
        if kind in NOT_MADE:
            results[kind] = result("", NOT_MADE[kind])
            continue
        with TemporaryDirectory() as folder:
            tiny_architecture(kind).save_pretrained(folder)
            try:
                model = load_model(folder, LoadOptions())
                sharing, reason = choose_layout(model, OPTIONS, "fp32")
                check_trains(model, sharing, "fp32")
                results[kind] = result(sharing, reason)
            except ModelError as error:
                results[kind] = result("", str(error))
    return results


if __name__ == "__main__":
    above, section = TABLE.read_text(encoding="utf-8").split(HEADING)
    head = section.split("|---|---|---|")[0] + "|---|---|---|"
    print(f"{above}{HEADING}{head}\n{make_table(compute_results())}", end="")
