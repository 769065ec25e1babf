"""From a name to a model: the bundled default, a local folder, a GGUF file, an adapter folder, or a hub id."""

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, cast

import torch
import transformers
from huggingface_hub.errors import HFValidationError
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from preftune.data.vocabulary import note_rows
from preftune.errors import ConfigError, ModelError
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
from preftune.model.attention_segments import plain_attention, settle_attention, with_fitting_attention
from preftune.model.bundled import bundled_folder
from preftune.model.kernels.gated import lighten_mlps
from preftune.model.kernels.norms import quicken_norms
from preftune.model.kernels.products import use_fast_products
from preftune.model.names import BUNDLED_MODELS, missing_model
from preftune.storage import DIGESTS, folder_damage


@dataclass(frozen=True, kw_only=True)
class LoadOptions:
    """Security settings for loading models.

    Args:
        trust_remote_code: run Python code that comes with the model.
        allow_pickle: read weights from pickle files (.bin), which can run code, when there are no
            safetensors.
    """

    trust_remote_code: bool = False
    allow_pickle: bool = False


def quiet_transformers() -> None:
    """Progress bars and notices of the libraries would break ours up."""
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_error()


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


def from_pretrained(load: Callable[..., Any], source: str, what: str, name: str, **arguments: Any) -> Any:
    """`load(source, **arguments)`, a from_pretrained, with every known way to fail told in one sentence."""
    path = Path(source)
    if path.suffix == ".gguf":
        source, arguments = str(path.parent), arguments | {"gguf_file": path.name}
        arguments.pop("use_safetensors", None)
    try:
        return load(source, **arguments)
    except HFValidationError as error:
        raise ModelError(
            f"{name!r} is no model name", expected="a folder or a hub id (owner/name)"
        ) from error
    except ImportError as error:
        raise ModelError(
            f"The {what} of {name} needs a package", got=str(error).strip().split("\n")[0]
        ) from error
    except (
        OSError,
        ValueError,
        KeyError,
        IndexError,
        RuntimeError,
        EOFError,
        struct.error,
        SafetensorError,
        UnpicklingError,
    ) as error:  # the parsers of safetensors, pickle, GGUF and JSON, met with damaged files
        told = str(error).strip().split("\n")[0]
        if "trust_remote_code" in str(error):
            told, do = "it carries Python code", "Set --trust_remote_code true if you trust its authors"
        elif arguments.get("use_safetensors") and ("safetensors" in told or ".bin" in told):
            do = "If it has pickle weights only and you trust them, set --allow_pickle true"
        else:
            do = "Check the name, the files and the network; a local folder works without a network"
        raise ModelError(f"Cannot load the {what} of {name}", got=told, do=do) from error


def load_tokenizer(source: str, options: LoadOptions) -> PreTrainedTokenizerBase:
    """The tokenizer of a resolved model (of an adapter: the one saved beside it, else its base's)."""
    if is_adapter(source) and not (Path(source) / "tokenizer_config.json").is_file():
        return load_tokenizer(base_of(source), options)
    tokenizer = from_pretrained(
        AutoTokenizer.from_pretrained,
        source,
        "tokenizer",
        source,
        trust_remote_code=options.trust_remote_code,
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
    except (OSError, ValueError, AttributeError):
        return None
    return rows if type(rows) is int and rows > 0 else None


def pick_device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            "device is not to be had", got=name, expected="auto, cpu, cuda or cuda:N"
        ) from error
    return device


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


def load_model(source: str, options: LoadOptions, dtype: torch.dtype = torch.float32) -> PreTrainedModel:
    """A causal model in evaluation mode, so without dropout. An adapter is merged into its base, which is
    exact.
    """
    quiet_transformers()
    use_fast_products()
    if is_adapter(source):
        return _merged(source, options, dtype)
    model = whole_model(AutoModelForCausalLM, source, options, dtype)
    model = plain_model(model) if Path(source).suffix == ".gguf" else model.eval()
    make_lean(model)
    settle_attention(model)
    model.name_or_path = source
    return model


def make_lean(model: PreTrainedModel) -> None:
    """Let the norms and MLPs of a model compute the same with less time and memory, where they can."""
    quicken_norms(model)
    lighten_mlps(model)


