"""What a sampler returns: completions with their log-probabilities."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from preftune.data.render import Renderer
from preftune.types import Group


@dataclass(frozen=True, kw_only=True)
class Sampled:
    """One completion: its tokens up to and including the end-of-turn token (if it came), its text without it.

    `logp` is of the model as it is, what preftune.policy scores at temperature 1; `behaviour_logp` is of the
    distribution that was drawn from, temperature and truncation included. They differ only under these (token
    ids without text are never drawn, and yet counted in both, so that ratios to the policy start at 1); at
    temperature 0 the drawn token was certain and behaviour_logp is 0. An importance ratio that makes an
    expectation over the draws one over the policy divides by `behaviour_logp`. Under truncation that holds on
    the tokens that could be drawn alone, which no ratio mends. A ratio of the policy to itself before an
    update, which starts at 1, divides by `logp`; so does a comparison of trainer and sampler. Both are None
    where a server does not return them.

    A completion may hold tokens that the model did not draw (a beginning that was given, the result of a tool).
    `scored` is False there; they are context, and log-probabilities are of the other tokens alone.
    """

    token_ids: np.ndarray  # int32 [tokens]
    text: str
    ended: bool  # by the end-of-turn token, another end token of the model or a stop text; a stop text is in `text` and no end-of-turn token follows it
    behaviour_logp: np.ndarray | None = None  # float32 [scored tokens]
    logp: np.ndarray | None = None  # float32 [scored tokens]
    scored: np.ndarray | None = None  # bool [tokens]; None where all tokens are scored

    @property
    def num_scored(self) -> int:
        """Tokens that the model drew."""
        return len(self.token_ids) if self.scored is None else int(self.scored.sum())


def sampled_group(prompt: np.ndarray, drawn: Sequence[Sampled], origin: str = "") -> Group:
    """A prompt and its samples as a group without a signal, with the log-probabilities that are known."""
    behaviour = [one.behaviour_logp for one in drawn if one.behaviour_logp is not None]
    parts = [np.ones(len(one.token_ids), dtype=bool) if one.scored is None else one.scored for one in drawn]
    return Group(
        prompt=prompt,
        completions=tuple(one.token_ids for one in drawn),
        scored=() if all(one.scored is None for one in drawn) else tuple(parts),
        behaviour_logp=tuple(behaviour),
        origin=origin,
    )


def completion_text(ids: np.ndarray, renderer: Renderer, ends: frozenset[int] = frozenset()) -> str:
    """The text of a completion's tokens, without its end token and other special tokens."""
    kept = ids[: len(ids) - (len(ids) > 0 and int(ids[-1]) in {*renderer.stop_ids, *ends})]
    text = str(renderer.tokenizer.decode(kept.tolist(), skip_special_tokens=True))
    end = next((end for end in renderer.stop_texts if text.endswith(end)), "")
    return text.removesuffix(end).rstrip("\n") if end else text


def tokens_within(ids: np.ndarray, characters: int, renderer: Renderer) -> int:
    """The fewest of the tokens, at least one, whose text has a given number of characters; all where none have."""

    def written(count: int) -> int:
        return len(str(renderer.tokenizer.decode(ids[:count].tolist(), skip_special_tokens=True)))

    return min(len(ids), 1 + bisect_left(range(1, len(ids) + 1), characters, key=written))
