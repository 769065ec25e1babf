"""Metrics of one on-policy collection: counts, rewards, lengths."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain

import numpy as np

from preftune.rewards import Verdicts
from preftune.rewards.questions import prompt_text
from preftune.train.onpolicy.collect import Draw
from preftune.train.sources import Taken
from preftune.types import Group, Record


@dataclass(frozen=True, kw_only=True)
class Drawn:
    """Cost of a draw, and the gap between the sampler's and the trainer's log-probabilities."""

    gap: float  # mean |logp of the trainer - logp of the sampler| per token
    seconds: float
    must_be_done: float  # operations, as `work_of` counts them; 0 for what a server drew
    more: Mapping[str, float] = field(default_factory=dict)  # of a server and of its correction


@dataclass(frozen=True, kw_only=True)
class News:
    """Metrics of one collection."""

    num_prompts: int = 0
    num_drawn: int = 0
    num_asked: int = 0
    num_none: int = 0
    parse_failures: int = 0
    rewards: tuple[float, ...] = ()
    ended: tuple[bool, ...] = ()
    lengths: tuple[int, ...] = ()
    dropped: Mapping[str, int] = field(default_factory=dict)
    gaps: tuple[float, ...] = ()
    more: Mapping[str, tuple[float, ...]] = field(default_factory=dict)
    comparable: int = 0  # prompts with two rewards or more
    equal: int = 0  # of these, those whose rewards are all the same
    centred: tuple[
        tuple[float, float], ...
    ] = ()  # reward and length of a completion, less the mean of its prompt
    parts: Mapping[str, tuple[float | None, ...]] = field(default_factory=dict)  # of a weighted sum
    rows: tuple[Mapping[str, object], ...] = ()
    answers: tuple[int, ...] = ()  # of each rollout in an environment
    context: tuple[int, ...] = ()  # tokens of each that the policy did not write
    failures: tuple[str, ...] = ()  # of each, empty for most
    drawing: float = 0.0  # seconds
    must_be_done: float = 0.0  # operations of what was drawn here, as `work_of` counts them

    def joined(
        self,
        drawn: Draw,
        groups: Sequence[Group],
        records: Sequence[Record],
        verdicts: Verdicts,
        dropped: Mapping[str, int],
        made: "Drawn | None",
    ) -> "News":
        """And one draw more; `made` is None for one that a run before had made."""
        lengths = [group.num_scored for group in groups]
        rollouts = drawn.columns
        starts = np.cumsum([0, *map(len, lengths)]).tolist()
        rows = [
            {
                "prompt": prompt_text(record),
                "completions": list(texts),
                **({"rewards": list(group.rewards)} if group.rewards else {}),
                "ended": list(ended),
                "num_tokens": list(counts),
                **_parts_of(verdicts, start, start + len(counts)),
                **{name: list(values[place]) for name, values in rollouts.items()},
            }
            for place, (record, texts, group, ended, counts, start) in enumerate(
                zip(records, drawn.texts, groups, drawn.ended, lengths, starts[:-1], strict=True)
            )
        ]
        known = [reward for reward in verdicts.rewards if reward is not None]
        judged = [
            [(reward, size) for reward, size in zip(group.rewards, sizes, strict=True) if reward is not None]
            for group, sizes in zip(groups, lengths, strict=True)
            if group.rewards
        ]
        several = [pairs for pairs in judged if len(pairs) > 1]
        equal = sum(len({reward for reward, _ in pairs}) == 1 for pairs in several)
        return News(
            num_prompts=self.num_prompts + len(groups),
            num_drawn=self.num_drawn + sum(map(len, lengths)),
            num_asked=self.num_asked + len(verdicts.rewards),
            num_none=self.num_none + len(verdicts.rewards) - len(known),
            parse_failures=self.parse_failures + verdicts.parse_failures,
            rewards=(*self.rewards, *known),
            ended=(*self.ended, *chain.from_iterable(drawn.ended)),
            lengths=(*self.lengths, *chain.from_iterable(lengths)),
            dropped=Counter(self.dropped) + Counter(dropped),
            gaps=self.gaps if made is None else (*self.gaps, made.gap),
            more=self.more
            if made is None
            else dict(self.more) | {name: (*self.more.get(name, ()), one) for name, one in made.more.items()},
            comparable=self.comparable + len(several),
            equal=self.equal + equal,
            centred=(*self.centred, *chain.from_iterable(map(_centred, several))),
            parts={name: (*self.parts.get(name, ()), *values) for name, values in verdicts.parts.items()},
            rows=(*self.rows, *rows),
            answers=(*self.answers, *map(len, chain.from_iterable(rollouts.get("turn_rewards", ())))),
            context=(*self.context, *_context(groups)) if rollouts else (),
            failures=(*self.failures, *chain.from_iterable(rollouts.get("failure", ()))),
            drawing=self.drawing + (0.0 if made is None else made.seconds),
            must_be_done=self.must_be_done + (0.0 if made is None else made.must_be_done),
        )

    def taken(self, step: int, seconds: float, used: Callable[[float, float], float]) -> Taken:
        """The metrics of a collection that took so long; `used` is the utilization by some operations in some
        seconds.
        """
        metrics = {
            "completions/ended": float(np.mean(self.ended)),
            "completions/length": float(np.mean(self.lengths)),
            "collect_time": seconds,
        }
        if self.answers:
            metrics |= {
                "rollout/answers": float(np.mean(self.answers)),
                "rollout/context": float(np.mean(self.context)),
                "rollout/failed": float(np.mean([bool(failure) for failure in self.failures])),
            }
        if self.num_asked:
            metrics |= {
                "collect/left_out": float(sum(self.dropped.values())),
                "collect/no_reward": float(self.num_none),
                "collect/parse_failures": float(self.parse_failures),
            }
        if self.rewards:
            metrics |= {
                "collect/reward": float(np.mean(self.rewards)),
                "collect/reward_std": float(np.std(self.rewards)),
            }
        metrics |= part_metrics(self.parts, "collect/")
        if self.comparable:
            metrics["collect/equal_rewards"] = self.equal / self.comparable
        reward, length = np.array(self.centred).reshape(-1, 2).T
        if len(reward) and reward.std() > 0 and length.std() > 0:
            metrics["collect/length_correlation"] = float(np.corrcoef(reward, length)[0, 1])
        if self.must_be_done:
            metrics["sample_mfu"] = used(self.must_be_done, self.drawing)
        if self.gaps:
            metrics["sampler_gap"] = float(np.mean(self.gaps))
        metrics |= {name: float(np.mean(values)) for name, values in self.more.items()}
        return Taken(
            groups=[],
            prompts_seen=self.num_prompts,
            samples_drawn=self.num_drawn,
            reward_queries=self.num_asked,
            metrics=metrics,
            completions=tuple({"step": step, "policy_step": step - 1, **row} for row in self.rows),
        )


def _context(groups: Sequence[Group]) -> list[int]:
    """Tokens of each completion that the policy did not write."""
    return [
        len(ids) - count
        for group in groups
        for ids, count in zip(group.completions, group.num_scored, strict=True)
    ]


def _parts_of(verdicts: Verdicts, start: int, stop: int) -> dict[str, object]:
    """The rewards of some completions by their steps and by the terms of a weighted sum, for a row of
    completions.jsonl.
    """
    parts = {name: values[start:stop] for name, values in verdicts.parts.items()}
    steps: dict[str, object] = {"reward_steps": verdicts.steps[start:stop]} if verdicts.steps else {}
    return steps | ({"reward_parts": parts} if parts else {})


def part_metrics(parts: Mapping[str, Sequence[float | None]], prefix: str) -> dict[str, float]:
    """Mean, standard deviation and share of None of each term of a weighted sum, before its weight."""
    metrics: dict[str, float] = {}
    for name, values in parts.items():
        known = [value for value in values if value is not None]
        metrics[f"{prefix}reward_none/{name}"] = 1.0 - len(known) / max(1, len(values))
        if known:
            metrics[f"{prefix}reward/{name}"] = float(np.mean(known))
            metrics[f"{prefix}reward_std/{name}"] = float(np.std(known))
    return metrics


def _centred(pairs: Sequence[tuple[float, int]]) -> list[tuple[float, float]]:
    reward, length = (float(np.mean(column)) for column in zip(*pairs, strict=True))
    return [(r - reward, n - length) for r, n in pairs]
