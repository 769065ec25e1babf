"""Rollouts: a model answers, an environment answers the model, and so on within budgets."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from preftune.data.render import Renderer
from preftune.environments.base import EnvironmentFault, NamedEnvironment, Reply, RolloutOptions, utf8
from preftune.environments.steps import Steps
from preftune.errors import ConfigError, DataError, TrainingError
from preftune.sampling.distribution import uniforms
from preftune.sampling.sampled import Sampled
from preftune.types import Message, Record

RolloutOutcome = Literal["done", "turns", "tokens", "cut", "failed"]
OUTCOMES = {
    "done": "the environment ended it",
    "turns": "rollout.max_turns ended it",
    "tokens": "rollout.total_tokens left no room for another turn",
    "cut": "a budget cut its last answer off",
    "failed": "the environment or the chat template failed; it has no reward",
}
_ENVIRONMENT_SEEDS = 2**62
"""Where turns begin, as words of the counter, from which environments get their seeds; answers never reach it."""
CUT_TURN = "\n[the rest is cut off]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """One answer to draw."""

    context: np.ndarray  # int32 [tokens], the prompt and all turns so far
    key: int  # of the prompt
    number: int  # of the completion
    turn: int  # 0, 1, ...
    budget: int  # tokens


Drawer = Callable[[Sequence[Ask]], list[Sampled]]
"""Answers, all of one turn, in the order of what was asked."""


@dataclass(frozen=True, kw_only=True)
class Rollout:
    """A completion of several turns. `sampled` has all of its tokens, those of answers scored, and the last
    answer's text.
    """

    sampled: Sampled
    turns: tuple[Message, ...]  # answers of the assistant, and between them what the environment said
    reward: float | None
    turn_rewards: tuple[float | None, ...]  # one for each answer
    outcome: RolloutOutcome
    failure: str  # why it failed, empty for all others

    @property
    def num_answers(self) -> int:
        return len(self.turn_rewards)


@dataclass(kw_only=True, eq=False)
class _Live:
    """A rollout that grows."""

    record: Record
    prompt: np.ndarray
    key: int
    number: int
    state: Any = None
    pieces: list[np.ndarray] = field(default_factory=list)
    scored: list[bool] = field(default_factory=list)  # of each piece
    answers: list[Sampled] = field(default_factory=list)
    turns: list[Message] = field(default_factory=list)
    rewards: list[float | None] = field(default_factory=list)
    outcome: RolloutOutcome | None = None
    failure: str = ""

    @property
    def length(self) -> int:
        return sum(map(len, self.pieces))

    def add_answer(self, answer: Sampled) -> None:
        self.answers.append(answer)
        self.pieces.append(answer.token_ids)
        self.scored.append(True)
        self.turns.append(Message(role="assistant", content=utf8(answer.text)))

    def fail(self, why: str) -> None:
        self.outcome, self.failure = "failed", why

    def finished(self) -> Rollout:
        known = [reward for reward in self.rewards if reward is not None]
        told = [answer for answer in self.answers if answer.behaviour_logp is not None]
        plain = [answer for answer in self.answers if answer.logp is not None]
        tokens = np.concatenate(self.pieces or [np.zeros(0, dtype=np.int32)]).astype(np.int32)
        scored = np.repeat(np.array(self.scored, dtype=bool), [len(piece) for piece in self.pieces])
        whole = bool(self.answers)
        return Rollout(
            sampled=Sampled(
                token_ids=tokens,
                text=self.answers[-1].text if whole else "",
                ended=whole and self.answers[-1].ended,
                behaviour_logp=_joined(
                    [one.behaviour_logp for one in told], whole and len(told) == len(self.answers)
                ),
                logp=_joined([one.logp for one in plain], whole and len(plain) == len(self.answers)),
                scored=scored,
            ),
            turns=tuple(self.turns),
            reward=sum(known) if known and self.outcome != "failed" else None,
            turn_rewards=tuple(self.rewards),
            outcome=self.outcome or "turns",
            failure=self.failure,
        )


def _joined(parts: Sequence[np.ndarray | None], whole: bool) -> np.ndarray | None:
    return np.concatenate([part for part in parts if part is not None]) if whole else None


@dataclass(frozen=True, kw_only=True, eq=False)
class Rollouts:
    """Draws rollouts. `answer_tokens` is the budget of one answer."""

    steps: Steps
    renderer: Renderer
    answer_tokens: int

    @property
    def options(self) -> RolloutOptions:
        return self.steps.options

    def draw(
        self,
        drawer: Drawer,
        records: Sequence[Record],
        prompts: Sequence[np.ndarray],
        keys: Sequence[int],
        num_completions: int,
        seed: int,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> list[list[Rollout]]:
        """`num_completions` rollouts of each prompt, in the prompts' order.

        What an answer is follows from the model, its context, the seed, the prompt's key and the numbers of
        completion and turn; so the same command gives the same rollouts if the environment does.
        """
        live = [
            _Live(record=record, prompt=prompt, key=key, number=number)
            for record, prompt, key in zip(records, prompts, keys, strict=True)
            for number in range(num_completions)
        ]
        rows = [reset_row(one.record, environment_seed(seed, one.key, one.number)) for one in live]
        for one, state in zip(live, self.steps.reset(rows), strict=True):
            if isinstance(state, EnvironmentFault):
                raise TrainingError(
                    f"Environment {self.steps.named.name!r} cannot begin a rollout of {one.record.origin}",
                    got=str(state),
                    do="Mend the environment or the row, or raise rollout.step_timeout_s",
                )
            one.state = state
        progress(0, len(live))
        for turn in range(self.options.max_turns):
            asked = [one for one in live if one.outcome is None]
            if not asked:
                break
            self._take_turn(drawer, asked, turn)
            progress(sum(one.outcome is not None for one in live), len(live))
        self._finish(live)
        progress(len(live), len(live))
        if live and all(one.outcome == "failed" for one in live):
            raise TrainingError(
                f"Environment {self.steps.named.name!r} failed in all of {len(live)} rollouts",
                got=live[0].failure,
                do="Mend the environment, or raise rollout.step_timeout_s",
            )
        found = iter([one.finished() for one in live])
        return [[next(found) for _ in range(num_completions)] for _ in records]

    def _take_turn(self, drawer: Drawer, asked: Sequence[_Live], turn: int) -> None:
        """One answer of each, and the environment's reply to it."""
        asks = [
            Ask(
                context=np.concatenate([one.prompt, *one.pieces]),
                key=one.key,
                number=one.number,
                turn=turn,
                budget=min(self.answer_tokens, self.options.total_tokens - one.length),
            )
            for one in asked
        ]
        for one, answer in zip(asked, drawer(asks), strict=True):
            one.add_answer(answer)
        replies = self.steps.step([one.state for one in asked], [one.answers[-1].text for one in asked])
        for one, found in zip(asked, replies, strict=True):
            if isinstance(found, EnvironmentFault):
                one.rewards.append(None)
                one.fail(f"step {turn + 1}: {found}")
                continue
            one.state, reply = found
            one.rewards.append(reply.reward)
            if not reply.turns:
                one.outcome = "done"
            elif not one.answers[-1].ended:
                one.outcome = "cut"
            elif turn + 1 == self.options.max_turns:
                one.outcome = "turns"
            else:
                self._add_turn(one, reply)

    def _add_turn(self, one: _Live, reply: Reply) -> None:
        """Append the environment's reply to the answer, as context."""
        said = tuple(self._short(message) for message in reply.turns)
        try:
            context = self.renderer.continued(one.record, (*one.turns, *said))
        except DataError as error:
            one.fail(f"chat template: {error}")
            return
        if one.length + len(context) >= self.options.total_tokens:
            one.outcome = "tokens"
            return
        one.turns += said
        one.pieces.append(context)
        one.scored.append(False)

    def _short(self, message: Message) -> Message:
        """The turn within its budget of tokens."""
        content, most = message.content, self.options.turn_tokens
        content = content[: 64 * most]  # no tokenizer needs to see more
        [ids] = self.renderer.encoder.ids([content])
        if len(ids) <= most:
            return message if content == message.content else _with_content(message, content + CUT_TURN)
        return _with_content(message, utf8(self.renderer.decode(ids[:most])) + CUT_TURN)

    def _finish(self, live: Sequence[_Live]) -> None:
        """Inform the environment of rollouts that a budget ended."""
        ended = [one for one in live if one.outcome in ("turns", "tokens", "cut")]
        for one, last in zip(ended, self.steps.finish([one.state for one in ended]), strict=True):
            if isinstance(last, EnvironmentFault):
                one.fail(f"finish: {last}")
            elif last is not None:
                one.rewards[-1] = (one.rewards[-1] or 0.0) + last


