"""From a name to a model: the bundled default, a local folder, a GGUF file, an adapter folder, or a hub id."""

import json
import warnings
from collections.abc import Mapping
from functools import lru_cache, partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from preftune.data.vocabulary import note_rows
from preftune.errors import ModelError, shown
from preftune.model.adapter_files import (
    CONFIG,
    WEIGHTS,
    adapter_config,
    check_ranks,
    is_adapter,
    shapes_of,
    vocabulary_of,
)
from preftune.model.adapters import quiet_peft
from preftune.model.attention_segments import plain_attention, settle_attention
from preftune.model.bundled import bundled_folder
from preftune.model.device import pick_device
from preftune.model.kernels.gated import lighten_mlps
from preftune.model.kernels.norms import quicken_norms
from preftune.model.kernels.products import use_fast_products
from preftune.model.names import BUNDLED_MODELS, missing_model
from preftune.model.quantize import dequantized, library_settings, quantization_of
from preftune.model.whole_model import (
    LoadOptions,
    configuration,
    from_pretrained,
    not_quantized,
    quiet_transformers,
    whole_model,
)
from preftune.storage import DIGESTS, folder_damage


def resolve_model(name: str) -> str:
    """A folder, a .gguf file or a hub id for what the user typed; the bundled model is fetched on first use."""
    if name in BUNDLED_MODELS:
        return str(bundled_folder(name))
    if not name:
        raise ModelError("The model's name is empty", expected="a folder, a .gguf file or a hub id")
    path = Path(name).expanduser()
    if (path / "config.yaml").is_file() and (path / "final").is_dir():
        path = path / "final"  # the model that a run folder holds
    if path.is_dir() and not any((path / file).is_file() for file in ("config.json", CONFIG)):
        raise ModelError(
            f"The folder {name} holds no model",
            got=", ".join(sorted(p.name for p in path.iterdir())[:6]) or "nothing",
            expected="config.json and safetensors weights, or a peft adapter",
        )
    if path.is_file() and path.suffix != ".gguf":
        raise ModelError(f"{name} is a file", got=path.suffix, expected="a model folder or a .gguf file")
    if path.is_dir():
        _check_digests(path.resolve(), _stamps(path))
    if path.exists():
        return str(path.resolve())
    if name.startswith((".", "/", "~")) or name.count("/") != 1:
        raise missing_model(name)
    return name


def _stamps(folder: Path) -> tuple[tuple[str, int, int], ...]:
    """Name, size and time of change of each file of a folder."""
    files = [(path.name, path.stat()) for path in sorted(folder.iterdir()) if path.is_file()]
    return tuple((name, found.st_size, found.st_mtime_ns) for name, found in files)


