"""A reward model as a plain sequence classifier of transformers, which reads its head at the last token that
is not padding.
"""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from transformers import MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING, PreTrainedModel, PreTrainedTokenizerBase

from preftune.data.render import Renderer
from preftune.errors import ModelError
from preftune.model.policy import Policy, text_body

PAD = "<|pad|>"  # for tokenizers that have no token to spare
_TOLERANCE = {torch.float64: 1e-3, torch.float32: 1e-3}  # relative; far below what another position makes
_LOW_TOLERANCE = 0.1  # of bf16
ENSEMBLE = "head_"  # the outputs of an ensemble of heads are named head_0, head_1 and so on
_PROBES = (np.arange(1, 9), np.arange(9, 3, -1), np.arange(2, 14))


def classifier(model: PreTrainedModel, head: nn.Linear, pad: int) -> PreTrainedModel:
    """The model's body, shared and not copied, under a head of one or several numbers; an error if there is no
    such class.
    """
    kind: Any = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(type(model.config), None)
    if kind is None:
        raise _no_class(model, "no sequence classification class in transformers")
    config = copy.deepcopy(model.config)
    config.num_labels = head.out_features
    if head.out_features > 1:
        config.problem_type = "regression"
        config.id2label = {number: f"{ENSEMBLE}{number}" for number in range(head.out_features)}
        config.label2id = {name: number for number, name in config.id2label.items()}
    config.get_text_config().pad_token_id = pad
    with torch.device("meta"):  # its own weights are never made
        made = kind(config)
    if (
        not isinstance(getattr(made, "score", None), nn.Linear)
        or made.base_model_prefix != model.base_model_prefix
    ):
        raise _no_class(model, f"{kind.__name__}, which has no head named score over the same body")
    setattr(made, made.base_model_prefix, model.base_model)
    made.score = head
    return made.eval()


def _no_class(model: PreTrainedModel, got: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} cannot become a reward model that plain transformers loads",
        got=got,
        expected="an architecture such as Llama, Qwen, Mistral, Gemma, Phi or GPT-2",
        do="Start from another model",
    )


@torch.no_grad()
def check_classifier(model: PreTrainedModel) -> None:
    """Prove on a small probe that the classifier of this architecture reads a head as training does; else an
    error.

    So that a run is refused before it begins and not when it is to be saved.
    """
    width = model.config.get_text_config().hidden_size
    head = nn.Linear(width, 1, bias=False, dtype=model.dtype, device=model.device)
    head.weight.copy_(torch.randn(1, width, generator=torch.Generator().manual_seed(0)))
    made = classifier(model, head, pad=0)
    found = scores_of(made, _PROBES, batch_tokens=10**6)[:, 0]
    body = text_body(model)
    for ids, score in zip(_PROBES, found, strict=True):
        hidden = body(
            input_ids=torch.from_numpy(ids)[None].to(model.device), use_cache=False
        ).last_hidden_state[0, -1]
        expected = float(head(hidden.to(model.dtype)))
        if not abs(score - expected) <= _TOLERANCE.get(model.dtype, _LOW_TOLERANCE) * max(1.0, abs(expected)):
            raise _no_class(
                model,
                f"{type(made).__name__}, whose score is {score:.4g} where the head gives {expected:.4g}",
            )


