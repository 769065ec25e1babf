"""Answers of an OpenAI-compatible server, checked entry by entry."""

import math
from collections.abc import Callable
from typing import Any, Literal

from preftune.data.render import Renderer
from preftune.errors import shown
from preftune.sampling.http_client import Withheld, only_choice
from preftune.sampling.sample import SampleOptions

Api = Literal["tokens", "transformers", "chat"]


ROW = (
    "text",
    "ended",
    "token_ids",
    "logprobs",
    "stop_text",
    "withheld",
)  # what the journal keeps of an answer


def first_model(content: Any) -> str:
    """The first name that a server lists."""
    return str(content["data"][0]["id"])


def reply_reader(api: Api, renderer: Renderer, options: SampleOptions) -> Callable[[Any], dict[str, Any]]:
    """From an answer to a row of the journal; token_ids and logprobs are None where the server gives none."""
    if api == "tokens":
        most = options.max_new_tokens
        return lambda content: read_tokens(content, most, len(renderer.tokenizer))
    return read_chat


def read_tokens(content: Any, max_new_tokens: int, vocabulary: int) -> dict[str, Any]:
    """Every number is checked: ids within the vocabulary, no more of them than were requested (and an end of
    turn), log-probabilities finite and one for each id.
    """
    choice = only_choice(content)
    logprobs = choice.get("logprobs") or {}
    ids = choice.get("token_ids")
    if ids is None and all(str(token).startswith("token_id:") for token in logprobs.get("tokens") or [""]):
        ids = [int(token.removeprefix("token_id:")) for token in logprobs["tokens"]]
    values = logprobs.get("token_logprobs")
    text, ended = _text_of(choice["text"]), _ended(choice)
    if ids is not None and values is not None and abs(len(values) - len(ids)) > 1:  # 1: the end of the turn
        raise ValueError(f"{len(values)} log-probabilities for {len(ids)} tokens")
    return {
        "text": text,
        "ended": ended,
        "token_ids": None if ids is None else _checked_ids(ids, text, max_new_tokens + ended, vocabulary),
        "logprobs": None if values is None else [checked_logp(value) for value in values],
        # the names of vLLM and of SGLang
        "stop_text": isinstance(choice.get("stop_reason") or choice.get("matched_stop"), str),
        "withheld": None,
    }


def _checked_ids(ids: Any, text: str, most: int, vocabulary: int) -> list[int]:
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise TypeError(f"token_ids is no list of whole numbers: {shown(ids)}")
    if wrong := [token for token in ids if not 0 <= token < vocabulary]:
        raise ValueError(f"token id {shown(wrong[0])}, and the tokenizer has {vocabulary} tokens")
    if len(ids) > most:
        raise ValueError(f"{len(ids)} tokens, and {most} were requested")
    if text and not ids:
        raise ValueError(f"no token ids for the text {shown(text)}")
    return ids


def checked_logp(value: Any) -> float:
    """A finite log-probability, or an error that states what came."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"a log-probability is {shown(value)}")
    if not -math.inf < value <= 1e-3:  # a server's rounding may exceed 0 a little
        raise ValueError(f"a log-probability is {shown(value)}")
    return float(value)


def read_chat(content: Any) -> dict[str, Any]:
    choice = only_choice(content)
    ended, text = _ended(choice), message_text(choice["message"])
    if text is None:
        raise TypeError(f"a text was expected, and the message is {shown(choice['message'], 120)}")
    return dict.fromkeys(ROW) | {"text": text, "ended": ended}


def _text_of(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a text was expected, and {type(value).__name__} came")
    return value


def message_text(message: Any) -> str | None:
    """The text of a chat message, which may come as a list of parts; None where there is none."""
    content = message["content"]
    if isinstance(content, list):
        texts = [part["text"] for part in content if part.get("type", "text") in ("text", "output_text")]
        content = "".join(map(_text_of, texts)) if texts else None
    return content if isinstance(content, str) else None


def _ended(choice: Any) -> bool:
    reason = choice["finish_reason"]
    if reason == "content_filter":
        raise Withheld(reason)
    if reason not in ("stop", "length"):
        raise ValueError(f"finish_reason {shown(reason)}")
    return reason == "stop"
