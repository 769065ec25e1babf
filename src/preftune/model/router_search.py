"""Which router a model has: its coefficient, and whether its auxiliary loss is the one that is computed here."""

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from preftune.errors import ConfigError
from preftune.model.router import Router, auxiliary_loss, router_use

_NAMES = ("router_aux_loss_coef", "aux_loss_coef")
_TOP_K = ("num_experts_per_tok", "num_experts_per_token", "top_k_experts", "moe_k", "moe_topk")
_TOLERANCE = 1e-4  # relative: the library sums in fp32, and weights may be in bf16


def own_coefficient(model: PreTrainedModel) -> float | None:
    """The coefficient of the auxiliary loss that the model states; None where it names none."""
    for holder in (model, model.config.get_text_config()):
        for name in _NAMES:
            value: Any = getattr(holder, name, None)
            if isinstance(value, int | float):
                return float(value)
    return None


def find_router(model: PreTrainedModel, wanted: float | None) -> tuple[Router | None, str]:
    """The router of a model, if it has one, and a line for the user. `wanted` takes the place of the model's own
    coefficient.

    The auxiliary loss is compared with the one that the model computes for a probe.
    """
    own = own_coefficient(model)
    if own is None:
        if wanted is not None:
            raise _no_loss(model, "a model whose configuration has no coefficient for it")
        return None, ""
    found, top_k = _probe(model)
    if top_k is None:
        if wanted:
            raise _no_loss(model, found)
        return None, f"router: {found}; it is not added to the objective" if own else ""
    coefficient = own if wanted is None else wanted
    source = "the model's own" if wanted is None else "router_aux_loss_coef"
    line = f"router: the auxiliary loss of the experts is added with coefficient {coefficient:g} ({source}); "
    line += "--router_aux_loss_coef 0 leaves it out"
    if not coefficient:
        line = f"router: the auxiliary loss of the experts is not added (coefficient 0, {source})"
    return Router(coefficient=coefficient, top_k=top_k), line


def _no_loss(model: PreTrainedModel, got: str) -> ConfigError:
    return ConfigError(
        f"router_aux_loss_coef: no auxiliary loss can be added for {type(model).__name__}",
        got=got,
        expected="a mixture of experts such as Mixtral, Qwen3-MoE, OLMoE or gpt-oss",
        do="Leave router_aux_loss_coef out, or set it to 0",
    )


@torch.no_grad()
def _probe(model: PreTrainedModel) -> tuple[str, int | None]:
    """Why there is no auxiliary loss, and None; or "" and the number of experts of a token with which
    `auxiliary_loss` equals the model's own.
    """
    ids = torch.arange(1, 13, device=model.device)[None]
    try:
        output = model(input_ids=ids, output_router_logits=True, use_cache=False)
    except Exception as failure:  # the code of a model may fail in any way
        return f"{type(model).__name__} computes no auxiliary loss ({type(failure).__name__})", None
    expected, logits = getattr(output, "aux_loss", None), getattr(output, "router_logits", None)
    if not isinstance(expected, Tensor) or not logits:
        return f"transformers computes no auxiliary loss for {type(model).__name__}", None
    config, share = model.config.get_text_config(), torch.ones(ids.numel(), device=model.device)
    named = [k for name in _TOP_K if isinstance(k := getattr(config, name, None), int)]
    experts = logits[0].shape[-1]
    for top_k in dict.fromkeys([*named, *range(1, experts + 1)]):
        if top_k <= experts:
            found = auxiliary_loss(router_use(logits, share, top_k))
            if float((found - expected).abs()) <= _TOLERANCE * max(1.0, float(expected.abs())):
                return "", top_k
    return f"the auxiliary loss of {type(model).__name__} is of another kind", None
