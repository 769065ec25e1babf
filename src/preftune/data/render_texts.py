"""The texts of a record: the prompt, and each completion in stages, as the template or plain text has them."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain, pairwise
from typing import Literal

from transformers import PreTrainedTokenizerBase

from preftune.data.chat_proof import check_answer, check_prompt, check_tools
from preftune.data.chat_run import PLAIN, ChatContext, check_row_variables
from preftune.data.chat_text import AnswerForm, ChatText
from preftune.data.turn_end import NO_END, Markup, TurnEnd, last_special, refuse_rendered
from preftune.errors import DataError, shown
from preftune.types import Completion, Message, Record

_MARKS = {"system": "System", "user": "Human", "assistant": "Assistant"}  # the HH layout
_OTHER_TEMPLATE = (
    "Use a template that keeps what it wrote (--rows.chat_template; docs/data.md lists those that come with "
    "preftune), or the option template: plain"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Texts:
    """What is written for a record: `head` and then, in full from the head's end, the prompt and the
    completions.

    Of each completion: the text up to the end of its first answer, up to the beginning of its second, up to
    the end of that, and so on. Each continues where the one before ends; what the assistant writes and what it
    reads take turns. The head's tokens are the first of each whole text, whatever follows.
    """

    head: str
    prompt: str
    completions: tuple[tuple[str, ...], ...]
    scored: tuple[tuple[bool, ...] | None, ...]  # of each stage; None where all answers are scored
    needs_end: tuple[bool, ...]  # whether the end-of-sequence token is added
    thoughtless: int = 0  # earlier answers in the prompt whose reasoning the template leaves out

    @property
    def flat(self) -> list[str]:
        return [self.head, self.prompt, *chain.from_iterable(self.completions)]

    @property
    def count(self) -> int:
        """How many texts `flat` has."""
        return 2 + sum(map(len, self.completions))


@dataclass(frozen=True, slots=True, kw_only=True)
class Writing:
    """How records become texts."""

    tokenizer: PreTrainedTokenizerBase
    mode: Literal["chat", "plain"]
    chat: ChatText
    ends: tuple[TurnEnd, ...]  # of an answer; the first is that of a text
    markup: Markup | None  # what an already rendered prompt would hold
    moves_blanks: bool  # whether blanks at the end of a plain prompt go to the completions

    def texts(self, record: Record) -> Texts:
        """The texts of a record; a DataError if they cannot be written, or not whole."""
        return _chat_texts(self, record) if self.mode == "chat" else _plain_texts(self, record)

    def between(self, record: Record, trajectory: tuple[Message, ...]) -> str:
        """What the template writes from the end of a trajectory's last answer up to where the next one begins; a
        DataError if it does not put the turns in between behind what it wrote.
        """
        turns = _prompt_of(record)
        context = ChatContext.of(record)
        prompt = self.chat.write(turns, True, context)
        stages, _ = _stages(self, prompt, turns, (*trajectory, _NEXT), context)
        return stages[-2][len(stages[-3]) :]


# --- chat ---

_NEXT = Message(role="assistant", content="a")  # an answer that is yet to be written


def _prompt_of(record: Record) -> tuple[Message, ...]:
    prompt = record.prompt
    return (Message(role="user", content=prompt),) if isinstance(prompt, str) else prompt


def _chat_texts(writing: Writing, record: Record) -> Texts:
    turns = _prompt_of(record)
    if writing.markup is not None:
        refuse_rendered(writing.markup, turns)
    context = ChatContext.of(record)
    before, proven = writing.chat.write_proven(turns, True, context)
    thoughtless = 0
    if not proven:
        _refuse_weights(turns)
        thoughtless = check_prompt(turns, before)
    if context is not PLAIN:
        if record.chat_template_kwargs:
            check_row_variables(writing.tokenizer, record.chat_template_kwargs)
        if record.tools:
            check_tools(record.template_columns()["tools"], before)  # type: ignore[arg-type]
    completions, scored, needs_end = [], [], []
    known = _known_answer(writing, turns, context)
    for k, completion in enumerate(record.completions):
        ended = not record.ended or record.ended[k]
        if isinstance(completion, str) and known is not None:
            form, after, end = known
            stages, flags = [f"{before}{form.before}{form.strip(completion)}{after}"], None
        elif isinstance(completion, str):
            answer = Message(role="assistant", content=completion)
            text, end = _answered(writing, before, (*turns, answer), context)
            stages, flags = [text], None
        else:
            stages, end = _stages(writing, before, turns, completion, context)
            flags = _flags(completion)
        if not ended:
            stages[-1] = stages[-1].removesuffix(end.text)
        completions.append(tuple(stages))
        scored.append(flags)
        needs_end.append(ended and not end.text)
    return Texts(
        head="",
        prompt=before,
        completions=tuple(completions),
        scored=tuple(scored),
        needs_end=tuple(needs_end),
        thoughtless=thoughtless,
    )


def _known_answer(
    writing: Writing, turns: tuple[Message, ...], context: ChatContext
) -> tuple[AnswerForm, str, TurnEnd] | None:
    """(the form of an answer of text, what follows its text up to the end of the turn, that end) where these do
    not depend on the answer; None where `_answered` must look at each.
    """
    form = writing.chat.answer_form(turns, context)
    if form is None:
        return None
    for end in writing.ends:
        whole = end.text + end.after
        if end is NO_END or len(whole) > len(form.after):
            return None  # the answer's own text might be a part of such an end
        if form.after.endswith(whole):
            return form, form.after.removesuffix(end.after), end
    return None


def _answered(
    writing: Writing, before: str, turns: tuple[Message, ...], context: ChatContext
) -> tuple[str, TurnEnd]:
    """(the text of turns that end with an answer, up to the end of the turn; that end); `before` is what the
    answer follows.
    """
    whole, proven = writing.chat.write_proven(turns, False, context)
    end = next((one for one in writing.ends if whole.endswith(one.text + one.after)), None)
    if end is None:
        end = last_special(writing.tokenizer, whole)
    starts = whole.startswith(before)
    if starts and end is NO_END:
        raise DataError(
            "The chat template does not end the answer",
            got=shown(whole[-60:]),
            expected="the end of the turn that the template writes after other answers",
            do=_OTHER_TEMPLATE,
        )
    if not starts or len(whole) < len(before) + len(end.text + end.after):
        raise DataError(
            "The chat template writes the prompt differently when the answer follows",
            got=_parting(before, whole),
            expected="the prompt's text, the answer, the end of the turn",
            do=_OTHER_TEMPLATE,
        )
    text = whole.removesuffix(end.after)
    if not proven:
        check_answer(turns[-1], text[len(before) :])
    return text, end


def _stages(
    writing: Writing,
    prompt: str,
    turns: tuple[Message, ...],
    trajectory: tuple[Message, ...],
    context: ChatContext,
) -> tuple[list[str], TurnEnd]:
    """(where each answer of some turns begins and ends, the last end), proven by writing the dialogue turn by
    turn.
    """
    if len(trajectory) > 1 and not writing.ends[0].text:
        raise DataError(
            "The chat template has no end-of-turn token, so the answers of a trajectory have no end",
            got=f"a trajectory of {len(trajectory)} turns",
            expected="a template that ends each answer",
            do="Use another template, or give each answer a separate row",
        )
    stages, start, silent, end = [], prompt, "", writing.ends[0]
    for k, turn in enumerate(trajectory):
        so_far = (*turns, *trajectory[: k + 1])
        if turn.role == "assistant":
            text, end = _answered(writing, start, so_far, context)
            stages += [start] * (k > 0) + [text]
            silent = text + end.after
            continue
        written, proven = writing.chat.write_proven(so_far, False, context)
        if len(written) <= len(silent):
            raise DataError(
                "The chat template leaves a turn out",
                got=f"{turn.role}: {shown(turn.content, 40)}",
                expected="a template that writes every turn of a trajectory",
                do="Use another template",
            )
        if not proven:
            check_prompt((turn,), written, len(so_far))
        silent, start = written, writing.chat.write(so_far, True, context)
    for shorter, longer in pairwise(stages):
        if not longer.startswith(shorter):
            raise DataError(
                "The chat template writes a turn of a trajectory differently when others follow",
                got=_parting(shorter, longer),
                expected="the same text, and more after it",
                do=f"{_OTHER_TEMPLATE}, or give each answer a separate row",
            )
    return stages, end


def _flags(turns: tuple[Message, ...]) -> tuple[bool, ...] | None:
    """Which of an answer's stages are scored; None if all answers are."""
    _refuse_weights([turn for turn in turns if turn.role != "assistant"])
    weights = [turn.weight for turn in turns if turn.role == "assistant"]
    if all(weight != 0 for weight in weights):
        return None
    if not any(weight != 0 for weight in weights):
        raise DataError(
            "No turn of the completion is scored",
            got="weight 0 in each of its answers",
            expected="an answer without weight 0",
            do="Remove the weights, or the row",
        )
    flags = [False] * (2 * len(weights) - 1)
    flags[::2] = [weight != 0 for weight in weights]
    return tuple(flags)


