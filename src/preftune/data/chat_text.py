"""What a chat template writes, without running it for every dialogue where that provably changes nothing.

A template is a program that may do anything with the texts of turns. Most only write them, as they are or
stripped of white space, and decide everything else by roles and places. For such a template the text around
the turns' texts follows from the roles alone: it is had by running the template once for each sequence of
roles, with marks in place of texts. That a template is of this kind is read off its syntax tree, where the
text of a turn may stand in what is written and nowhere else. Any other template is run for every dialogue.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from jinja2 import Environment, TemplateSyntaxError, nodes
from transformers import PreTrainedTokenizerBase

from preftune.errors import DataError
from preftune.types import Message

_SKELETONS = 4096  # kept at once: dialogues have few sequences of roles
_OPEN, _CLOSE = "\ue000", "\ue001"  # around the number of a turn, in place of its text
_BEFORE, _AFTER = "\n ", " \n"  # white space around a mark, to see whether it is stripped
_STRIPPING: dict[tuple[bool, bool], Callable[[str], str]] = {
    (False, False): str,
    (True, True): str.strip,
    (True, False): str.lstrip,
    (False, True): str.rstrip,
}
_STRIPS = ("strip", "lstrip", "rstrip")
_PURE_FILTERS = {
    "trim",
    "length",
    "count",
    "upper",
    "lower",
    "capitalize",
    "title",
    "replace",
    "default",
    "d",
    "string",
    "int",
    "list",
    "first",
    "last",
    "join",
}
_PURE_FUNCTIONS = {"raise_exception", "namespace", "range"}
_TYPE_TESTS = {
    "defined",
    "undefined",
    "string",
    "none",
    "mapping",
    "iterable",
    "sequence",
}  # alike for every text

Kind = Literal["plain", "content", "text", "message", "messages"]
"""What an expression holds: nothing of the texts, the text of one turn (perhaps stripped), that with other
text around it, a turn, turns.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Skeleton:
    """The text around the turns' texts."""

    form: str  # for the operator %, with %s for each slot
    # (which turn, how white space is stripped from its text)
    slots: tuple[tuple[int, Callable[[str], str]], ...]

    def fill(self, messages: Sequence[Message]) -> str:
        return self.form % tuple([strip(messages[turn].content) for turn, strip in self.slots])


@dataclass(frozen=True, slots=True, kw_only=True)
class ChatText:
    """Writes dialogues as the template of a tokenizer does. Make it with `make_chat_text`."""

    tokenizer: PreTrainedTokenizerBase
    fixed: bool  # the text around the turns' texts follows from their roles
    _skeletons: dict[tuple[object, ...], _Skeleton | None] = field(default_factory=dict)

    def write(self, messages: Sequence[Message], generation_prompt: bool) -> str:
        """The text of some turns; a DataError if the template refuses them."""
        if self.fixed:
            key = (generation_prompt, *[message.role for message in messages])
            if key not in self._skeletons:
                if len(self._skeletons) >= _SKELETONS:
                    self._skeletons.clear()
                self._skeletons[key] = _skeleton(
                    self.tokenizer, [message.role for message in messages], generation_prompt
                )
            skeleton = self._skeletons[key]
            if skeleton is not None:
                return skeleton.fill(messages)
        return run_template(self.tokenizer, messages, generation_prompt)


def make_chat_text(tokenizer: PreTrainedTokenizerBase) -> ChatText:
    """The writer of a tokenizer's dialogues, by skeletons if its template allows it."""
    template = tokenizer.chat_template
    usual = type(tokenizer).apply_chat_template is PreTrainedTokenizerBase.apply_chat_template
    return ChatText(
        tokenizer=tokenizer, fixed=usual and isinstance(template, str) and only_writes_texts(template)
    )


def run_template(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message], generation_prompt: bool
) -> str:
    """What the template writes for some turns; a DataError if it refuses them."""
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=generation_prompt)
    except Exception as error:  # a template is a program of its own and may raise anything
        roles = ", ".join(message.role for message in messages)
        raise DataError(
            "The chat template refuses the dialogue",
            got=f"{type(error).__name__}: {error} (turns: {roles})",
            expected="turns that the template allows",
        ) from error
    return str(text)


# --- skeletons ---


def _skeleton(
    tokenizer: PreTrainedTokenizerBase, roles: Sequence[str], generation_prompt: bool
) -> _Skeleton | None:
    """What the template writes for these roles; None if it refuses them, or writes what it must not."""
    marks = [f"{_OPEN}{turn}{_CLOSE}" for turn in range(len(roles))]

    def written(texts: Iterable[str]) -> str:
        turns = [Message(role=role, content=text) for role, text in zip(roles, texts, strict=True)]
        return run_template(tokenizer, turns, generation_prompt)

    try:
        bare, padded = written(marks), written(f"{_BEFORE}{mark}{_AFTER}" for mark in marks)
    except DataError:
        return None
    first, *rest = bare.split(_OPEN)
    form, slots = [first], []
    place = len(first)  # in the padded text
    if not padded.startswith(first):
        return None
    for piece in rest:
        turn, _, text = piece.partition(_CLOSE)
        mark = f"{_OPEN}{turn}{_CLOSE}"
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
    return _Skeleton(form=whole, slots=tuple(slots)) if place == len(padded) else None


# --- the proof ---


class _Unknown(Exception):
    """The template may do more with a text than write it."""


def only_writes_texts(template: str) -> bool:
    """Whether a template provably writes the texts of turns as they are or stripped, and looks at nothing
    else of them.
    """
    if _OPEN in template or _CLOSE in template:
        return False
    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template)
    except TemplateSyntaxError:
        return False
    names: dict[str, Kind] = {"messages": "messages"}
    try:
        while True:  # what a name may hold anywhere: until no assignment adds to it
            before = dict(names)
            _check(tree.body, names)
            if names == before:
                return True
    except _Unknown:
        return False


