"""Sequence classifiers, which score a text: whole models or adapters; and the start of training one further."""

from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel

from preftune.errors import ModelError
from preftune.model.adapter_files import WEIGHTS, adapter_config, check_ranks, is_adapter, shapes_of
from preftune.model.adapters import quiet_peft
from preftune.model.attention_segments import settle_attention
from preftune.model.classifier import ENSEMBLE
from preftune.model.kernels.products import use_fast_products
from preftune.model.load import base_of, make_lean
from preftune.model.whole_model import (
    LoadOptions,
    configuration,
    from_pretrained,
    quiet_transformers,
    whole_model,
)

_HEADS = ("score.weight", "classifier.weight", "classifier.out_proj.weight")


def is_classifier(source: str, options: LoadOptions) -> bool:
    """Whether a resolved model scores texts and does not write them."""
    if is_adapter(source):
        return adapter_config(source).get("task_type") == "SEQ_CLS" or is_classifier(base_of(source), options)
    names = configuration(source, options).architectures or ()
    return any(str(name).endswith("ForSequenceClassification") for name in names)


def load_classification_model(
    source: str, options: LoadOptions, dtype: torch.dtype = torch.float32
) -> PreTrainedModel:
    """A sequence classifier in evaluation mode, with its own head: a head that is not in the files would be
    random. An adapter is merged into its base.
    """
    quiet_transformers()
    use_fast_products()
    if is_adapter(source):
        model = _merged(source, options, dtype)
    else:
        model = whole_model(AutoModelForSequenceClassification, source, options, dtype).eval()
    make_lean(model)
    return model


def _merged(source: str, options: LoadOptions, dtype: torch.dtype) -> PreTrainedModel:
    """A classifier from an adapter, which may hold the head of a base that is a language model."""
    config, shapes = adapter_config(source), shapes_of(source)
    if not shapes:
        raise ModelError(
            f"Cannot load the weights of the adapter {source}", got=f"no {WEIGHTS}", do="Save it again"
        )
    if not is_classifier(source, options):
        raise ModelError(
            f"{source} is an adapter of a language model",
            got=f"task_type {config.get('task_type')}",
            expected="an adapter for sequence classification (SEQ_CLS)",
            do="Use it as a policy, or train a reward model",
        )
    check_ranks(source, config, shapes)
    from peft import PeftModel

    held = {
        name.removeprefix("base_model.model.").replace(".modules_to_save.", "."): shape
        for name, shape in shapes.items()
    }
    outputs = next((held[name][0] for name in _HEADS if name in held), None)
    kind: Any = AutoModelForSequenceClassification
    base = whole_model(kind, base_of(source), options, dtype, outputs, elsewhere=frozenset(held))
    with quiet_peft():
        load = partial(PeftModel.from_pretrained, base)
        adapted = from_pretrained(load, source, "adapter", source)
    return adapted.merge_and_unload().eval().requires_grad_(True)


def load_reward_start(
    source: str, options: LoadOptions, dtype: torch.dtype
) -> tuple[PreTrainedModel, Float[Tensor, "K H"]]:
    """The body of a reward model under the head of a language model; and the reward head, or the K heads of an
    ensemble.

    The head of the language model is drawn, always the same, for the probe of layouts; the loss of a reward model
    does not read it.
    """
    model = load_classification_model(source, options, dtype)
    head: Any = getattr(model, "score", None)
    kind: Any = AutoModelForCausalLM._model_mapping.get(type(model.config), None)
    if kind is None or not isinstance(head, nn.Linear):
        raise _not_trained(model, f"{type(model).__name__}, which reads a text in both directions")
    if (head.out_features != 1 and not is_ensemble(model)) or head.bias is not None:
        raise _not_trained(model, f"a head of {head.out_features} outputs")
    with torch.device("meta"):
        made = kind(model.config)
    setattr(made, made.base_model_prefix, model.base_model)
    embedding: Any = made.get_input_embeddings()
    rows, width = embedding.weight.shape
    output = nn.Linear(width, rows, bias=False, dtype=dtype)
    nn.init.normal_(output.weight, std=width**-0.5, generator=torch.Generator().manual_seed(0))
    made.set_output_embeddings(output)
    settle_attention(made)
    made.name_or_path = source
    return made.eval(), head.weight.detach()


def is_ensemble(model: PreTrainedModel) -> bool:
    """Whether the outputs are heads of one ensemble, which all predict the same reward."""
    names = [str(name) for _, name in sorted((model.config.id2label or {}).items())]
    return len(names) > 1 and names == [f"{ENSEMBLE}{number}" for number in range(len(names))]


def _not_trained(model: PreTrainedModel, got: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot be trained further as a reward model",
        got=got,
        expected="a decoder with a head named score, of one output or an ensemble",
        do="Start from the language model that it came from; as a reward it can be used as it is",
    )
