"""Chat templates in a sandbox with a budget of work.

A chat template is a program from elsewhere. The sandbox keeps it from files and from Python's inside; the budget
keeps it from endless loops and huge texts. Each pass of a loop, each call of a macro and each character or item
that an operation makes costs one unit, and what would cost more than is left is not begun.
"""

import json
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from contextlib import contextmanager
from datetime import datetime
from functools import lru_cache, wraps
from typing import Any

from jinja2 import Template, TemplateError, nodes
from jinja2.ext import Extension, loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment, SecurityError  # type: ignore
from jinja2.utils import Namespace

BASE_WORK = 1_000_000  # units for a dialogue without texts: about a second
_WORK_PER_CHARACTER = 100  # more units for each character of the dialogue and the tools
_CALL = 10  # units of a call
_LARGE = 1_000_000  # of a number that sets a width or a count
_WIDTH = re.compile(r"\d{5,}|\*")  # in a format string
_BITS = 4096  # of a product or a power
_DEEP = ("tojson", "string", "pprint", "format", "join", "sort", "unique", "groupby", "sum", "urlencode")
_GROWING = ("replace", "indent", "join", "wordwrap", "expandtabs")


class TooMuchWork(TemplateError):
    """The template would do more than its budget allows."""

    def __init__(self) -> None:
        super().__init__(
            f"the template does too much work: more than {BASE_WORK:,} loop passes and characters made"
        )


class _Budget(threading.local):
    left = BASE_WORK

    def charge(self, units: int) -> None:
        self.left -= units
        if self.left < 0:
            raise TooMuchWork


_budget = _Budget()


@contextmanager
def _allowed(units: int):
    before, _budget.left = _budget.left, units
    try:
        yield
    finally:
        _budget.left = before


@lru_cache(maxsize=64)
def compiled_template(template: str) -> Template:
    """The template, ready to run; a jinja2 error if it cannot be read."""
    with _allowed(BASE_WORK):
        return _Environment().from_string(template)


def render_limited(template: str, variables: Mapping[str, object], size: int) -> str:
    """What the template writes; `size` is the number of characters that are given to it."""
    program = compiled_template(template)
    with _allowed(BASE_WORK + _WORK_PER_CHARACTER * size):
        return program.render(**variables)


@lru_cache(maxsize=64)
def variables_of(template: str) -> frozenset[str]:
    """The names of the variables that a template reads."""
    from jinja2 import meta

    return frozenset(meta.find_undeclared_variables(_Environment().parse(template)))


class _Environment(ImmutableSandboxedEnvironment):
    """The environment that transformers gives to chat templates, with the budget."""

    intercepted_binops = frozenset(["*", "**", "+", "%"])

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_Generation, loopcontrols], finalize=_counted
        )
        self.filters = {name: _guarded(name, function) for name, function in self.filters.items()}
        self.filters["tojson"] = _guarded("tojson", _to_json)
        self.globals.pop("lipsum")
        self.globals |= {
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
            "dict": _make_dict,
            "namespace": _Namespace,
        }

    @property
    def tick(self) -> bool:
        """One pass of a loop. The sandbox makes a method call slow, so that reading an attribute counts."""
        _budget.charge(1)
        return True

    def joined(self, *values: object) -> str:
        """The operator ~."""
        for value in values:
            _charge_value(value)
        return "".join(map(str, values))

    def concat(self, pieces: Iterable[str]) -> str:  # type: ignore[override]
        kept = []
        for piece in pieces:
            _budget.charge(len(piece))
            kept.append(piece)
        return "".join(kept)

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        try:
            tree = super()._parse(source, name, filename)
            for constant in tree.find_all(nodes.Const):
                if isinstance(constant.value, str):
                    constant.value.encode()
            return _with_ticks(tree)
        except RecursionError as error:
            raise TemplateError("expressions nested too deeply") from error
        except UnicodeEncodeError as error:
            raise TemplateError("half of a surrogate pair in a text") from error

    def call_binop(self, context: object, operator: str, left: Any, right: Any) -> Any:
        if operator == "+" and type(left) is str and type(right) is str:
            _budget.charge(len(left) + len(right))
            return left + right
        _check_operation(operator, left, right)
        result = super().call_binop(context, operator, left, right)  # type: ignore[arg-type]
        _budget.charge(_size(result))
        return result

    def call(__self, __context: object, __obj: Any, *args: Any, **kwargs: Any) -> Any:
        _budget.charge(_CALL)
        owner, name = getattr(__obj, "__self__", None), getattr(__obj, "__name__", "")
        if isinstance(owner, str):
            _check_growth(name, owner, args, kwargs)
        result = super().call(__context, __obj, *args, **kwargs)  # type: ignore[misc]
        if isinstance(result, (str, list, tuple)):
            _budget.charge(len(result))
        return result


class _Generation(Extension):
    """`{% generation %} ... {% endgeneration %}` marks what the assistant writes; here it changes nothing."""

    tags = {"generation"}  # noqa: RUF012 (jinja2 reads it)

    def parse(self, parser: Any) -> nodes.Node:
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.CallBlock(self.call_method("_written"), [], [], body).set_lineno(line)

    def _written(self, caller: Callable[[], str]) -> str:
        return caller()