def _check(statements: Sequence[nodes.Node], names: dict[str, Kind]) -> None:
    for node in statements:
        if isinstance(node, nodes.Output):
            for part in node.nodes:
                if _kind(part, names) not in ("plain", "content", "text"):
                    raise _Unknown
        elif isinstance(node, nodes.If):
            _plain(names, node.test)
            _check([*node.body, *node.elif_, *node.else_], names)
        elif isinstance(node, nodes.For):
            _check_loop(node, names)
        elif isinstance(node, nodes.Assign) and isinstance(node.target, nodes.Name):
            _hold(names, node.target.name, _kind(node.node, names))
        elif (isinstance(node, nodes.Assign) and isinstance(node.target, nodes.NSRef)) or isinstance(
            node, nodes.ExprStmt
        ):
            _plain(names, node.node)
        elif not isinstance(node, nodes.Break | nodes.Continue):
            raise _Unknown


def _check_loop(node: nodes.For, names: dict[str, Kind]) -> None:
    over = _kind(node.iter, names)
    if not isinstance(node.target, nodes.Name) or node.recursive or over not in ("messages", "plain"):
        raise _Unknown
    _hold(names, node.target.name, "message" if over == "messages" else "plain")
    if node.test is not None:
        _plain(names, node.test)
    _check([*node.body, *node.else_], names)


def _hold(names: dict[str, Kind], name: str, kind: Kind) -> None:
    """A name that holds different things at different places is taken for the text that it may be, or it is
    not known.
    """
    known = names.setdefault(name, kind)
    if known != kind:
        if {known, kind} - {"plain", "content", "text"} or name == "loop":
            raise _Unknown
        names[name] = "text"


def _plain(names: dict[str, Kind], *expressions: nodes.Node | None) -> None:
    if any(node is not None and _kind(node, names) != "plain" for node in expressions):
        raise _Unknown


def _kind(node: nodes.Node, names: dict[str, Kind]) -> Kind:
    """What an expression holds. Whatever is not listed must hold nothing of the texts, down to its last part."""
    if isinstance(node, nodes.Const | nodes.TemplateData):
        return "plain"
    if isinstance(node, nodes.Name):
        return names.get(node.name, "plain")
    if isinstance(node, nodes.Getitem | nodes.Getattr):
        return _kind_of_part(node, names)
    if isinstance(node, nodes.Filter):
        return _kind_of_filtered(node, names)
    if isinstance(node, nodes.Call):
        return _kind_of_call(node, names)
    if isinstance(node, nodes.Test) and node.name in _TYPE_TESTS and not (node.args or node.kwargs):
        _kind(node.node, names)
        return "plain"
    if isinstance(node, nodes.Add | nodes.Concat):
        parts = node.nodes if isinstance(node, nodes.Concat) else [node.left, node.right]
        return _joined([_kind(part, names) for part in parts], alone=False)
    if isinstance(node, nodes.CondExpr) and node.expr2 is not None:
        _plain(names, node.test)
        return _joined([_kind(node.expr1, names), _kind(node.expr2, names)], alone=True)
    _plain(names, *node.iter_child_nodes())
    return "plain"


def _joined(kinds: Sequence[Kind], alone: bool) -> Kind:
    """Of several put together, or of one out of several."""
    if set(kinds) == {"plain"}:
        return "plain"
    if set(kinds) - {"plain", "content", "text"}:
        raise _Unknown
    return "content" if alone and set(kinds) == {"content"} else "text"


def _kind_of_part(node: nodes.Getitem | nodes.Getattr, names: dict[str, Kind]) -> Kind:
    base = _kind(node.node, names)
    if isinstance(node, nodes.Getattr):
        key: object = node.attr
    else:
        key = node.arg.value if isinstance(node.arg, nodes.Const) else None
        for part in node.arg.iter_child_nodes() if isinstance(node.arg, nodes.Slice) else [node.arg]:
            _plain(names, part)
    if base == "message" and isinstance(key, str) and key not in dir(dict):
        return "content" if key == "content" else "plain"
    if base == "messages" and isinstance(node, nodes.Getitem):
        return "messages" if isinstance(node.arg, nodes.Slice) else "message"
    if base != "plain" or key in ("previtem", "nextitem"):  # of a loop over turns
        raise _Unknown
    return "plain"


def _kind_of_filtered(node: nodes.Filter, names: dict[str, Kind]) -> Kind:
    if node.node is None or node.dyn_args or node.dyn_kwargs or node.name not in _PURE_FILTERS:
        raise _Unknown
    kind = _kind(node.node, names)
    _plain(names, *node.args, *node.kwargs)
    if kind == "plain":
        return "plain"
    if node.args or node.kwargs:
        raise _Unknown
    if kind == "content" and node.name in ("trim", "string"):
        return "content"
    if kind == "messages" and node.name in ("length", "count"):
        return "plain"
    if kind == "messages" and node.name in ("first", "last"):
        return "message"
    raise _Unknown


def _kind_of_call(node: nodes.Call, names: dict[str, Kind]) -> Kind:
    if node.dyn_args or node.dyn_kwargs:
        raise _Unknown
    _plain(names, *node.args, *node.kwargs)
    if isinstance(node.node, nodes.Name) and node.node.name in _PURE_FUNCTIONS:
        return "plain"
    if isinstance(node.node, nodes.Getattr):
        base = _kind(node.node.node, names)
        if base == "content" and node.node.attr in _STRIPS and not (node.args or node.kwargs):
            return "content"
        if base == "plain":
            return "plain"
    raise _Unknown
