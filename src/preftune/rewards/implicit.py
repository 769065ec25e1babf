"""Log-ratios of completions under two causal models."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import torch

from preftune.model.layout import LayoutOptions, split_micro_batches
from preftune.data.render import Renderer, make_renderer
from preftune.rewards.base import at, whole_prompts
from preftune.rewards.models import ImplicitReward
from preftune.rewards.rendered import ended_flags, render
from preftune.model.load import LoadOptions, check_same_tokeniser, load_model, load_tokenizer, pick_device, resolve_model
from preftune.model.policy import Policy, choose_layout, score_groups
from preftune.types import Group


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelPair:
    policy: Policy
    reference: Policy
    renderer: Renderer


def load_pair(settings: ImplicitReward) -> ModelPair:
    loading = LoadOptions(trust_remote_code=settings.trust_remote_code, allow_pickle=settings.allow_pickle)
    check_same_tokeniser(settings.policy, settings.reference, loading)
    renderer = make_renderer(load_tokenizer(resolve_model(settings.policy), loading), settings.template)
    dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
    policies = []
    for name in (settings.policy, settings.reference):
        model = load_model(resolve_model(name), loading, dtype).to(pick_device(settings.device))  # type: ignore[arg-type]
        sharing, reason = choose_layout(model, LayoutOptions(), settings.precision)
        policies.append(Policy(model=model, precision=settings.precision, sharing=sharing, sharing_reason=reason))
    return ModelPair(policy=policies[0], reference=policies[1], renderer=renderer)


def log_ratios(
    pair: ModelPair, prompts: Sequence[str], completions: list[str], columns: Mapping[str, Any]
) -> Iterator[tuple[float, int]]:
    """(log-ratio summed over its tokens, number of tokens) of each completion, in nats."""
    whole, ended = whole_prompts(prompts, columns), ended_flags(columns, len(completions))
    groups = []
    for _, places in groupby(range(len(prompts)), key=lambda k: whole[k]):  # neighbours share their prompt's computation
        mine = list(places)
        texts, ends = [completions[k] for k in mine], [ended[k] for k in mine]
        groups.append(render(pair.renderer, whole[mine[0]], texts, ends, at(mine[0], completions)))
    scores = [_scored(policy, groups) for policy in (pair.policy, pair.reference)]
    for policy, reference in zip(*scores, strict=True):
        yield float(policy.sum(dtype=np.float64) - reference.sum(dtype=np.float64)), len(policy)


def _scored(policy: Policy, groups: Sequence[Group]) -> list[np.ndarray]:
    """logp of every token of each completion, in their order."""
    layout = LayoutOptions()
    found: list[list[np.ndarray]] = [[] for _ in groups]
    for indices in split_micro_batches(groups, layout, policy.sharing):
        for index, scores in zip(indices, score_groups(policy, [groups[k] for k in indices], layout), strict=True):
            found[index] = scores
    return [one for scores in found for one in scores]
