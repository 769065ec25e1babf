"""Prompts that change: those whose completions differ most in reward are rewritten by the policy."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from preftune.errors import DataError
from preftune.types import Message, Record

REWRITE = """Rewrite the instruction below into a new instruction of the same kind that is a little harder: add one \
constraint, or make the question more specific. It must be answerable without further information. Write only the new \
instruction.

Instruction: {prompt}"""
"""After the idea of Evol-Instruct (Xu et al., "WizardLM", 2023, arXiv 2304.12244), in our words."""


def reward_spread(rewards: Sequence[float | None]) -> float:
    """The best reward of a prompt's completions minus the worst; 0 with fewer than two."""
    known = [reward for reward in rewards if reward is not None]
    return max(known) - min(known) if len(known) > 1 else 0.0


def chosen_parents(spreads: Sequence[float], count: int, seed: int) -> list[int]:
    """Numbers of at most `count` different prompts, drawn one after another with a chance that is proportional to
    their spread; prompts with a spread of 0 are never drawn.

    Ye et al., "Evolving Alignment via Asymmetric Self-Play" (eva), 2024, arXiv 2411.00062, where the spread is the
    advantage of the best completion over the worst (from a secondary source).
    """
    weight = np.asarray(spreads, dtype=np.float64)
    able = np.flatnonzero(weight > 0)
    count = min(count, len(able))
    if not count:
        return []
    chance = weight[able] / weight[able].sum()
    drawn = np.random.default_rng(seed).choice(able, size=count, replace=False, p=chance)
    return drawn.tolist()


def rewriting_prompt(prompt: str | Sequence[Mapping[str, Any]], template: str) -> Record:
    """The question to the policy that asks for a new prompt; of a dialogue, the last turn is rewritten."""
    text = prompt if isinstance(prompt, str) else str(prompt[-1]["content"])
    turn = Message(role="user", content=template.replace("{prompt}", text))
    return Record(prompt=(turn,), completions=(), origin="evolve")


def evolved_rows(
    parents: Sequence[Mapping[str, Any]], texts: Sequence[str]
) -> tuple[list[dict[str, Any]], int]:
    """(rows {prompt, parent, parent_text} of the new prompts, how many were left out as blank or unchanged).

    `parent_text` is the parent's best completion, the near miss of the new prompt.
    """
    rows: list[dict[str, Any]] = []
    for parent, text in zip(parents, texts, strict=True):
        old, new = parent["prompt"], text.strip()
        before = old if isinstance(old, str) else str(old[-1]["content"])
        if not new or new == before.strip():
            continue
        prompt = new if isinstance(old, str) else [*old[:-1], {**old[-1], "content": new}]
        rows.append({"prompt": prompt, "parent": old, "parent_text": best_completion(parent)})
    return rows, len(parents) - len(rows)


def best_completion(row: Mapping[str, Any]) -> Any:
    """The first completion of a scored row with the highest reward."""
    known = {k: reward for k, reward in enumerate(row["rewards"]) if reward is not None}
    if not known:
        raise DataError("A row without a reward has no best completion", got=str(row["prompt"]))
    return row["completions"][max(known, key=lambda k: known[k])]


def near_misses(scored: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Pairs of evolved prompts: the best completion of the new prompt over that of its parent, which answers almost
    the same instruction (ECD). Rows without a parent, without a reward or with equal texts give none.
    """
    rows = []
    for row in scored:
        if row.get("parent_text") is None or all(reward is None for reward in row["rewards"]):
            continue
        best = best_completion(row)
        if best != row["parent_text"] and str(best).strip():
            rows.append({"prompt": row["prompt"], "chosen": best, "rejected": row["parent_text"]})
    return rows


DrawOne = Callable[[Sequence[Record]], list[str]]
"""One completion of each prompt."""


def evolve(
    scored: Sequence[Mapping[str, Any]], count: int, template: str, seed: int, draw: DrawOne
) -> tuple[list[dict[str, Any]], int]:
    """New prompts from the rows of the round before, and how many rewritings were unusable."""
    places = chosen_parents([reward_spread(row["rewards"]) for row in scored], count, seed)
    parents = [scored[place] for place in places]
    texts = draw([rewriting_prompt(row["prompt"], template) for row in parents]) if parents else []
    return evolved_rows(parents, texts)
