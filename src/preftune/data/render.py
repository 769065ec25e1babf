"""From a record's text to token ids.

A completion is what the template (or, in plain mode, the text) writes after the prompt, up to and including
the end of the turn; what a template writes after that is left out. A completion that was cut off before it
ended has no end of turn. Of a trajectory, each answer with its end of turn is scored, unless its weight is 0;
what is between is not.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import islice
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from preftune.data.chat_run import check_variables
from preftune.data.chat_templates import apply_template
from preftune.data.chat_text import ChatText, make_chat_text
from preftune.data.encode import Encoder, make_encoder
from preftune.data.options import DataOptions, Template
from preftune.data.render_texts import Texts, Writing, transcript
from preftune.data.render_tokens import TokenRules, automatic_start, joins_blanks, tokenized_group
from preftune.data.turn_end import NO_END, TurnEnd, template_markup, turn_ends
from preftune.data.vocabulary import missing_rows
from preftune.errors import ConfigError, DataError, ModelError, shown
from preftune.types import Group, Message, Record

__all__ = ["Renderer", "make_renderer", "transcript"]

THOUGHTLESS = "prompts without the reasoning of earlier answers, which the chat template leaves out"
BATCH = 256  # records tokenized by one call


@dataclass(frozen=True, slots=True, kw_only=True)
class Renderer:
    """How one tokenizer writes prompts and completions. Make it with `make_renderer`.

    In chat mode the template alone decides about BOS, as it does when the model is used; in plain mode the
    tokenizer's own rule for BOS holds. Where tokens of prompt and completion would merge into one, the
    completion is tokenized on its own, as the model that answers the prompt would write it.
    """

    tokenizer: PreTrainedTokenizerBase
    writing: Writing
    rules: TokenRules
    end_of_turn: int  # the last token of an answer
    stop_ids: tuple[int, ...]  # tokens that end an answer when they are sampled
    stop_texts: tuple[str, ...]  # texts that end an answer, of ends that are no single token
    replaced: bool  # whether the options replaced the tokenizer's chat template
    left_out: Counter[str] = field(default_factory=Counter)  # of all records so far, by what it is

    @property
    def mode(self) -> Literal["chat", "plain"]:
        return self.writing.mode

    @property
    def bos(self) -> int | None:
        return self.rules.bos

    @property
    def chat(self) -> ChatText:
        return self.writing.chat

    @property
    def encoder(self) -> Encoder:
        return self.rules.encoder

    @property
    def end(self) -> TurnEnd:
        """How the template ends an answer of text."""
        return self.writing.ends[0]

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return self.rules.decode(ids)

    def render(self, record: Record) -> Group:
        """The record as token ids."""
        result = next(self.render_all([record]))
        if isinstance(result, DataError):
            raise result
        return result

    def continued(self, record: Record, trajectory: tuple[Message, ...]) -> np.ndarray:
        """The tokens between the end of a trajectory's last answer and the beginning of the next one; a DataError
        if the template cannot append the turns that the trajectory ends with.
        """
        text = self.writing.between(record, trajectory)
        [ids] = self.encoder.ids([self.end.text + text])
        end = np.array(self.end.ids, dtype=np.int32)
        if ids[: len(end)].tolist() == end.tolist():
            return ids[len(end) :]
        [ids] = self.encoder.ids([text])  # a token reaches over the end of the answer
        if self.decode(ids) != text:
            raise DataError(
                f"{record.origin}: the turns after an answer have no separate tokens",
                got=f"{shown(self.decode(ids), 60)} for {shown(text, 60)}",
                expected="a boundary between tokens at the end of an answer",
                do="Use another template (--rows.chat_template)",
            )
        return ids

    def render_all(self, records: Iterable[Record]) -> Iterator[Group | DataError]:
        """The groups in the order of the records; a record that cannot be rendered gives its error.

        While the groups of one batch are handed out, another thread tokenizes the next.
        """
        rest, waiting = iter(records), None
        with ThreadPoolExecutor(max_workers=1) as thread:
            while batch := list(islice(rest, BATCH)):
                texts = [self._texts_or_error(record) for record in batch]
                flat = [text for item in texts if not isinstance(item, DataError) for text in item.flat]
                following = _Batch(records=batch, texts=texts, tokens=thread.submit(self.encoder.ids, flat))
                if waiting is not None:
                    yield from _groups(self.rules, waiting)
                waiting = following
            if waiting is not None:
                yield from _groups(self.rules, waiting)

    def _texts_or_error(self, record: Record) -> Texts | DataError:
        """The texts from the last place on where the tokenizer itself cuts the prompt: what is before is
        tokenized once.
        """
        try:
            texts = self.writing.texts(record)
        except DataError as error:
            return DataError(f"{record.origin}: {error}")
        if texts.thoughtless:
            self.left_out[THOUGHTLESS] += 1
        start = self.encoder.last_cut(texts.prompt)
        if not start:
            return texts
        return Texts(
            head=texts.prompt[:start],
            prompt=texts.prompt[start:],
            completions=tuple([tuple([text[start:] for text in stages]) for stages in texts.completions]),
            scored=texts.scored,
            needs_end=texts.needs_end,
        )


def make_renderer(
    tokenizer: PreTrainedTokenizerBase, options: DataOptions | Template = "auto", *, many: bool = False
) -> Renderer:
    """The renderer of a tokenizer, perhaps for many records; an error if its template or its special tokens
    cannot serve. Of options, the chat template replaces the tokenizer's.
    """
    template, defaults = (options, {}) if isinstance(options, str) else _of_options(tokenizer, options)
    chat = template == "chat" or (template == "auto" and bool(tokenizer.chat_template))
    if chat and not tokenizer.chat_template:
        raise ModelError(
            "The tokenizer has no chat template",
            got="template: chat",
            expected="a tokenizer with one",
            do="Name a template (--rows.chat_template), or use the option template: plain",
        )
    if defaults:
        _check_defaults(tokenizer, chat, defaults)
    writer = make_chat_text(tokenizer, defaults)
    ends = turn_ends(tokenizer, writer) if chat else (NO_END,)
    eos = tokenizer.eos_token_id
    end_of_turn = ends[0].ids[-1] if ends[0].ids else eos
    if not isinstance(end_of_turn, int):
        raise ModelError(
            "The tokenizer has no end-of-sequence token",
            got="eos_token: none",
            expected="a token that ends a completion",
            do="Set eos_token in tokenizer_config.json",
        )
    bos = tokenizer.bos_token_id
    asked = writer.write([Message(role="user", content="a")], True) if chat else ""
    rules = TokenRules(
        tokenizer=tokenizer,
        encoder=make_encoder(tokenizer, asked, many),
        start=() if chat else automatic_start(tokenizer),
        bos=bos if isinstance(bos, int) else None,
        end=eos if isinstance(eos, int) else end_of_turn,
        rows=missing_rows(tokenizer),
    )
    writing = Writing(
        tokenizer=tokenizer,
        mode="chat" if chat else "plain",
        chat=writer,
        ends=ends,
        markup=template_markup(tokenizer, writer.write) if chat else None,
        moves_blanks=not chat and joins_blanks(tokenizer),
    )
    single = [end.ids[0] for end in ends if len(end.ids) == 1]
    return Renderer(
        tokenizer=tokenizer,
        writing=writing,
        rules=rules,
        end_of_turn=end_of_turn,
        stop_ids=tuple(dict.fromkeys([*single, *([eos] if isinstance(eos, int) else [])])),
        stop_texts=tuple(end.text.strip() for end in ends if len(end.ids) > 1),
        replaced=not isinstance(options, str) and options.chat_template is not None,
    )


def _of_options(
    tokenizer: PreTrainedTokenizerBase, options: DataOptions
) -> tuple[Template, dict[str, object]]:
    apply_template(tokenizer, options)
    return options.template, dict(options.chat_template_kwargs)


def _check_defaults(tokenizer: PreTrainedTokenizerBase, chat: bool, defaults: dict[str, object]) -> None:
    if not chat:
        raise ConfigError(
            "The data option chat_template_kwargs has no effect on plain text",
            got=", ".join(defaults),
            expected="a tokenizer with a chat template",
            do="Leave it out",
        )
    try:
        check_variables(tokenizer, defaults, "rows.chat_template_kwargs")
    except DataError as error:
        raise ConfigError(str(error)) from error


# --- one batch of records ---


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    records: list[Record]
    texts: list[Texts | DataError]
    tokens: Future[list[np.ndarray]]  # of all texts, one after another


def _groups(rules: TokenRules, batch: _Batch) -> Iterator[Group | DataError]:
    ids = iter(batch.tokens.result())
    for record, item in zip(batch.records, batch.texts, strict=True):
        if isinstance(item, DataError):
            yield item
            continue
        tokens = list(islice(ids, item.count))
        try:
            yield tokenized_group(rules, record, item, tokens)
        except DataError as error:
            yield error
