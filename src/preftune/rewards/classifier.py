"""A sequence-classification model that scores a prompt with its completion."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from preftune.data.chat_run import reads_tools
from preftune.data.fields import as_turns
from preftune.data.render import Renderer, make_renderer
from preftune.data.turn_extras import as_tools
from preftune.errors import ConfigError, DataError, TrainingError
from preftune.model.device import pick_device
from preftune.model.load import load_tokenizer, resolve_model, weights_dtype
from preftune.model.load_classifier import is_ensemble, load_classification_model
from preftune.rewards.base import (
    PromptInput,
    Verdicts,
    at,
    check_reward_range,
    each,
    prompt_as_text,
    whole_prompts,
)
from preftune.rewards.heads import HeadUse, reward_of_heads
from preftune.rewards.model_reward import ModelReward
from preftune.types import Group, Record


@dataclass(frozen=True, kw_only=True)
class RewardModel(ModelReward):
    """The scalar that a sequence-classification model gives to prompt and completion together. The whole
    dialogue is shown.

    Args:
        path: a folder or a hub id.
        template: how prompt and completion are written: with the tokenizer's chat template, as plain text, or
            as a pair of texts with the tokenizer's separator; "auto" takes the chat template if there is one,
            else a pair if there is a separator.
        ending: what the model reads last: all that the chat template writes after an answer (as model cards
            do), or nothing after the end-of-turn token (as reward models are trained here).
        label: of a model with several outputs, the one that is the reward, by name or number.
        values: of a model with several outputs: the log-probability of the label, or its raw output; "auto" is
            raw where the model's problem_type is regression or multi_label_classification.
        heads: of an ensemble of heads: the mean of all, one head drawn per prompt (Thompson sampling), or "duel",
            which rewards the best completion of one head and of the next head that prefers another, and no other
            completion; "auto" is the mean where preftune trained the ensemble, else `label` decides.
        seed: of the draws of heads.
        batch_size: texts computed at a time.
        max_length: most tokens of prompt and completion; a longer text is an error, as it is beyond the
            model's positions.
    """

    path: str
    template: Literal["auto", "chat", "plain", "pair"] = "auto"
    ending: Literal["template", "turn"] = "template"
    label: str | None = None
    values: Literal["auto", "raw", "log_prob"] = "auto"
    heads: Literal["auto", "mean", "thompson", "duel"] = "auto"
    seed: int = 0
    batch_size: int = 16
    max_length: int | None = None

    def __post_init__(self) -> None:
        check_reward_range("model", "batch_size", self.batch_size, 1)
        check_reward_range("model", "max_length", 1 if self.max_length is None else self.max_length, 1)
        _ = self._classifier  # a model that cannot serve is reported now

    @cached_property
    def _classifier(self) -> Any:
        return load_classifier(self)

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Verdicts:
        found = classified(self._classifier, self, prompts, completions, columns)
        if self._classifier.heads is None:
            return Verdicts(rewards=found[:, 0].tolist())
        steps = [step or 0 for step in each(columns.get("training_step"), len(prompts))]
        return reward_of_heads(
            found, whole_prompts(prompts, columns), steps, self._classifier.heads, self.seed
        )


_ENOUGH = 2**31  # positions of a model that does not state how many it has


@dataclass(frozen=True, kw_only=True, eq=False)
class Classifier:
    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerBase
    renderer: Renderer | None  # None: prompt and completion are a pair of texts
    label: int | None  # None: the model has a single output
    heads: HeadUse | None  # of an ensemble: how its outputs become one reward
    raw: bool  # whether the reward is the label's output itself
    most_tokens: int


def load_classifier(settings: RewardModel) -> Classifier:
    """The model with how it reads texts; an error if what it gives is no reward."""
    source = resolve_model(settings.path)
    tokenizer = load_tokenizer(source, settings.loading)
    dtype = weights_dtype(settings.precision)
    model = load_classification_model(source, settings.loading, dtype).to(pick_device(settings.device))  # type: ignore[arg-type]
    template = settings.template
    if template == "auto":
        template = "chat" if tokenizer.chat_template else "pair" if tokenizer.sep_token else "plain"
    if template == "pair" and not tokenizer.sep_token:
        raise ConfigError(
            "The tokenizer of reward 'model' has no separator",
            got="template: pair",
            expected="sep_token",
            do="Use template=plain",
        )
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None) or _ENOUGH
    return Classifier(
        model=model,
        tokenizer=tokenizer,
        renderer=None if template == "pair" else make_renderer(tokenizer, template),
        label=None if (heads := _heads(model, settings)) else _label(model, settings.label),
        heads=heads,
        raw=_is_raw(model, settings.values),
        most_tokens=min(positions, settings.max_length or _ENOUGH),
    )


def _heads(model: PreTrainedModel, settings: RewardModel) -> HeadUse | None:
    """How an ensemble's heads become one reward; None where there is one output or `label` names it."""
    if settings.heads == "auto":
        use: HeadUse | None = "mean" if is_ensemble(model) and settings.label is None else None
    elif model.config.num_labels == 1:
        raise ConfigError(
            "heads has no effect on a reward model with one output", got=settings.heads, do="Leave it out"
        )
    elif settings.label is not None:
        raise ConfigError(
            "label and heads both choose outputs of the reward model",
            got=f"label {settings.label} and heads {settings.heads}",
            do="Leave one of the two out",
        )
    else:
        use = settings.heads
    if use in (None, "mean") and settings.seed:
        raise ConfigError(
            "seed of reward 'model' has no effect",
            got=settings.seed,
            expected="heads thompson or duel, which draw heads",
            do="Leave it out",
        )
    return use


