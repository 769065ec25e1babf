"""What a chat template writes, without running it for every dialogue where that provably changes nothing.

A template is a program that may do anything with the texts of turns. Most only write them, as they are or
stripped of white space, and decide everything else by roles and places. For such a template the text around
the turns' texts follows from the roles alone: it is had by running the template once for each sequence of
roles, with marks in place of texts. That a template is of this kind is read off its syntax tree, where the
text of a turn may be in what is written and nowhere else. Any other template is run for every dialogue.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from transformers import PreTrainedTokenizerBase

from preftune.data.chat_run import PLAIN, CallShape, ChatContext, call_shape, is_usual, run_template
from preftune.data.chat_syntax import CLOSE, OPEN, only_writes_texts
from preftune.errors import DataError
from preftune.types import Message

_SKELETONS = 4096  # kept at once: dialogues have few sequences of roles
_BEFORE, _AFTER = "\n ", " \n"  # white space around a mark, to see whether it is stripped
_STRIPPING: dict[tuple[bool, bool], Callable[[str], str]] = {
    (False, False): str,
    (True, True): str.strip,
    (True, False): str.lstrip,
    (False, True): str.rstrip,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Skeleton:
    """The text around the turns' texts."""

    form: str  # for the operator %, with %s for each slot
    # (which turn, how white space is stripped from its text)
    slots: tuple[tuple[int, Callable[[str], str]], ...]
    left_out: bool  # whether the template does not write the text of some turn

    def fill(self, messages: Sequence[Message]) -> str:
        return self.form % tuple([strip(messages[turn].content) for turn, strip in self.slots])


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerForm:
    """What a template writes for an answer of text after a prompt of some roles: the same around every answer."""

    before: str  # between the prompt's text and the answer's
    strip: Callable[[str], str]  # how white space is stripped from the answer's text
    after: str  # behind the answer's text


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kept:
    """What is known of some roles in one context, whatever the turns contain."""

    skeletons: dict[tuple[object, ...], _Skeleton | None] = field(default_factory=dict)
    answers: dict[tuple[object, ...], AnswerForm | None] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatText:
    """Writes dialogues as the template of a tokenizer does. Make it with `make_chat_text`."""

    tokenizer: PreTrainedTokenizerBase
    fixed: bool  # the text around the turns' texts follows from their roles
    shape: CallShape  # how the template wants tool calls
    defaults: Mapping[str, object]  # variables for the template that rows may override
    _kept: _Kept = field(default_factory=_Kept)

    def write(
        self, messages: Sequence[Message], generation_prompt: bool, context: ChatContext = PLAIN
    ) -> str:
        """The text of some turns; a DataError if the template refuses them."""
        return self.write_proven(messages, generation_prompt, context)[0]

    def write_proven(
        self, messages: Sequence[Message], generation_prompt: bool, context: ChatContext = PLAIN
    ) -> tuple[str, bool]:
        """(the text of some turns, whether it is proven that every word of theirs is in it)"""
        if self.fixed and not any([message.extras for message in messages]):
            skeleton = self._known([message.role for message in messages], generation_prompt, context)
            if skeleton is not None:
                return skeleton.fill(messages), not skeleton.left_out
        return self._run(messages, generation_prompt, context), False

    def answer_form(self, messages: Sequence[Message], context: ChatContext = PLAIN) -> AnswerForm | None:
        """What is around an answer of text to some turns; None where that depends on what the turns contain."""
        if not self.fixed or any([message.extras for message in messages]):
            return None
        roles = [message.role for message in messages]
        key = (_hashable(context), *roles)
        answers = self._kept.answers
        if key not in answers:
            if len(answers) >= _SKELETONS:
                answers.clear()
            prompt = self._known(roles, True, context)
            whole = self._known([*roles, "assistant"], False, context)
            answers[key] = _answer_form(prompt, whole, len(roles))
        return answers[key]

    def _known(self, roles: Sequence[str], generation_prompt: bool, context: ChatContext) -> _Skeleton | None:
        key = (generation_prompt, _hashable(context), *roles)
        skeletons = self._kept.skeletons
        if key not in skeletons:
            if len(skeletons) >= _SKELETONS:
                skeletons.clear()
            skeletons[key] = self._skeleton(roles, generation_prompt, context)
        return skeletons[key]

    def _run(self, messages: Sequence[Message], generation_prompt: bool, context: ChatContext) -> str:
        return run_template(self.tokenizer, messages, generation_prompt, context, self.shape, self.defaults)

    def _skeleton(
        self, roles: Sequence[str], generation_prompt: bool, context: ChatContext
    ) -> _Skeleton | None:
        def written(texts: Iterable[str]) -> str:
            turns = [Message(role=role, content=text) for role, text in zip(roles, texts, strict=True)]
            return self._run(turns, generation_prompt, context)

        return _skeleton(written, len(roles))


def make_chat_text(
    tokenizer: PreTrainedTokenizerBase, defaults: Mapping[str, object] | None = None
) -> ChatText:
    """The writer of a tokenizer's dialogues, by skeletons if its template allows it."""
    template, defaults = tokenizer.chat_template, defaults or {}
    return ChatText(
        tokenizer=tokenizer,
        fixed=is_usual(tokenizer) and isinstance(template, str) and only_writes_texts(template),
        shape=call_shape(tokenizer, defaults),
        defaults=defaults,
    )


# --- skeletons ---


def _hashable(context: ChatContext) -> ChatContext | None:
    """The context as part of a key; None for the plain one, which is quicker to look up."""
    return None if context is PLAIN else context


def _answer_form(prompt: _Skeleton | None, whole: _Skeleton | None, place: int) -> AnswerForm | None:
    """The part of `whole` behind `prompt`, if it holds the text of turn `place` once and nothing else that varies."""
    if prompt is None or whole is None or whole.left_out:
        return None
    if not whole.form.startswith(prompt.form) or whole.slots[:-1] != prompt.slots:
        return None
    turn, strip = whole.slots[-1]
    around = (whole.form[len(prompt.form) :] % OPEN).split(OPEN)
    if turn != place or len(around) != 2:
        return None
    return AnswerForm(before=around[0], strip=strip, after=around[1])


def _skeleton(written: Callable[[Iterable[str]], str], count: int) -> _Skeleton | None:
    """What the template writes for some roles; None if it refuses them, or writes what it must not."""
    marks = [f"{OPEN}{turn}{CLOSE}" for turn in range(count)]
    try:
        bare, padded = written(marks), written(f"{_BEFORE}{mark}{_AFTER}" for mark in marks)
    except DataError:
        return None
    first, *rest = bare.split(OPEN)
    form, slots = [first], []
    place = len(first)  # in the padded text
    if not padded.startswith(first):
        return None
    for piece in rest:
        turn, _, text = piece.partition(CLOSE)
        mark = f"{OPEN}{turn}{CLOSE}"
        left = padded.startswith(mark, place)
        place += 0 if left else len(_BEFORE)
        right = not padded.startswith(f"{mark}{_AFTER}{text}", place)
        whole = f"{mark}{'' if right else _AFTER}{text}"
        if not padded.startswith(whole, place):
            return None
        place += len(whole)
        form.append(text)
        slots.append((int(turn), _STRIPPING[left, right]))
    whole = "%s".join(text.replace("%", "%%") for text in form)
    left_out = len({turn for turn, _ in slots}) < count
    return _Skeleton(form=whole, slots=tuple(slots), left_out=left_out) if place == len(padded) else None
