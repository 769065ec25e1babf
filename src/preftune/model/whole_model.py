"""A model by the classes of transformers, with every known way to fail stated in one sentence."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import HFValidationError
from tqdm.auto import tqdm
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedModel,
    modeling_gguf_pytorch_utils,
)

from preftune.errors import ConfigError, ModelError, PreftuneError
from preftune.model.attention_segments import with_fitting_attention
from preftune.model.weight_files import check_sizes


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
    # This module does not heed the line above.
    setattr(modeling_gguf_pytorch_utils, "tqdm", partial(tqdm, disable=True))  # noqa: B010
    transformers.utils.logging.set_verbosity_error()


def from_pretrained(load: Callable[..., Any], source: str, what: str, name: str, **arguments: Any) -> Any:
    """`load(source, **arguments)`, a from_pretrained, with one sentence for every known failure."""
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
    except PreftuneError:
        raise
    except Exception as error:  # the libraries check few of the values that damaged or foreign files hold
        told = _in_short(error)
        if "trust_remote_code" in str(error):
            told, do = "it carries Python code", "Set --trust_remote_code true if you trust its authors"
        elif isinstance(error, FileNotFoundError):
            do = "Fetch or save the model again"
        elif files := sorted(path.glob("*.gguf")) if "no file named model.safetensors" in told else []:
            do = f"Name the GGUF file as the model: {files[0]}"
        elif (
            arguments.get("use_safetensors")
            and ("safetensors" in told or ".bin" in told)
            and (any(path.glob("*.bin")) or not path.is_dir())
        ):
            do = "If it has pickle weights only and you trust them, set --allow_pickle true"
        elif path.exists():
            do = "Check the files, or fetch or save the model again"
        else:
            do = "Check the name and the network; a local folder works without a network"
        raise ModelError(f"Cannot load the {what} of {name}", got=told, do=do) from error


def _in_short(error: Exception) -> str:
    """The line of a library's message that names the cause."""
    if isinstance(error, KeyError):
        return f"an unknown entry, {error}"
    lines = [line.strip() for line in str(error).strip().split("\n")]
    if isinstance(error, TypeError | AttributeError | ArithmeticError) or not lines[0]:
        return f"{type(error).__name__}: {lines[0]}"
    headings = ("Error(s) in loading state_dict", "Class validation error", "Validation error")
    causes = [line for line in lines if line and not line.startswith(headings)]
    return (causes or lines)[0]


def _check_index(source: str) -> None:
    """An index of weights may name files of the same folder only."""
    for path in Path(source).glob("*.index.json"):
        try:
            files = set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values())
            strange = sorted(
                str(file) for file in files if not isinstance(file, str) or Path(file).name != file
            )
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
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
    more: Mapping[str, Any] | None = None,
) -> PreTrainedModel:
    """Load a model with the auto class `kind`; an error if the files lack a weight that is not `elsewhere`. A
    classifier has so many `outputs`, where that is not in its configuration. `more` goes to from_pretrained.
    """
    _check_index(source)
    config = configuration(source, options)
    check_sizes(config, source)
    if more and getattr(config, "quantization_config", None):
        raise not_quantized(source, "weights that are quantized already", "Leave lora.quantization out")
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
        ignore_mismatched_sizes=True,  # refused below, with their names
        **(more or {}),
    )
    _check_complete(model, found, source, elsewhere)
    model.unused_weights = tuple(sorted(found["unexpected_keys"]))
    return model


def _check_complete(model: Any, found: Mapping[str, Any], source: str, elsewhere: frozenset[str]) -> None:
    """Refuse weights of another shape and weights that the files lack."""
    if wrong := sorted(found["mismatched_keys"]):
        weight, stored, expected = wrong[0]
        raise ModelError(
            f"The weights of {source} do not fit its configuration",
            got=f"{weight} of {tuple(stored)}",
            expected=f"{tuple(expected)}",
            do="Correct config.json, or fetch or save the model again",
        )
    if missing := sorted(found["missing_keys"] - elsewhere):
        raise ModelError(
            f"The weights of {source} are incomplete",
            got=f"no {', '.join(missing[:3])}",
            expected=f"all of {type(model).__name__}",
            do="Fetch or save the model again",
        )


def unused_note(model: PreTrainedModel) -> str:
    """A line on the weights in the files that the model does not use; empty if there are none."""
    names = getattr(model, "unused_weights", ())
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return (
        f"model: {type(model).__name__} does not use {', '.join(names[:3])}{more} of its files"
        if names
        else ""
    )


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


def not_quantized(source: str, got: str, do: str) -> ConfigError:
    return ConfigError(
        f"lora.quantization: {source} cannot be quantized as it is read",
        got=got,
        expected="a model folder or a hub id",
        do=do,
    )