def _label(model: PreTrainedModel, wanted: str | None) -> int | None:
    names = {int(number): str(name) for number, name in (model.config.id2label or {}).items()}
    if model.config.num_labels == 1:
        if wanted is not None:
            raise ConfigError(
                "label has no effect on a reward model with one output", got=wanted, do="Leave it out"
            )
        return None
    found = [number for number, name in names.items() if wanted in (name, str(number))]
    if len(found) != 1:
        raise ConfigError(
            "The reward model has several outputs",
            got=f"label {wanted}" if wanted else "no label",
            expected="one of " + ", ".join(names.values()),
            do="Name the one to take with label, or set heads=mean if all predict the same reward",
        )
    return found[0]


def _is_raw(model: PreTrainedModel, values: str) -> bool:
    if model.config.num_labels == 1 and values != "auto":
        raise ConfigError(
            "values has no effect on a reward model with one output", got=values, do="Leave it out"
        )
    kind = model.config.problem_type
    return values == "raw" or (values == "auto" and kind in ("regression", "multi_label_classification"))


@torch.no_grad()
def classified(
    one: Classifier,
    settings: RewardModel,
    prompts: Sequence[str],
    completions: list[str],
    columns: Mapping[str, Any],
) -> np.ndarray:
    """The outputs of each completion, [completions, outputs taken]: one, or all of an ensemble. They do not depend on
    what else is in a batch.
    """
    rows = [
        _row(one, prompt, completion, ended, settings.ending, at(index, completions), tools)
        for index, (prompt, completion, ended, tools) in enumerate(
            zip(
                whole_prompts(prompts, columns),
                completions,
                ended_flags(columns, len(completions)),
                tool_texts(one.tokenizer, columns, len(completions)),
                strict=True,
            )
        )
    ]
    for index, row in enumerate(rows):
        if len(row["input_ids"]) > one.most_tokens:
            raise TrainingError(
                f"Prompt and completion are too long for reward 'model': {at(index, completions)}",
                got=f"{len(row['input_ids'])} tokens",
                expected=f"at most {one.most_tokens}",
                do="Lower max_new_tokens, or leave long prompts out",
            )
    order = sorted(
        range(len(rows)), key=lambda k: len(rows[k]["input_ids"])
    )  # like lengths together: little padding
    pad = one.model.config.get_text_config().pad_token_id
    at_once = (
        settings.batch_size if pad is not None else 1
    )  # without a padding token, the model takes one text at a time
    rewards: list[list[float]] = [[]] * len(rows)
    for start in range(0, len(order), at_once):
        places = order[start : start + at_once]
        for place, reward in zip(places, _logits(one, [rows[k] for k in places], pad), strict=True):
            rewards[place] = reward
    return np.array(rewards).reshape(len(rows), -1)


def _row(
    one: Classifier, prompt: PromptInput, completion: str, ended: bool, ending: str, where: str, tools: str
) -> dict[str, list[int]]:
    if one.renderer is None:
        pair = one.tokenizer(prompt_as_text(prompt), completion, verbose=False)
        return {name: list(pair[name]) for name in ("input_ids", "token_type_ids") if name in pair}
    if one.renderer.mode == "chat" and ending == "template" and ended:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(map(dict, prompt))
        try:
            text = one.tokenizer.apply_chat_template(
                [*turns, {"role": "assistant", "content": completion}],
                tools=json.loads(tools) if tools else None,
                tokenize=False,
            )
        except Exception as error:  # a template is a program and may raise anything
            raise TrainingError(
                f"The chat template of reward 'model' refuses {where}", got=str(error)
            ) from error
        return {"input_ids": one.tokenizer(str(text), add_special_tokens=False, verbose=False)["input_ids"]}
    group = render(one.renderer, prompt, [completion], [ended], where, tools)
    return {"input_ids": [*group.prompt.tolist(), *group.completions[0].tolist()]}


def _logits(one: Classifier, rows: Sequence[Mapping[str, list[int]]], pad: int | None) -> list[list[float]]:
    width = max(len(row["input_ids"]) for row in rows)
    inputs = {
        name: torch.tensor(
            [
                row[name] + [(pad or 0) if name == "input_ids" else 0] * (width - len(row[name]))
                for row in rows
            ]
        )
        for name in rows[0]
    }
    inputs["attention_mask"] = torch.tensor(
        [[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows]
    )
    logits = one.model(
        **{name: tensor.to(one.model.device) for name, tensor in inputs.items()}
    ).logits.float()
    if one.label is None:
        return logits.tolist()
    return (logits if one.raw else logits.log_softmax(-1))[:, [one.label]].tolist()


def ended_flags(columns: Mapping[str, Any], count: int) -> list[bool]:
    """Whether each completion ended by itself; all did, where that is not known."""
    return [flag is not False for flag in each(columns.get("ended"), count)]


def tool_texts(tokenizer: PreTrainedTokenizerBase, columns: Mapping[str, Any], count: int) -> list[str]:
    """The tools of each prompt as JSON text; empty where there are none or the model's template writes none."""
    given = columns.get("tools")
    if given is None or not reads_tools(tokenizer):
        return [""] * count
    return [as_tools(tools, "tools") for tools in each(given, count)]


def render(
    renderer: Renderer,
    prompt: PromptInput,
    completions: Sequence[str],
    ended: Sequence[bool],
    where: str,
    tools: str = "",
) -> Group:
    """Completions of one prompt as token ids; `where` names the first of them for an error."""
    turns = prompt if isinstance(prompt, str) else as_turns(list(prompt), "prompt_turns")
    try:
        return renderer.render(
            Record(
                prompt=turns, completions=tuple(completions), ended=tuple(ended), tools=tools, origin=where
            )
        )
    except DataError as error:
        raise TrainingError(f"A reward cannot read its completions: {error}") from error