def _refuse_weights(turns: Sequence[Message]) -> None:
    """Nothing of a prompt is scored, nor of what a user or a tool writes: a weight above 0 would have no effect."""
    for turn in turns:
        if turn.weight:
            raise DataError(
                "A turn that is not scored has a weight",
                got=f"weight {turn.weight:g} of a turn of the {turn.role}: {shown(turn.content, 40)}",
                expected="weights above 0 on answers of the completion alone",
                do="Remove the weight, or set it to 0",
            )


def _parting(prompt: str, whole: str) -> str:
    pairs = enumerate(zip(prompt, whole, strict=False))
    split = next((k for k, (a, b) in pairs if a != b), min(len(prompt), len(whole)))
    near = slice(max(0, split - 20), split + 20)
    return f"{shown(prompt[near])} against {shown(whole[near])}"


# --- plain text ---


def _plain_texts(writing: Writing, record: Record) -> Texts:
    _refuse_chat_data(record)
    prompt, blank = (
        (record.prompt, "") if isinstance(record.prompt, str) else (transcript(record.prompt), " ")
    )
    if writing.moves_blanks and prompt.endswith(" ") and prompt.strip():
        kept = prompt.rstrip(" ")
        prompt, blank = kept, prompt[len(kept) :]
    ended = record.ended or (True,) * len(record.completions)
    return Texts(
        head="",
        prompt=prompt,
        completions=tuple((prompt + blank + _plain_answer(text),) for text in record.completions),
        scored=(None,) * len(record.completions),
        needs_end=tuple(ended),
    )


def _plain_answer(completion: Completion) -> str:
    if isinstance(completion, str):
        return completion
    if len(completion) > 1:
        raise DataError(
            "A trajectory needs a chat template",
            got="plain text",
            expected="a tokenizer with a chat template",
            do="Use the option template: chat",
        )
    _flags(completion)
    return completion[0].content  # type: ignore


def _refuse_chat_data(record: Record) -> None:
    """Plain text has no place for what only a template can write."""
    names = [name for name in ("tools", "chat_template_kwargs") if getattr(record, name)]
    for item in (record.prompt, *record.completions):
        for turn in () if isinstance(item, str) else item:
            names += ["tool_calls"] if turn.tool_calls else []
            names += ["reasoning_content"] if turn.reasoning else []
    if names:
        raise DataError(
            f"Plain text has no place for {names[0]}",
            got="plain text",
            expected="a tokenizer with a chat template",
            do="Use the option template: chat",
        )


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