def _check_index(source: str) -> None:
    """An index of weights may name files of its own folder only."""
    for path in Path(source).glob("*.index.json"):
        try:
            files = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
            strange = sorted(str(file) for file in files if Path(str(file)).name != str(file))
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ModelError(f"The index {path} is damaged", got=repr(error)) from error
        if strange:
            raise ModelError(
                f"The index {path} names a file outside its folder",
                got=strange[0],
                expected="names of files in the model's folder",
                do="Do not use this model unless you know where it comes from",
            )


def configuration(source: str, options: LoadOptions) -> Any:
    trust = options.trust_remote_code
    return from_pretrained(
        AutoConfig.from_pretrained, source, "configuration", source, trust_remote_code=trust
    )


def whole_model(
    kind: Any,
    source: str,
    options: LoadOptions,
    dtype: torch.dtype,
    outputs: int | None = None,
    elsewhere: frozenset[str] = frozenset(),
) -> PreTrainedModel:
    """Load a model with the auto class `kind`; an error if the files lack a weight that is not `elsewhere`. A
    classifier has so many `outputs`, where that is not in its configuration.
    """
    _check_index(source)
    config = configuration(source, options)
    if outputs is not None:
        config.num_labels = outputs
    if kind is AutoModelForCausalLM and any(
        str(name).endswith("ForSequenceClassification") for name in config.architectures or ()
    ):
        raise ModelError(
            f"{source} is a classifier or a reward model and cannot write text",
            got=config.architectures[0],
            expected="a causal language model",
            do="Name it as a reward, train it further with preftune train-reward-model, or name the model it came from",
        )
    if kind is AutoModelForCausalLM:
        kind = _writing_kind(config, source)

    def load(path: str, **arguments: Any) -> Any:
        model_class = kind._model_mapping.get(type(config), None)
        return with_fitting_attention(
            lambda name: kind.from_pretrained(path, attn_implementation=name, **arguments),
            model_class if isinstance(model_class, type) else None,
            config,
        )

    model, found = from_pretrained(
        load,
        source,
        "weights",
        source,
        config=config,
        dtype=dtype,
        trust_remote_code=options.trust_remote_code,
        use_safetensors=None if options.allow_pickle else True,
        output_loading_info=True,
    )
    if missing := sorted(found["missing_keys"] - elsewhere):
        raise ModelError(
            f"The weights of {source} are incomplete",
            got=f"no {', '.join(missing[:3])}",
            expected=f"all of {type(model).__name__}",
            do="Fetch or save the model again",
        )
    return model


def _writing_kind(config: Any, source: str) -> Any:
    """The auto class for a model that writes text; an error if there is none."""
    if config.is_encoder_decoder and not _has_decoder_class(config):
        raise ModelError(
            f"{source} is an encoder-decoder model",
            got=config.model_type,
            expected="a decoder-only language model",
            do="Name another model; preftune does not train models that encode the prompt apart",
        )
    if "AutoModelForCausalLM" in (getattr(config, "auto_map", None) or {}):
        return AutoModelForCausalLM
    for kind in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in kind._model_mapping:
            return kind
    raise ModelError(
        f"{source} is no language model that transformers can load",
        got=f"model_type {config.model_type}",
        expected="a decoder-only language model, or a vision-language model with one",
        do="Name another model",
    )


def _has_decoder_class(config: Any) -> bool:
    """Whether the files are those of a decoder by itself, as its configuration names it."""
    return any(str(name).endswith("ForCausalLM") for name in config.architectures or ())


def base_of(source: str) -> str:
    """The resolved base of an adapter folder."""
    name = adapter_config(source).get("base_model_name_or_path")
    base = resolve_model(str(name)) if name else source
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

    base = load_model(base_of(source), options, dtype)
    stacked = [*getattr(base, "merged_adapters", []), source]
    _resize_to(base, shapes)
    with quiet_peft():
        adapted = from_pretrained(partial(PeftModel.from_pretrained, base), source, "adapter", source)
    if not hasattr(adapted, "merge_and_unload"):
        raise ModelError(f"The adapter {source} cannot be merged into its base", got=config.get("peft_type"))
    model = adapted.merge_and_unload().eval().requires_grad_(True)
    model.merged_adapters = stacked  # an adapter trained on top of this one stands on all of them
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
