"""A critic that is a separate network: it starts as a reward model and values each position of a row."""

from dataclasses import replace
from typing import Any

import torch

from preftune.errors import ConfigError, ModelError
from preftune.model.kernels.recompute import check_recomputes
from preftune.model.layout import LayoutOptions
from preftune.model.load import load_tokenizer, resolve_model
from preftune.model.load_classifier import is_classifier, load_reward_start
from preftune.model.policy import Policy, make_value_head
from preftune.model.proof import check_trains, choose_layout
from preftune.model.whole_model import LoadOptions


def with_critic(
    policy: Policy, name: str, policy_name: str, loading: LoadOptions, layout: LayoutOptions, longest: int
) -> Policy:
    """The policy with the reward model `name` as its critic, in fp32; no row is longer than `longest` tokens."""
    source = resolve_model(name)
    if not is_classifier(source, loading):
        raise ConfigError(
            "critic is not a reward model",
            got=f"{name}, a language model",
            expected="a model with one score",
            do="Train one with: preftune train-reward-model",
        )
    _check_tokens(name, policy_name, loading)
    critic, head = load_reward_start(source, loading, torch.float32)
    if len(head) > 1:
        raise ConfigError(
            "critic has several heads",
            got=f"{name}, {len(head)} heads",
            expected="a model with one score",
            do="Train one with: preftune train-reward-model",
        )
    critic: Any = critic.to(policy.device)  # type: ignore[arg-type]
    sharing, reason = choose_layout(critic, layout, policy.precision, longest)
    if sharing != policy.sharing:
        raise ModelError(
            "critic and policy need different layouts of rows",
            got=f"{sharing} rows of the critic ({reason}), {policy.sharing} rows of the policy",
            expected="models of one family",
            do="Use a reward model that was trained from the policy's family",
        )
    check_trains(critic, sharing, policy.precision)
    if policy.kept_positions == 0:
        check_recomputes(critic)
    critic.set_output_embeddings(torch.nn.Identity())  # drawn for the probe; nothing reads it
    return replace(policy, critic=critic, value_head=make_value_head(critic, head))


def _check_tokens(critic: str, policy: str, loading: LoadOptions) -> None:
    """The policy's token ids must mean the same to the critic, which may have more of them."""
    known, ours = (load_tokenizer(resolve_model(name), loading).get_vocab() for name in (critic, policy))
    if not ours.items() <= known.items():
        raise ModelError(
            "The critic and the policy have different tokenizers",
            got=f"{critic} and {policy}",
            expected="models of one family",
            do="Use a reward model that was trained from the policy's family",
        )
