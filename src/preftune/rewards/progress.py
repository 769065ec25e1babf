"""Values of an answer's steps, from rollouts: how often a prover that continues from a step reaches the reward."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import accumulate
from typing import Any, Literal

import numpy as np

from preftune.data.render import Renderer
from preftune.errors import ConfigError
from preftune.measures.coverage import expected_best
from preftune.rewards.base import COLUMNS, BuiltIn, Verdicts, at, check_reward_range, each, whole_prompts
from preftune.rewards.call import AnyReward, ask
from preftune.rewards.classifier import ended_flags, render, tool_texts
from preftune.rewards.model_reward import ModelReward
from preftune.sampling.engine import choose_engine
from preftune.sampling.prefix import behind, with_beginnings
from preftune.sampling.sample import SampleOptions, load_sampler, sample
from preftune.sampling.sampled import Sampled, tokens_within
from preftune.text import line_steps


@dataclass(frozen=True, kw_only=True)
class StepProgress(ModelReward):
    """A number for each step of an answer: how much the step changes the reward that a prover reaches from there.

        A(h) = Q(h) - Q(h - 1),   Q(h) = mean reward of `num` completions that the prover writes after step h

    Q(0) is of the prompt alone; after the last step of an answer that ended, Q is the answer's own reward. With
    best_of K the prover takes the best of K completions: Q is the unbiased estimate of the expected maximum of K.
    Setlur et al., "Rewarding Progress", ICLR 2025, arXiv 2410.08146, train a model of these numbers; here they are
    the rollouts' own. With values "q" the numbers are Q(h), as in Setlur et al., "RL on Incorrect Synthetic Data",
    2024, arXiv 2406.14532, where K is 5. Both from a secondary source. The steps of an answer are its lines.

    Args:
        model: the prover: a folder or a hub id.
        reward: of the whole answer, for example maths.
        num: completions after each step.
        best_of: K.
        values: "advantage" or "q".
        max_new_tokens: budget of a completion.
        temperature: of sampling.
        seed: of the completions.
        template: prompts are written with the chat template or as plain text; "auto" takes the template if
            there is one.
    """

    model: str
    reward: str
    num: int = 8
    best_of: int = 1
    values: Literal["advantage", "q"] = "advantage"
    max_new_tokens: int = 128
    temperature: float = 1.0
    seed: int = 0
    template: Literal["auto", "chat", "plain"] = "auto"

    def __post_init__(self) -> None:
        check_reward_range("progress", "num", self.num, 1)
        check_reward_range("progress", "best_of", self.best_of, 1, self.num)
        check_reward_range("progress", "max_new_tokens", self.max_new_tokens, 1)
        check_reward_range("progress", "temperature", self.temperature, 1e-6)
        if isinstance(self._outcome, BuiltIn) and self._outcome.gives_steps:
            raise ConfigError("The reward within 'progress' is of whole answers", got=self.reward)
        _ = self._prover

    @property
    def gives_steps(self) -> bool:
        return True

    @property
    def needs(self) -> tuple[str, ...]:
        return self._outcome.needs if isinstance(self._outcome, BuiltIn) else ()

    @cached_property
    def _outcome(self) -> AnyReward:
        from preftune.rewards.resolve import resolve_reward

        return resolve_reward(self.reward)

    @cached_property
    def _prover(self) -> Any:
        model, renderer = load_sampler(self.model, self.loading, self.precision, self.device, self.template)
        return model, renderer, choose_engine(model)[0]

    def __call__(self, prompts: list[str], completions: list[str], **columns: Any) -> Verdicts:
        states = _states(self._prover[1], prompts, completions, columns)
        drawn = self._drawn(states)
        values = self._judged(states, drawn, prompts, completions, columns)
        steps: list[tuple[float, ...] | None] = []
        start = 0
        for text in completions:
            size = 1 + len(line_steps(text))
            q, start = values[start : start + size], start + size
            known = [value for value in q if value is not None]
            if len(known) < size or size == 1:
                steps.append(None)
                continue
            less = known[:-1] if self.values == "advantage" else [0.0] * (size - 1)
            steps.append(tuple(after - before for after, before in zip(known[1:], less, strict=True)))
        rewards = [None if one is None else math.fsum(one) for one in steps]
        return Verdicts(rewards=rewards, steps=steps)

    def _drawn(self, states: "Sequence[_State]") -> list[list[Sampled]]:
        """Completions after each state; none after the end of an answer. Equal states share them."""
        model, renderer, engine = self._prover
        open_states: dict[bytes, _State] = {state.key: state for state in states if not state.over}
        firsts = list(open_states.values())
        options = SampleOptions(
            num_completions=self.num, max_new_tokens=self.max_new_tokens, temperature=self.temperature
        )
        given = [state.given for state in firsts]
        asked = behind([state.prompt for state in firsts], given)
        drawn = with_beginnings(
            sample(model, renderer, asked, options, self.seed, engine=engine) if firsts else [],
            given,
            renderer,
        )
        found = dict(zip(open_states, drawn, strict=True))
        return [[] if state.over else found[state.key] for state in states]

    def _judged(
        self,
        states: "Sequence[_State]",
        drawn: Sequence[Sequence[Sampled]],
        prompts: list[str],
        completions: list[str],
        columns: Mapping[str, Any],
    ) -> list[float | None]:
        """Q of each state."""
        texts: list[str] = []
        owners: list[int] = []
        ended: list[bool] = []
        sizes: list[int] = []
        for state, ones in zip(states, drawn, strict=True):
            texts += [completions[state.completion]] if state.over else [one.text for one in ones]
            owners += [state.completion] * max(1, len(ones))
            ended += [True] if state.over else [one.ended for one in ones]
            sizes += [len(state.given)] if state.over else [len(one.token_ids) for one in ones]
        count = len(completions)
        more = {
            name: [each(value, count)[k] for k in owners]
            for name, value in columns.items()
            if name not in COLUMNS or name == "prompt_turns"
        }
        more |= {"ended": ended, "num_tokens": sizes, "budget": max([self.max_new_tokens, *sizes])}
        if "training_step" in columns:
            more["training_step"] = columns["training_step"]
        found = iter(ask(self._outcome, self.reward, [prompts[k] for k in owners], texts, more).rewards)
        values: list[float | None] = []
        for ones in drawn:
            mine = [next(found) for _ in range(max(1, len(ones)))]
            known = [reward for reward in mine if reward is not None]
            best_of = min(self.best_of, len(known)) if ones else 1
            values.append(expected_best(known, best_of) if known else None)
        return values


@dataclass(frozen=True, kw_only=True, eq=False)
class _State:
    """A completion after a given number of its steps."""

    completion: int
    prompt: np.ndarray
    given: np.ndarray
    over: bool = False  # the answer has ended here

    @property
    def key(self) -> bytes:
        return self.prompt.tobytes() + b"|" + self.given.tobytes()


def _states(
    renderer: Renderer, prompts: Sequence[str], completions: Sequence[str], columns: Mapping[str, Any]
) -> list[_State]:
    """Of each completion: before its first step and after each."""
    count, found = len(completions), []
    rows = zip(
        whole_prompts(prompts, columns),
        completions,
        ended_flags(columns, count),
        tool_texts(renderer.tokenizer, columns, count),
        strict=True,
    )
    for k, (prompt, text, ended, tools) in enumerate(rows):
        steps = line_steps(text)
        group = render(
            renderer, prompt, [text] if steps else [], [False] if steps else [], at(k, completions), tools
        )
        ids = group.completions[0] if steps else np.zeros(0, dtype=np.int32)
        start = _State(completion=k, prompt=group.prompt, given=ids[:0])
        ends = [tokens_within(ids, end, renderer) for end in accumulate(map(len, steps))]
        after = [replace(start, given=ids[:end]) for end in ends]
        if after and ended:
            after[-1] = replace(after[-1], over=True)
        found += [start, *after]
    return found