class _Namespace(Namespace):
    """A namespace without names that begin with an underscore."""

    def __init__(*args: Any, **kwargs: Any) -> None:
        self, args = args[0], args[1:]
        values = dict(*args, **kwargs)
        for name in values:
            _check_name(name)
        Namespace.__init__(self, values)

    def __setitem__(self, name: str, value: Any) -> None:
        _check_name(name)
        super().__setitem__(name, value)


def _check_name(name: object) -> None:
    if isinstance(name, str) and name.startswith("_"):
        raise SecurityError(f"a namespace has no attribute {name!r}")


def _make_dict(*args: Any, **kwargs: Any) -> dict:
    return dict(*args, **kwargs)


def _raise_exception(message: str) -> None:
    raise TemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


def _to_json(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: Any = None,
    sort_keys: bool = False,
) -> str:
    """Without HTML escapes, as in transformers."""
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


# --- the budget ---


def _with_ticks(tree: nodes.Template) -> nodes.Template:
    """The syntax tree with a tick in each loop, and with a counted operator ~."""
    _count_joins(tree)
    for node in list(tree.find_all(nodes.For)):
        tick = nodes.EnvironmentAttribute("tick", lineno=node.lineno)
        node.body.insert(0, nodes.ExprStmt(tick, lineno=node.lineno))
        if node.test is not None:
            node.test = nodes.And(tick, node.test, lineno=node.lineno)
    tree.set_environment(tree.environment)  # type: ignore
    return tree


def _count_joins(node: nodes.Node) -> None:
    for name, value in list(node.iter_fields()):
        if isinstance(value, nodes.Node):
            setattr(node, name, _without_concat(value))
        elif isinstance(value, list):
            node_list = [_without_concat(item) if isinstance(item, nodes.Node) else item for item in value]
            setattr(node, name, node_list)


def _without_concat(node: nodes.Node) -> nodes.Node:
    _count_joins(node)
    if not isinstance(node, nodes.Concat):
        return node
    method = nodes.EnvironmentAttribute("joined", lineno=node.lineno)
    return nodes.Call(method, node.nodes, [], None, None, lineno=node.lineno)


def _size(value: object) -> int:
    return len(value) if isinstance(value, (str, list, tuple, dict, range)) else 1


def _charge_value(value: object) -> None:
    """The size of a value with all that is in it, as it is written."""
    if isinstance(value, (list, tuple)):
        _budget.charge(len(value))
        for item in value:
            _charge_value(item)
    elif isinstance(value, Mapping):
        _budget.charge(len(value))
        for key, item in value.items():
            _charge_value(key)
            _charge_value(item)
    else:
        _budget.charge(_size(value))


def _counted(value: object) -> object:
    """A value that is written out."""
    if not isinstance(value, str):
        _charge_value(value)
    return value


def _guarded(name: str, function: Callable) -> Callable:
    """A filter that charges what it reads and makes."""

    @wraps(function)
    def counted(*args: Any, **kwargs: Any) -> Any:
        places = (
            args[1:] if args and not isinstance(args[0], _PLAIN) else args
        )  # the first may be the context
        for value in (*places, *kwargs.values()):
            if name in _DEEP:
                _charge_value(value)
            else:
                _budget.charge(_size(value))
        if name == "join":  # the text that is between
            _budget.charge(
                _size(places[0]) * max([len(v) for v in places[1:] if isinstance(v, str)], default=0)
            )
        if places and isinstance(places[0], str):
            _check_growth(name, places[0], places[1:], kwargs)
        elif any(type(value) is int and value > _LARGE for value in (*places[1:], *kwargs.values())):
            raise TooMuchWork
        result = function(*args, **kwargs)
        _budget.charge(_size(result))
        return result

    return counted


_PLAIN = (str, int, float, list, tuple, dict, range, type(None))


def _check_growth(name: str, text: str, args: Iterable[object], kwargs: Mapping[str, object]) -> None:
    """What a method or filter of a text would make of it."""
    values = [*args, *kwargs.values()]
    _budget.charge(len(text))
    if any(type(value) is int and value > _LARGE for value in values):
        raise TooMuchWork
    if name in ("format", "format_map") and _WIDTH.search(text):
        raise TooMuchWork
    if name in _GROWING:
        widest = max(
            (
                value if type(value) is int else len(value)  # type: ignore
                for value in values
                if isinstance(value, (int, str))
            ),
            default=1,
        )
        items = sum(_size(value) for value in values if isinstance(value, (list, tuple)))
        pieces = text.count(str(values[0])) if name == "replace" and values else len(text)
        _budget.charge(len(text) * items if name == "join" else pieces * max(1, widest))
    for value in values:
        if type(value) is int and value > len(text):  # a width
            _budget.charge(value)


def _check_operation(operator: str, left: object, right: object) -> None:
    if operator == "%" and isinstance(left, str):
        if _WIDTH.search(left):
            raise TooMuchWork
        _charge_value(right)
    elif operator == "*":
        for one, other in ((left, right), (right, left)):
            if isinstance(one, (str, list, tuple)) and isinstance(other, int):
                _budget.charge(len(one) * max(other, 0))
        if isinstance(left, int) and isinstance(right, int):
            _check_bits(left.bit_length() + right.bit_length())
    elif operator == "**" and isinstance(left, int) and isinstance(right, int):
        _check_bits(left.bit_length() * max(right, 0))
    elif operator == "+" and isinstance(left, (str, list, tuple)) and isinstance(right, type(left)):
        _budget.charge(len(left) + len(right))


def _check_bits(bits: int) -> None:
    if bits > _BITS:
        raise TooMuchWork