def _with_content(message: Message, content: str) -> Message:
    return Message(role=message.role, content=content, extras=message.extras)


def environment_seed(seed: int, key: int, number: int) -> int:
    """The seed of an environment in one rollout, 32 bits."""
    return int(uniforms(seed, key, number, 1, _ENVIRONMENT_SEEDS)[0] * 2**32)


def reset_row(record: Record, seed: int) -> dict[str, Any]:
    """What an environment gets to know of a rollout."""
    prompt = record.prompt if isinstance(record.prompt, str) else [turn.as_dict() for turn in record.prompt]
    return {**record.columns, **record.template_columns(), "prompt": prompt, "seed": seed}


_PROBE = (
    Message(role="assistant", content="One"),
    Message(role="user", content="Two"),
    Message(role="assistant", content="Three"),
    Message(role="user", content="Four"),
)


def check_template(renderer: Renderer, name: str) -> None:
    """Refuse, by the model's name, a chat template that cannot put turns behind an answer."""
    if renderer.mode != "chat":
        raise ConfigError(
            f"Rollouts of several turns need a chat template, and {name} is read as plain text",
            got="no chat template",
            expected="a chat template that can continue a dialogue",
            do="Name a template (--rows.chat_template), or use a model with one",
        )
    record = Record(prompt="Zero", completions=(), origin="probe")
    try:
        renderer.continued(record, _PROBE)
    except DataError as error:
        raise ConfigError(
            f"The chat template of {name} cannot continue a dialogue after an answer",
            got=str(error),
            expected="a template that keeps what it wrote and appends turns",
            do="Choose another template (--rows.chat_template)",
        ) from error


