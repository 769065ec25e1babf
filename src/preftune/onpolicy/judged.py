"""Completions of a model with the reward of each: what comparisons before and after, and labelled data, are made of."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from preftune.data.render import Renderer
from preftune.onpolicy.prompts import prompt_text, prompt_turns
from preftune.onpolicy.rewards import COLUMNS, call_reward, check_columns, resolve_reward
from preftune.onpolicy.sample import SampleOptions, sample
from preftune.types import Record


@dataclass(frozen=True, kw_only=True)
class Judged:
    """One completion of one prompt and what the reward says of it."""

    prompt_index: int
    sample_index: int
    prompt: str
    completion: str
    reward: float | None
    ended: bool
    num_tokens: int


def sample_and_judge(
    model: PreTrainedModel,
    renderer: Renderer,
    records: Sequence[Record],
    options: SampleOptions,
    reward: str,
    seed: int,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Judged]:
    """Draw completions of each record's prompt and call the reward once on all of them.

    The reward also gets the columns that sampling gives (COLUMNS), and the records' own columns.
    """
    function = resolve_reward(reward)
    names = set.intersection(*(set(record.columns) for record in records)) if records else set()
    check_columns(function, reward, names | set(COLUMNS))
    prompts = [renderer.render(record).prompt for record in records]
    drawn = sample(model, renderer, prompts, options, seed, progress)
    flat = [(p, k, one) for p, completions in enumerate(drawn) for k, one in enumerate(completions)]
    columns: dict[str, object] = {name: [records[p].columns[name] for p, _, _ in flat] for name in names}
    columns |= {
        "ended": [one.ended for _, _, one in flat], "num_tokens": [len(one.token_ids) for _, _, one in flat],
        "budget": options.max_new_tokens, "prompt_turns": [prompt_turns(records[p]) for p, _, _ in flat],
    }  # fmt: skip
    texts = [prompt_text(records[p]) for p, _, _ in flat]
    rewards = call_reward(function, reward, texts, [one.text for _, _, one in flat], columns)
    return [
        Judged(
            prompt_index=p, sample_index=k, prompt=text, completion=one.text, reward=value, ended=one.ended,
            num_tokens=len(one.token_ids),
        )
        for (p, k, one), text, value in zip(flat, texts, rewards, strict=True)
    ]
