"""Log-probabilities that a server gives to tokens it did not sample."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from preftune.data.masks import masks_of
from preftune.sampling.client import ServerOptions, endpoint_of
from preftune.sampling.http_client import HttpClient, Refused, only_choice
from preftune.sampling.replies import checked_logp, first_model
from preftune.types import Group


def score_on_server(server: ServerOptions, group: Group) -> np.ndarray | None:
    """log-probability of the scored tokens of a group's completions, one completion after another, under the
    raw model; None from a server that does not score given tokens (`prompt_logprobs` of vLLM).

    Requests go one at a time: a server that computes a request alone, twice with equal weights, mostly answers
    with equal numbers.
    """
    return asyncio.run(_score(server, group))


async def _score(server: ServerOptions, group: Group) -> np.ndarray | None:
    parts: list[np.ndarray] = []

    def reader(ids: list[int], start: int) -> Callable[[Any], np.ndarray | None]:
        return lambda content: _read(content, ids, start)

    async with HttpClient(endpoint_of(server)) as client:
        model = server.model or await client.request("/v1/models", None, first_model)
        for completion, mask in zip(group.completions, masks_of(group), strict=True):
            ids = [*group.prompt.tolist(), *completion.tolist()]
            body = {"model": model, "prompt": ids, "max_tokens": 1, "temperature": 0}
            try:
                asked = body | {"prompt_logprobs": 0}
                found = await client.request("/v1/completions", asked, reader(ids, len(group.prompt)))
            except Refused as refusal:
                if refusal.status not in (400, 422):
                    raise
                return None
            if found is None:
                return None
            parts.append(found[mask])
    return np.concatenate(parts)


def _read(content: Any, ids: Sequence[int], start: int) -> np.ndarray | None:
    told = only_choice(content).get("prompt_logprobs", content.get("prompt_logprobs"))
    if told is None:
        return None
    if len(told) != len(ids):
        raise ValueError(f"{len(told)} prompt_logprobs for {len(ids)} tokens")
    return np.array(
        [checked_logp(told[place][str(ids[place])]["logprob"]) for place in range(start, len(ids))]
    )
