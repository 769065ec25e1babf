"""A model as a GGUF file, which llama.cpp and Ollama read: written with the `gguf` package."""

import json
from pathlib import Path
from typing import Any, Literal

import gguf
import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.errors import ModelError

GgufType = Literal["f32", "f16", "bf16"]

_ARCHITECTURES = {
    "llama": gguf.MODEL_ARCH.LLAMA,
    "mistral": gguf.MODEL_ARCH.LLAMA,
    "qwen2": gguf.MODEL_ARCH.QWEN2,
    "qwen3": gguf.MODEL_ARCH.QWEN3,
}
_TYPES = {
    "f32": (gguf.GGMLQuantizationType.F32, gguf.LlamaFileType.ALL_F32),
    "f16": (gguf.GGMLQuantizationType.F16, gguf.LlamaFileType.MOSTLY_F16),
    "bf16": (gguf.GGMLQuantizationType.BF16, gguf.LlamaFileType.MOSTLY_BF16),
}
_SPLITS = {"qwen2": "qwen2", "qwen3": "qwen2"}
_SPLITS_BY_SIZE = {49152: "smollm", 128256: "llama-bpe"}
"""How llama.cpp splits text before byte-pair merges, by model type and by the size of the vocabulary."""


def write_gguf(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, path: Path, kind: GgufType
) -> None:
    """All weights in this type (norms in fp32), the tokenizer and the chat template."""
    config: Any = model.config
    arch = _ARCHITECTURES.get(config.model_type)
    if arch is None:
        raise ModelError(
            "There is no GGUF conversion for this model here",
            got=config.model_type,
            expected=", ".join(_ARCHITECTURES),
            do="Export it with --to merged and convert the folder with llama.cpp's convert_hf_to_gguf.py",
        )
    writer = gguf.GGUFWriter(str(path), gguf.MODEL_ARCH_NAMES[arch])
    try:
        _write_shape(writer, config, kind)
        _write_tokenizer(writer, tokenizer, config)
        names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
        for name, tensor in model.state_dict().items():
            if name == "lm_head.weight" and config.tie_word_embeddings:
                continue
            known = names.get_name(name, try_suffixes=(".weight", ".bias"))
            if known is None:
                raise ModelError(
                    "A tensor has no name in GGUF", got=name, expected="a tensor of the architecture"
                )
            _write_tensor(writer, known, _as_ggml(name, tensor, config, arch), kind)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()


def _write_shape(writer: gguf.GGUFWriter, config: Any, kind: GgufType) -> None:
    rope = getattr(config, "rope_parameters", None) or {}
    scaling = rope.get("rope_type", "default")
    if scaling != "default":
        raise ModelError(
            "Scaled rotary embeddings are not converted to GGUF here",
            got=scaling,
            do="Export it with --to merged and convert the folder with llama.cpp's convert_hf_to_gguf.py",
        )
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_name(Path(str(config.name_or_path or config.model_type)).name)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(size)
    writer.add_value_length(size)
    writer.add_rope_dimension_count(size)
    writer.add_rope_freq_base(float(rope.get("rope_theta", 10000.0)))
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(_TYPES[kind][1])


def _write_tokenizer(writer: gguf.GGUFWriter, tokenizer: Any, config: Any) -> None:
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    if parts["model"].get("type") != "BPE" or parts["model"].get("byte_fallback"):
        raise ModelError(
            "Only byte-level BPE tokenizers are converted to GGUF here",
            got=f"{parts['model'].get('type')}, byte_fallback {parts['model'].get('byte_fallback')}",
            do="Export it with --to merged and convert the folder with llama.cpp's convert_hf_to_gguf.py",
        )
    by_id = {token: text for text, token in tokenizer.get_vocab().items()}
    added = tokenizer.added_tokens_decoder
    tokens, types = [], []
    for token in range(config.vocab_size):
        tokens.append(by_id.get(token, f"[PAD{token}]"))
        if token not in by_id:
            types.append(gguf.TokenType.UNUSED)
        elif token in added:
            special = added[token].special
            types.append(gguf.TokenType.CONTROL if special else gguf.TokenType.USER_DEFINED)
        else:
            types.append(gguf.TokenType.NORMAL)
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in parts["model"]["merges"]]
    split = _SPLITS.get(config.model_type) or _SPLITS_BY_SIZE.get(config.vocab_size, "default")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(split)
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    if merges:
        writer.add_token_merges(merges)
    for name in ("bos", "eos", "pad", "unk"):
        token = getattr(tokenizer, f"{name}_token_id")
        if isinstance(token, int):
            getattr(writer, f"add_{name}_token_id")(token)
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    writer.add_add_bos_token(bool(ids) and ids[0] == tokenizer.bos_token_id)
    if isinstance(tokenizer.chat_template, str):
        writer.add_chat_template(tokenizer.chat_template)


def _as_ggml(name: str, tensor: Tensor, config: Any, arch: Any) -> Tensor:
    """Queries and keys of Llama in the order of llama.cpp's rotary embedding: pairs side by side."""
    heads = {"q_proj": config.num_attention_heads, "k_proj": config.num_key_value_heads}
    count = next((count for part, count in heads.items() if f".{part}." in name), None)
    if count is None or arch is not gguf.MODEL_ARCH.LLAMA:
        return tensor
    halves = tensor.reshape(count, 2, tensor.shape[0] // count // 2, *tensor.shape[1:])
    return halves.swapaxes(1, 2).reshape(tensor.shape)


def _write_tensor(writer: gguf.GGUFWriter, name: str, tensor: Tensor, kind: GgufType) -> None:
    data: np.ndarray = tensor.detach().to("cpu", torch.float32).contiguous().numpy()
    if tensor.ndim < 2 or kind == "f32":
        writer.add_tensor(name, data)
    elif kind == "f16":
        writer.add_tensor(name, data.astype(np.float16))
    else:
        low = _TYPES["bf16"][0]
        writer.add_tensor(name, gguf.quants.quantize(data, low), raw_dtype=low)
