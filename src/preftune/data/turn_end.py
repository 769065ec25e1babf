"""What a chat template writes around an answer and after it, found by running the template."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from os.path import commonprefix

from transformers import PreTrainedTokenizerBase

from preftune.data.chat_run import PLAIN, probe_call
from preftune.data.chat_text import ChatText
from preftune.errors import DataError, ModelError, shown
from preftune.types import Message

_PROBE = "Qz7answer"  # an answer that no template changes


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnEnd:
    """How a template ends an answer."""

    text: str  # from the answer to the last character of the end; empty if the template writes no end
    after: str  # what follows in a dialogue that ends with the answer
    ids: tuple[int, ...]  # the tokens of the end itself: one, or several where it is no token


NO_END = TurnEnd(text="", after="", ids=())


def turn_ends(tokenizer: PreTrainedTokenizerBase, chat: ChatText) -> tuple[TurnEnd, ...]:
    """The end of an answer of text, then other ends: of an answer that calls a tool."""
    user = Message(role="user", content="a")
    turns = [user, Message(role="assistant", content=_PROBE)]
    try:
        silent, prompt = (chat.write(turns[:1], generation) for generation in (False, True))
        whole = chat.write(turns, False)
    except DataError as error:
        raise ModelError(
            f"The chat template cannot be used: {error}",
            expected="a template for user and assistant turns",
            do="Use another template (--rows.chat_template), or the option template: plain",
        ) from error
    if whole.count(_PROBE) != 1:
        raise ModelError(
            "The chat template does not write the assistant's turn as it is",
            got=shown(whole[-80:]),
            expected="the text of the answer, once",
            do="Use another template (--rows.chat_template), or the option template: plain",
        )
    header, tail = whole.split(_PROBE)
    if silent == prompt and header.removeprefix(prompt).strip():
        raise ModelError(
            "The chat template has no generation prompt",
            got=f"{shown(header[-40:])} before an answer, and {shown(prompt[-40:])} at the end of a prompt",
            expected="a template that uses add_generation_prompt",
            do="Use another template (--rows.chat_template), or the option template: plain",
        )
    first = _end_of(tokenizer, tail, _tail_in_dialogue(chat, [*turns, user]))
    called = _called_end(tokenizer, chat)
    return (first,) if called in (first, NO_END) else (first, called)


def _tail_in_dialogue(chat: ChatText, turns: list[Message]) -> str | None:
    """What is written after an answer that the user answers; None if the template refuses such a dialogue."""
    try:
        parts = chat.write(turns, False).split(_PROBE)
    except DataError:
        return None
    return parts[1] if len(parts) == 2 else None


def _end_of(tokenizer: PreTrainedTokenizerBase, tail: str, in_dialogue: str | None) -> TurnEnd:
    """The end that the tail begins with.

    It is the first added token of what follows an answer in both a finished and a continued dialogue, else
    the text there up to its last letter, else the tokenizer's own end, or another special token, in the tail.
    """
    shared = tail if in_dialogue is None else commonprefix([tail, in_dialogue])  # noqa: RUF071 (of texts)
    added = sorted(
        (token.content for token in tokenizer.added_tokens_decoder.values()), key=len, reverse=True
    )
    for (
        token
    ) in added:  # two ends such as <|return|> and <|end|> share the beginning of a token, which is no end
        start = tail.find(token)
        if 0 <= start < len(shared) < start + len(token):
            shared = tail[:start]
    for text in (shared, tail):
        places = [
            (text.find(token), -len(token), token) for token in added if token.strip() and token in text
        ]
        if places:
            start, _, token = min(places)
            return _made(tokenizer, text[: start + len(token)], tail, token)
        if text is shared and in_dialogue is not None and text.strip():
            return _made(tokenizer, text.rstrip(), tail, text.strip())
    return TurnEnd(text="", after=tail, ids=())


def _made(tokenizer: PreTrainedTokenizerBase, text: str, tail: str, end: str) -> TurnEnd:
    ids = tuple(tokenizer(end, add_special_tokens=False)["input_ids"])
    return TurnEnd(text=text, after=tail[len(text) :], ids=ids)


def _called_end(tokenizer: PreTrainedTokenizerBase, chat: ChatText) -> TurnEnd:
    """The end of an answer that calls a tool."""
    if "tool_calls" not in str(tokenizer.chat_template):
        return NO_END
    try:
        whole = chat.write(probe_call(), False)
    except DataError:
        return NO_END
    return last_special(tokenizer, whole)


def last_special(tokenizer: PreTrainedTokenizerBase, whole: str) -> TurnEnd:
    """The added token that a text ends with, white space aside."""
    end = whole.rstrip()
    for token in tokenizer.added_tokens_decoder.values():
        if token.content.strip() and end.endswith(token.content):
            return _made(tokenizer, token.content, token.content + whole[len(end) :], token.content)
    return NO_END


# --- prompts that are already rendered ---


@dataclass(frozen=True, slots=True, kw_only=True)
class Markup:
    """The signs that a template has written a prompt already."""

    special: re.Pattern[str]  # any special token
    initials: str  # the characters that special tokens, the header and the footer begin with
    written: tuple[str, ...]  # special tokens that a template writes at the beginning or the end of a prompt
    header: str  # the last line before a user's text, such as "<|im_start|>user"
    anywhere: bool  # whether the header is a mark wherever it is, not only at the beginning
    footer: str  # what follows the user's text up to the answer

    def fault(self, text: str) -> str | None:
        """The mark that a text has; None if it has none."""
        if not any([initial in text for initial in self.initials]):
            return None
        start, end = text.lstrip(), text.rstrip()
        for token in self.written:
            if start.startswith(token) or end.endswith(token):
                return token
        if self.footer and end.endswith(self.footer):
            return self.footer
        if self.header and (self.header in text if self.anywhere else start.startswith(self.header)):
            return self.header
        found = list(dict.fromkeys(islice(self.special.findall(text), 100)))
        return " and ".join(found[:2]) if len(found) > 1 else None


def template_markup(tokenizer: PreTrainedTokenizerBase, write: Callable[..., str]) -> Markup:
    """The markup of a template, from a prompt that it writes."""
    special = [
        token.content
        for token in tokenizer.added_tokens_decoder.values()
        if token.special and len(token.content.strip()) > 2
    ]
    before, after = "", ""
    parts = write([Message(role="user", content=_PROBE)], True, PLAIN).split(_PROBE)
    if len(parts) == 2:
        before, after = parts
    lines = [line.strip() for line in before.splitlines() if line.strip()]
    header = lines[-1].removeprefix(str(tokenizer.bos_token or "")).strip() if lines else ""
    footer = after.strip()
    named = (tokenizer.bos_token, tokenizer.eos_token)
    header, footer = (text if _is_markup(text) else "" for text in (header, footer))
    by_length = sorted(special, key=len, reverse=True)
    return Markup(
        special=re.compile("|".join(map(re.escape, by_length)) or "(?!)"),
        initials="".join({mark[0] for mark in (*special, header, footer) if mark}),
        written=tuple(token for token in special if token in named or token in before or token in after),
        header=header,
        anywhere=any(token in header for token in special) or header.startswith(("<|", "[")),
        footer=footer,
    )


def _is_markup(text: str) -> bool:
    return len(text) > 3 and not text.isalnum()


def refuse_rendered(markup: Markup, turns: tuple[Message, ...]) -> None:
    """An error for a prompt that holds a template's markup already: it would be rendered twice."""
    for turn in turns:
        mark = markup.fault(turn.content) if turn.role in ("user", "system") else None
        if mark is not None:
            raise DataError(
                "The prompt is already rendered: it holds the markup of a chat template",
                got=f"{shown(mark)} in {shown(turn.content, 60)}",
                expected="the text of a turn",
                do="Use --rows.template plain for prompts that are rendered, or remove the markup",
            )
