"""What training did to single tokens: a few held-out completions under the policy and its reference, for the
report.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from preftune.data.inspect import token_pieces
from preftune.data.readable_prompt import readable_prompt
from preftune.data.render import Renderer, make_renderer
from preftune.model.layout import LayoutOptions, group_pairs
from preftune.model.policy import Policy, micro_batches, score_groups
from preftune.report.read import TOKENS
from preftune.storage import rows_to_jsonl
from preftune.train.anchors import GroupLogps
from preftune.train.runlog import RunFolder
from preftune.train.setup import TrainingJob
from preftune.types import Group

NUM_GROUPS = 4  # the cost is that of scoring them twice


def write_tokens(job: TrainingJob, run: RunFolder) -> None:
    """tokens.jsonl, where there are held-out completions and a reference; on-policy, held out are prompts
    alone.
    """
    if job.samples is not None or job.anchors.reference is None or not job.eval_groups:
        return
    if not run.writes and not job.processes.lockstep:
        return
    renderer = make_renderer(job.tokenizer, job.config.rows)
    rows = token_rows(
        job.policy,
        job.anchors.reference,
        job.eval_groups,
        job.config.layout,
        renderer,
        run.path.resolve().name,
    )
    run.write_text(TOKENS, rows_to_jsonl(rows))


@torch.no_grad()
def token_rows(
    policy: Policy,
    reference: GroupLogps,
    groups: Sequence[Group],
    layout: LayoutOptions,
    renderer: Renderer,
    run: str,
) -> list[dict[str, Any]]:
    """Rows of tokens.jsonl, as `diagnose run` writes them: the first pair of the first groups, where a group
    has none its first completion. `logp` and `ref_logp` are of one token, nats.
    """
    few, rows = groups[:NUM_GROUPS], []
    for indices, part in micro_batches(policy, few, layout):
        scored = zip(indices, part, score_groups(policy, part, layout), reference(part), strict=True)
        for index, group, mine, anchor in scored:
            pairs = group_pairs(group)
            wanted = dict(zip(("chosen", "rejected"), pairs[0], strict=True)) if pairs else {"completion": 0}
            for side, k in wanted.items():
                rows.append(
                    token_row(run, index, side, group, k, renderer, {"logp": mine[k], "ref_logp": anchor[k]})
                )
    return sorted(rows, key=lambda row: row["pair"])


def token_row(
    run: str,
    pair: int,
    side: str,
    group: Group,
    k: int,
    renderer: Renderer,
    columns: Mapping[str, np.ndarray],
) -> dict[str, Any]:
    """A line of tokens.jsonl: a completion's scored tokens as text, each with the numbers of the columns."""
    texts = token_pieces(scored_ids(group, k), renderer)
    numbers = zip(*(column.tolist() for column in columns.values()), strict=True)
    tokens = [
        {"text": text, **dict(zip(columns, values, strict=True))}
        for text, values in zip(texts, numbers, strict=True)
    ]
    prompt = readable_prompt(group.prompt, renderer)
    return {
        "run": run,
        "pair": pair,
        "side": side,
        "origin": group.origin,
        "prompt": prompt,
        "tokens": tokens,
    }


def scored_ids(group: Group, k: int) -> np.ndarray:
    return group.completions[k][group.scored[k]] if group.scored else group.completions[k]
