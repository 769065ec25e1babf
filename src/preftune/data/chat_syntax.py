"""Whether a chat template only writes the texts of turns, read off its syntax tree."""

from collections.abc import Sequence
from typing import Literal

from jinja2 import Environment, TemplateSyntaxError, nodes

OPEN, CLOSE = "\ue000", "\ue001"  # around the number of a turn, in place of its text
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


class _Unknown(Exception):
    """The template may do more with a text than write it."""


def only_writes_texts(template: str) -> bool:
    """Whether a template provably writes the texts of turns as they are or stripped, and looks at nothing
    else of them.
    """
    if OPEN in template or CLOSE in template:
        return False
    try:
        return _only_writes(Environment(extensions=["jinja2.ext.loopcontrols"]).parse(template))
    except (TemplateSyntaxError, RecursionError):
        return False


def _only_writes(tree: nodes.Template) -> bool:
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
