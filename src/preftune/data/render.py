"""From a record's text to token ids: where the prompt ends and the completions begin is proven for every
completion.

A completion is what the template (or, in plain mode, the text) writes after the prompt, up to and including
the end-of-turn token; what a template writes after that token is left out. A completion that was cut off
before it ended has no end-of-turn token. Of a trajectory, each answer with its end-of-turn token is scored;
what stands between is not.
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain, islice, pairwise
from typing import Literal

import numpy as np
from transformers import PreTrainedTokenizerBase

from preftune.data.chat_text import ChatText, make_chat_text, run_template
from preftune.data.encode import Encoder, make_encoder
from preftune.data.options import Template
from preftune.errors import DataError, ModelError, shown
from preftune.types import SOURCES, Group, Message, Record

BATCH = 256  # records tokenized by one call
_PROBE = "Qz7answer"  # an answer that no template changes, to see what templates write around one
_TAIL = 12  # tokens shown on either side in an error about the boundary
_MARKS = {"system": "System", "user": "Human", "assistant": "Assistant"}  # the HH layout


@dataclass(frozen=True, slots=True, kw_only=True)
class Renderer:
    """How one tokenizer writes prompts and completions. Make it with `make_renderer`.

    In chat mode the template alone decides about BOS, as it does when the model is used; in plain mode the
    tokenizer's own rule for BOS holds. Where tokens of prompt and completion would merge into one, the
    completion is tokenized on its own, as the model that answers the prompt would write it.
    """

    tokenizer: PreTrainedTokenizerBase
    mode: Literal["chat", "plain"]
    start: tuple[int, ...]  # token ids before the text of a plain prompt
    bos: int | None
    end_of_turn: int
    template_end: str  # the end-of-turn token as the template writes it; empty if it writes none
    after_end: (
        str  # what the template writes after the end-of-turn token, or after the answer if it writes none
    )
    chat: ChatText
    encoder: Encoder

    def decode(self, ids: np.ndarray | Sequence[int]) -> str:
        """The text of token ids, special tokens included."""
        return _decode(self.tokenizer, list(map(int, ids)))

    def render(self, record: Record) -> Group:
        """The record as token ids."""
        result = next(self.render_all([record]))
        if isinstance(result, DataError):
            raise result
        return result

    def render_all(self, records: Iterable[Record]) -> Iterator[Group | DataError]:
        """The groups in the order of the records; a record that cannot be rendered gives its error.

        While the groups of one batch are handed out, another thread tokenizes the next.
        """
        rest, waiting = iter(records), None
        with ThreadPoolExecutor(max_workers=1) as thread:
            while batch := list(islice(rest, BATCH)):
                texts = [_texts_or_error(self, record) for record in batch]
                flat = [text for item in texts if not isinstance(item, DataError) for text in item.flat]
                following = _Batch(records=batch, texts=texts, tokens=thread.submit(self.encoder.ids, flat))
                if waiting is not None:
                    yield from _groups(self, waiting)
                waiting = following
            if waiting is not None:
                yield from _groups(self, waiting)


def make_renderer(
    tokenizer: PreTrainedTokenizerBase, template: Template = "auto", *, many: bool = False
) -> Renderer:
    """The renderer of a tokenizer, perhaps for many records; an error if its template or its special tokens
    cannot serve.
    """
    chat = template == "chat" or (template == "auto" and bool(tokenizer.chat_template))
    if chat and not tokenizer.chat_template:
        raise ModelError(
            "The tokenizer has no chat template",
            got="template: chat",
            expected="a tokenizer with one",
            do="Use the option template: plain",
        )
    end, after = _template_end(tokenizer) if chat else ("", "")
    end_of_turn = tokenizer.convert_tokens_to_ids(end) if end else tokenizer.eos_token_id
    if not isinstance(end_of_turn, int):
        raise ModelError(
            "The tokenizer has no end-of-sequence token",
            got="eos_token: none",
            expected="a token that ends a completion",
            do="Set eos_token in tokenizer_config.json",
        )
    bos, writer = tokenizer.bos_token_id, make_chat_text(tokenizer)
    asked = writer.write([Message(role="user", content="a")], True) if chat else ""
    return Renderer(
        tokenizer=tokenizer,
        mode="chat" if chat else "plain",
        start=_automatic_start(tokenizer),
        bos=bos if isinstance(bos, int) else None,
        end_of_turn=end_of_turn,
        template_end=end,
        after_end=after,
        chat=writer,
        encoder=make_encoder(tokenizer, asked, many),
    )


# --- what the tokenizer and its template do by themselves ---


def _decode(tokenizer: PreTrainedTokenizerBase, ids: list[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))


def _automatic_start(tokenizer: PreTrainedTokenizerBase) -> tuple[int, ...]:
    """The special tokens that the tokenizer puts before any text."""
    plain = tokenizer("a", add_special_tokens=False)["input_ids"]
    ids = tokenizer("a", add_special_tokens=True)["input_ids"]
    place = next(k for k in range(len(ids)) if ids[k : k + len(plain)] == plain)
    return tuple(ids[:place])


def _template_end(tokenizer: PreTrainedTokenizerBase) -> tuple[str, str]:
    """(the end-of-turn token, what follows it) as the template writes them after an answer."""
    turns = [Message(role="user", content="a"), Message(role="assistant", content=_PROBE)]
    try:
        silent, prompt = (run_template(tokenizer, turns[:1], generation) for generation in (False, True))
        whole = run_template(tokenizer, turns, False)
    except DataError as error:
        raise ModelError(
            f"The chat template cannot be used: {error}",
            expected="a template for user and assistant turns",
            do="Use the option template: plain",
        ) from error
    if whole.count(_PROBE) != 1:
        raise ModelError(
            "The chat template does not write the assistant's turn as it is",
            got=shown(whole[-80:]),
            expected="the text of the answer, once",
            do="Use the option template: plain",
        )
    header, tail = whole.split(_PROBE)
    if silent == prompt and header.removeprefix(prompt).strip():
        raise ModelError(
            "The chat template has no generation prompt",
            got=f"{shown(header[-40:])} before an answer, and {shown(prompt[-40:])} at the end of a prompt",
            expected="a template that uses add_generation_prompt",
            do="Mend the template, or use the option template: plain",
        )
    end = _end_token(tokenizer, tail)
    return end, tail.partition(end)[2] if end else tail


def _end_token(tokenizer: PreTrainedTokenizerBase, tail: str) -> str:
    """EOS if the template writes it after an answer, else the last special token there, else nothing."""
    eos = tokenizer.eos_token
    if isinstance(eos, str) and eos and eos in tail:
        return eos
    added = tokenizer.added_tokens_decoder
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"] if tail else []
    special = [added[token].content for token in ids if token in added and added[token].special]
    return special[-1] if special else ""


# --- one batch of records ---


@dataclass(frozen=True, slots=True, kw_only=True)
class _Texts:
    """What is written for a record: `head` and then, in full from the head's end, the prompt and the
    completions.

    Of each completion: the text up to the end of its first answer, up to the beginning of its second, up to
    the end of that, and so on. Each goes on where the one before ends; what the assistant writes and what it
    reads take turns. The head's tokens are the first of each whole text, whatever follows.
    """

    head: str
    prompt: str
    completions: tuple[tuple[str, ...], ...]

    @property
    def flat(self) -> list[str]:
        return [self.head, self.prompt, *chain.from_iterable(self.completions)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    records: list[Record]
    texts: list[_Texts | DataError]
    tokens: Future[list[np.ndarray]]  # of all texts, one after another


def _groups(renderer: Renderer, batch: _Batch) -> Iterator[Group | DataError]:
    ids = iter(batch.tokens.result())
    for record, item in zip(batch.records, batch.texts, strict=True):
        if isinstance(item, DataError):
            yield item
            continue
        tokens = [next(ids) for _ in item.flat]
        try:
            yield _group(renderer, record, item, tokens)
        except DataError as error:
            yield error


# --- one record ---


def _texts_or_error(renderer: Renderer, record: Record) -> _Texts | DataError:
    try:
        _refuse_extras(record)
        return _chat_texts(renderer, record) if renderer.mode == "chat" else _plain_texts(renderer, record)
    except DataError as error:
        return DataError(f"{record.origin}: {error}")


def _refuse_extras(record: Record) -> None:
    """An error for what is not rendered."""
    turns = [record.prompt, *record.completions]
    extras = any(turn.extras for item in turns if not isinstance(item, str) for turn in item)
    if record.tools or record.chat_template_kwargs or extras:
        raise DataError(
            "Tools, tool calls, reasoning, weights and chat_template_kwargs are not rendered",
            got=f"{record.tools}{record.chat_template_kwargs}" if not extras else "a turn with one of them",
            expected="turns of text",
            do="Remove these fields if the model shall not see them",
        )


def _chat_texts(renderer: Renderer, record: Record) -> _Texts:
    turns = (
        (Message(role="user", content=record.prompt),) if isinstance(record.prompt, str) else record.prompt
    )
    prompt = renderer.chat.write(turns, True)
    completions = []
    for k, completion in enumerate(record.completions):
        if isinstance(completion, str):
            answer = Message(role="assistant", content=completion)
            stages = [_answered(renderer, prompt, (*turns, answer))]
        else:
            stages = _trajectory_stages(renderer, prompt, turns, completion)
        if not _ended(record, k):
            stages[-1] = stages[-1].removesuffix(renderer.template_end)
        completions.append(tuple(stages))
    return _cut(renderer, prompt, completions)


def _cut(renderer: Renderer, prompt: str, completions: Sequence[tuple[str, ...]]) -> _Texts:
    """The texts from the last place on where the tokenizer itself cuts the prompt: what is before is
    tokenized once.
    """
    start = renderer.encoder.last_cut(prompt)
    return _Texts(
        head=prompt[:start],
        prompt=prompt[start:],
        completions=tuple(tuple(text[start:] for text in stages) for stages in completions),
    )


def _answered(renderer: Renderer, before: str, turns: tuple[Message, ...]) -> str:
    """The text of turns that end with an answer, up to the end-of-turn token; `before` is what the answer
    follows.
    """
    whole = renderer.chat.write(turns, False)
    end = renderer.template_end + renderer.after_end
    if not whole.startswith(before) or not whole.endswith(end) or len(whole) < len(before) + len(end):
        raise DataError(
            "The chat template writes the prompt differently when the answer follows",
            got=_parting(before, whole),
            expected="the prompt's text, the answer, the end of the turn",
            do="Mend the template, or use the option template: plain",
        )
    return whole.removesuffix(renderer.after_end)


def _trajectory_stages(
    renderer: Renderer, prompt: str, turns: tuple[Message, ...], trajectory: tuple[Message, ...]
) -> list[str]:
    """Where each answer of a trajectory begins and ends, proven by writing the dialogue turn by turn."""
    if not renderer.template_end:
        raise DataError(
            "The chat template has no end-of-turn token, so the answers of a trajectory have no end",
            got=f"a trajectory of {len(trajectory)} turns",
            expected="a template that ends each answer",
            do="Use another template, or give each answer a row of its own",
        )
    stages, start, silent = [], prompt, ""
    for k, turn in enumerate(trajectory):
        so_far = (*turns, *trajectory[: k + 1])
        if turn.role == "assistant":
            stages += [start] * (k > 0) + [_answered(renderer, start, so_far)]
            silent = stages[-1] + renderer.after_end
            continue
        written = renderer.chat.write(so_far, False)
        if len(written) <= len(silent):
            raise DataError(
                "The chat template leaves a turn out",
                got=f"{turn.role}: {shown(turn.content, 40)}",
                expected="a template that writes every turn of a trajectory",
                do="Use another template",
            )
        silent, start = written, renderer.chat.write(so_far, True)
    for shorter, longer in pairwise(stages):
        if not longer.startswith(shorter):
            raise DataError(
                "The chat template writes a turn of a trajectory differently when others follow",
                got=_parting(shorter, longer),
                expected="the same text, and more after it",
                do="Use another template, or give each answer a row of its own",
            )
    return stages


def _ended(record: Record, k: int) -> bool:
    return not record.ended or record.ended[k]


def _plain_texts(renderer: Renderer, record: Record) -> _Texts:
    prompt, blank = (
        (record.prompt, "") if isinstance(record.prompt, str) else (transcript(record.prompt), " ")
    )
    completions = []
    for completion in record.completions:
        if not isinstance(completion, str):
            raise DataError(
                "A trajectory needs a chat template",
                got="plain text",
                expected="a tokenizer with a chat template",
                do="Use the option template: chat",
            )
        completions.append((prompt + blank + completion,))
    return _cut(renderer, prompt, completions)


def transcript(messages: Sequence[Message]) -> str:
    """A dialogue as a base model reads it, in the HH layout, up to where the assistant answers."""
    unknown = [message.role for message in messages if message.role not in _MARKS]
    if unknown:
        raise DataError(
            f"Plain text has no place for a turn of the {unknown[0]}",
            got="plain text",
            expected="a tokenizer with a chat template",
            do="Use the option template: chat",
        )
    turns = "".join(f"\n\n{_MARKS[message.role]}: {message.content}" for message in messages)
    return f"{turns}\n\nAssistant:"


def _group(renderer: Renderer, record: Record, texts: _Texts, tokens: list[np.ndarray]) -> Group:
    head, prompt, rest = tokens[0], tokens[1], iter(tokens[2:])
    several = any(len(stages) > 1 for stages in texts.completions)
    completions, scored = [], []
    for k, stages in enumerate(texts.completions):
        pieces = _pieces(
            renderer, record, head, (texts.prompt, *stages), [prompt, *(next(rest) for _ in stages)]
        )
        if _ended(record, k) and pieces[-1][-1] != renderer.end_of_turn:
            pieces[-1] = np.append(pieces[-1], np.int32(renderer.end_of_turn))
        completions.append(pieces[0].copy() if len(pieces) == 1 else np.concatenate(pieces))
        if several:
            scored.append(np.repeat(np.arange(len(pieces)) % 2 == 0, [len(piece) for piece in pieces]))
    return Group(
        prompt=_started(renderer, record, head, prompt),
        completions=tuple(completions),
        scored=tuple(scored),
        pairs=record.pairs,
        probabilities=record.probabilities,
        labels=record.labels,
        rewards=record.rewards,
        sources=tuple(map(SOURCES.index, record.sources)),
        origin=record.origin,
    )


def _pieces(
    renderer: Renderer, record: Record, head: np.ndarray, texts: Sequence[str], tokens: list[np.ndarray]
) -> list[np.ndarray]:
    """The tokens that each text adds to the one before it; `tokens` are those of each text, which all follow
    the head's.

    When a token of the last text reaches over the end of another, they are the tokens of each added text of
    its own. That is proven by decoding: all together must read as the last text does.
    """
    whole, ends = tokens[-1], [len(ids) for ids in tokens]
    all_bytes = whole.tobytes()
    astray = [ids for ids in tokens[:-1] if not all_bytes.startswith(ids.tobytes())]
    if not astray and all(start < end for start, end in pairwise(ends)):
        return [whole[start:end] for start, end in pairwise(ends)]
    pieces = renderer.encoder.ids([text[len(before) :] for before, text in pairwise(texts)])
    read = renderer.decode(np.concatenate([head, whole]))
    if all(map(len, pieces)) and renderer.decode(np.concatenate([head, tokens[0], *pieces])) == read:
        return pieces
    whole, first = (
        np.concatenate([head, ids]).tolist() for ids in (whole, astray[0] if astray else tokens[0])
    )
    split = _first_difference(first, whole)
    tails = [shown(renderer.decode(ids[max(0, split - _TAIL) : split + _TAIL])) for ids in (first, whole)]
    part = (
        "the prompt's tokens"
        if not astray or astray[0] is tokens[0]
        else "the tokens of a trajectory's earlier turns"
    )
    raise DataError(
        f"{record.origin}: {part} are not the first tokens of prompt and completion together",
        got=f"{tails[0]} against {tails[1]}",
        expected="a boundary between tokens",
        do="Use another template, or end the prompt in a line break",
    )


def _started(renderer: Renderer, record: Record, head: np.ndarray, rest: np.ndarray) -> np.ndarray:
    """The prompt's tokens with BOS where it belongs: once, or before an empty prompt."""
    prompt = np.concatenate([head, rest])
    if renderer.mode == "plain" and renderer.start:
        prompt = np.concatenate([np.array(renderer.start, dtype=np.int32), prompt])
    while renderer.bos is not None and len(prompt) > 1 and prompt[0] == prompt[1] == renderer.bos:
        prompt = prompt[1:]
    if not len(prompt) and renderer.bos is not None:
        prompt = np.array([renderer.bos], dtype=np.int32)
    if not len(prompt):
        raise DataError(
            f"{record.origin}: the prompt is empty and the tokenizer has no BOS token",
            got="no tokens",
            expected="at least one token before the completion",
        )
    return prompt


def _parting(prompt: str, whole: str) -> str:
    split = _first_difference(prompt, whole)
    near = slice(max(0, split - 20), split + 20)
    return f"{shown(prompt[near])} against {shown(whole[near])}"


def _first_difference(left: Sequence, right: Sequence) -> int:
    differences = (k for k, (a, b) in enumerate(zip(left, right, strict=False)) if a != b)
    return next(differences, min(len(left), len(right)))