@lru_cache(maxsize=16)
def _check_digests(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> None:
    """A model that a run wrote must be as the run wrote it. Verified once for each state of its files (`stamps`)."""
    if damage := folder_damage(folder):
        raise ModelError(
            f"The model {folder} is not as its run wrote it",
            got=damage,
            expected="the files whose digests the folder holds",
            do=f"Put the file back; if you changed it on purpose, delete {folder / DIGESTS}",
        )


def load_tokenizer(source: str, options: LoadOptions) -> PreTrainedTokenizerBase:
    """The tokenizer of a resolved model (of an adapter: the one saved next to it, else its base's)."""
    if is_adapter(source) and not (Path(source) / "tokenizer_config.json").is_file():
        return load_tokenizer(base_of(source), options)
    tokenizer = from_pretrained(
        AutoTokenizer.from_pretrained,
        source,
        "tokenizer",
        source,
        trust_remote_code=options.trust_remote_code,
    )
    if isinstance(limit := tokenizer.model_max_length, bool) or not isinstance(limit, int | float):
        raise ModelError(
            f"The tokenizer of {source} states a length that is no number",
            got=f"model_max_length {shown(limit)}",
            expected="a number of tokens",
            do="Correct tokenizer_config.json",
        )
    rows = _embedding_rows(Path(source) / "config.json")
    if rows is not None:
        note_rows(tokenizer, rows)
    return tokenizer


def _embedding_rows(path: Path) -> int | None:
    """The rows of the embedding that the configuration of a model on this machine states."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        rows = config.get("vocab_size", config.get("text_config", {}).get("vocab_size"))
    except (OSError, ValueError, AttributeError, RecursionError):
        return None
    return rows if type(rows) is int and rows > 0 else None


def check_same_tokenizer(model: str, reference: str, options: LoadOptions) -> None:
    """Token ids must mean the same to a model and its reference."""
    vocabularies = [load_tokenizer(resolve_model(name), options).get_vocab() for name in (model, reference)]
    if vocabularies[0] != vocabularies[1]:
        raise ModelError(
            "The model and its reference have different tokenizers",
            got=f"{model} and {reference}",
            expected="models of one family",
            do="Name a reference that the model was tuned from",
        )


def weights_dtype(precision: str) -> torch.dtype:
    """The dtype of the weights of a model that is not trained."""
    return torch.bfloat16 if precision == "bf16" else torch.float32


def load_on_device(name: str, options: LoadOptions, precision: str, device: str) -> PreTrainedModel:
    """A causal model by its name, with weights in `precision`, on the device ("auto" takes a GPU if there is
    one).
    """
    model = load_model(resolve_model(name), options, weights_dtype(precision))
    return model.to(pick_device(device))  # type: ignore[arg-type]


def load_model(
    source: str,
    options: LoadOptions,
    dtype: torch.dtype = torch.float32,
    quantization: str = "none",
    device: torch.device | None = None,
) -> PreTrainedModel:
    """A causal model in evaluation mode, so without dropout. An adapter is merged into its base, which is
    exact. With a quantization the linear layers are quantized as they are read, on the device.
    """
    quiet_transformers()
    use_fast_products()
    if is_adapter(source):
        if quantization != "none":
            raise not_quantized(source, "an adapter", "Merge it first: preftune export ADAPTER --to merged")
        return _merged(source, options, dtype)
    more: dict[str, Any] = {}
    if quantization != "none":
        if Path(source).suffix == ".gguf":
            raise not_quantized(source, "a GGUF file", "Name the model that it was made of")
        more = {"quantization_config": library_settings(quantization, dtype)}
        more |= {"device_map": {"": str(device or "cpu")}} if find_spec("accelerate") else {}
    model = whole_model(AutoModelForCausalLM, source, options, dtype, more=more)
    model = plain_model(model) if Path(source).suffix == ".gguf" else model.eval()
    make_lean(model)
    settle_attention(model)
    model.name_or_path = source
    return model


def make_lean(model: PreTrainedModel) -> None:
    """Let the norms and MLPs of a model compute the same with less time and memory, where they can."""
    quicken_norms(model)
    lighten_mlps(model)


def base_of(source: str) -> str:
    """The resolved base of an adapter folder."""
    name = adapter_config(source).get("base_model_name_or_path")
    try:
        base = resolve_model(str(name)) if name else source
    except ModelError as error:
        raise ModelError(
            f"The adapter {source} names a base model that is not there",
            got=f"base_model_name_or_path: {name}",
            expected="a model folder or a hub id",
            do=f"Write where the base is into {CONFIG}",
        ) from error
    if base == source:
        raise ModelError(
            f"The adapter {source} names no base model",
            got=f"base_model_name_or_path: {name}",
            do=f"Write its folder or hub id into {CONFIG}",
        )
    return base


def _merged(source: str, options: LoadOptions, dtype: torch.dtype) -> PreTrainedModel:
    """An adapter merged into its base; all weights train."""
    config, shapes = adapter_config(source), shapes_of(source)
    if not options.allow_pickle and not shapes:
        raise ModelError(
            f"Cannot load the weights of the adapter {source}",
            got=f"no {WEIGHTS}",
            do="If it has pickle weights only and you trust them, set --allow_pickle true",
        )
    check_ranks(source, config, shapes)
    from peft import PeftModel

    below, quantization = base_of(source), quantization_of(source) or "none"
    base = dequantized(load_model(below, options, dtype, quantization), dtype)
    stacked = [*getattr(base, "merged_adapters", []), source]
    _resize_to(base, shapes)
    with quiet_peft(), warnings.catch_warnings():
        warnings.filterwarnings(
            "error", message="Found missing adapter keys"
        )  # peft would leave them at random
        adapted = from_pretrained(partial(PeftModel.from_pretrained, base), source, "adapter", source)
    if not hasattr(adapted, "merge_and_unload"):
        raise ModelError(f"The adapter {source} cannot be merged into its base", got=config.get("peft_type"))
    model = adapted.merge_and_unload().eval().requires_grad_(True)
    model.merged_adapters = stacked  # an adapter trained on top of this one builds on all of them
    return model


def _resize_to(base: PreTrainedModel, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Give the base the vocabulary of an adapter that holds embeddings of another size."""
    ends = (base.get_input_embeddings(), base.get_output_embeddings())
    names = {name for name, module in base.named_modules() if any(module is end for end in ends)}
    rows, own = vocabulary_of(shapes, names), int(cast(Any, ends[0]).weight.shape[0])
    if rows is not None and rows != own:
        base.resize_token_embeddings(rows, mean_resizing=False)


def plain_model(model: PreTrainedModel) -> PreTrainedModel:
    """A de-quantized GGUF model as an ordinary one, which can be saved."""
    config = model.config
    if "quantization_config" in config.to_dict():
        delattr(config, "quantization_config")
    plain = AutoModelForCausalLM.from_config(
        config, dtype=model.dtype, attn_implementation=plain_attention(config)
    )
    plain.load_state_dict(model.state_dict())
    return plain.eval()


def stored_dtype(source: str, options: LoadOptions) -> torch.dtype:
    """The type of the weights in a model's files, of an adapter's base; fp32 where the files name none, or one
    that weights cannot be saved in.
    """
    if (Path(source) / CONFIG).is_file():
        return stored_dtype(base_of(source), options)
    if Path(source).suffix == ".gguf":
        return torch.float32
    config = configuration(source, options)
    found = getattr(config, "dtype", None) or getattr(config.get_text_config(), "dtype", None)
    dtype = getattr(torch, found, None) if isinstance(found, str) else found
    return dtype if dtype in (torch.bfloat16, torch.float16) else torch.float32