def make_rollouts(
    named: NamedEnvironment, options: RolloutOptions, renderer: Renderer, answer_tokens: int, model: str
) -> Rollouts:
    """What draws rollouts in an environment; a chat template that cannot continue a dialogue is an error."""
    check_template(renderer, model)
    return Rollouts(steps=Steps(named, options), renderer=renderer, answer_tokens=answer_tokens)


def turn_rows(rollout: Rollout) -> list[dict[str, Any]]:
    """The turns as data files hold them, each with weight 1 if it is scored and 0 if it is context."""
    return [{**turn.as_dict(), "weight": int(turn.role == "assistant")} for turn in rollout.turns]


Columns = Mapping[str, tuple[tuple[Any, ...], ...]]
"""By name, an entry for each completion of each prompt."""


def rollout_columns(drawn: Sequence[Sequence[Rollout]]) -> dict[str, tuple[tuple[Any, ...], ...]]:
    """What rewards and logs get to know of rollouts, as JSON has it."""
    read: dict[str, Callable[[Rollout], object]] = {
        "turns": turn_rows,
        "environment_reward": lambda one: one.reward,
        "turn_rewards": lambda one: list(one.turn_rewards),
        "outcome": lambda one: one.outcome,
        "failure": lambda one: one.failure,
    }
    return {name: tuple(tuple(map(work, ones)) for ones in drawn) for name, work in read.items()}