@torch.no_grad()
def scores_of(model: PreTrainedModel, sequences: Sequence[np.ndarray], batch_tokens: int) -> np.ndarray:
    """The outputs of a classifier, [sequences, heads], for sequences of token ids, padded on the right, in batches
    of like length.

    A sequence must not end in the padding token.
    """
    pad = model.config.get_text_config().pad_token_id
    scores = np.zeros((len(sequences), cast(int, model.config.num_labels)))
    order = sorted(range(len(sequences)), key=lambda i: -len(sequences[i]))
    while order:
        count = max(1, batch_tokens // len(sequences[order[0]]))
        part, order = order[:count], order[count:]
        ids = torch.full((len(part), len(sequences[part[0]])), pad)
        mask = torch.zeros_like(ids)
        for row, i in enumerate(part):
            ids[row, : len(sequences[i])] = torch.from_numpy(sequences[i].astype(np.int64))
            mask[row, : len(sequences[i])] = 1
        logits = model(
            input_ids=ids.to(model.device), attention_mask=mask.to(model.device), use_cache=False
        ).logits
        scores[part] = logits.double().cpu().numpy()
    return scores


def save_reward_model(
    policy: Policy, renderer: Renderer, folder: Path, dtype: torch.dtype = torch.float32
) -> None:
    """Model, head and tokenizer, for AutoModelForSequenceClassification. An adapter is merged: the policy is
    used up.
    """
    assert policy.value_head is not None, "a reward model has a value head"
    model = policy.model
    if policy.peft_model is not None:
        policy.peft_model.float()  # a frozen bf16 base would round the update away
        model = policy.peft_model.merge_and_unload()
    tokenizer = reward_tokenizer(renderer)
    made = classifier(model, policy.value_head, cast(int, tokenizer.pad_token_id))
    rows = cast(nn.Embedding, made.get_input_embeddings()).num_embeddings
    if len(tokenizer) > rows:
        made.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    made.to(dtype).save_pretrained(folder)  # type: ignore
    tokenizer.save_pretrained(folder)


def reward_tokenizer(renderer: Renderer) -> PreTrainedTokenizerBase:
    """The tokenizer with a padding token that ends no completion, and a template that ends where completions
    end.

    The classifier looks for the last token that is not padding: with the end-of-turn token as padding it
    would miss it.
    """
    tokenizer: Any = copy.deepcopy(renderer.tokenizer)
    taken = {renderer.end_of_turn, tokenizer.eos_token_id}
    special = [token.content for _, token in sorted(tokenizer.added_tokens_decoder.items()) if token.special]
    named = [tokenizer.pad_token, None if _writes_unknown(tokenizer) else tokenizer.unk_token]
    spare = [token for token in special if token not in (tokenizer.bos_token, tokenizer.unk_token)]
    for token in [*named, *spare, tokenizer.bos_token]:
        if isinstance(token, str) and tokenizer.convert_tokens_to_ids(token) not in taken:
            tokenizer.pad_token = token
            break
    else:
        tokenizer.add_special_tokens({"pad_token": PAD})
    if renderer.mode == "chat" and (renderer.end.after or not renderer.end.text):
        tokenizer.chat_template = _ending_template(tokenizer, renderer)
    return tokenizer


def _writes_unknown(tokenizer: Any) -> bool:
    """Whether the tokenizer can produce the unknown token."""
    ids = tokenizer("\U000f1234", add_special_tokens=False)["input_ids"]
    return tokenizer.unk_token_id in ids


def _ending_template(tokenizer: Any, renderer: Renderer) -> str:
    """The template with nothing behind the last end of turn, such as a line break; as it is if that fails."""
    end, count = renderer.end.text + renderer.end.after, len(renderer.end.after)
    last = "" if renderer.end.text else renderer.decode([renderer.end_of_turn])
    whole = str(tokenizer.chat_template)
    wrapped = (
        "{%- set whole -%}" + whole + "{%- endset -%}"
        f"{{%- if whole.endswith({end!r}) and not add_generation_prompt -%}}{{{{- whole[:whole | length - {count}] + {last!r} -}}}}"
        "{%- else -%}{{- whole -}}{%- endif -%}"
    )
    turns = [
        {"role": role, "content": text} for role, text in zip(("user", "assistant") * 2, "abcd", strict=True)
    ]
    try:
        cases = [(turns[:n], generation) for n, generation in ((2, False), (4, False), (1, True), (3, True))]
        for shown, generation in cases:
            before, after = (
                tokenizer.apply_chat_template(
                    shown, chat_template=text, tokenize=False, add_generation_prompt=generation
                )
                for text in (whole, wrapped)
            )
            expected = before if generation else before[: len(before) - count] + last
            if after != expected:
                return whole
    except Exception:  # a template is a program and may raise anything
        return whole
    return wrapped
