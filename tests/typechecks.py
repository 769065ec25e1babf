"""Every call of our own functions is checked against its annotations: by beartype, and by jaxtyping where
they speak of arrays.

jaxtyping's import hook puts `jaxtyping.jaxtyped` before every function, and that costs each call some twenty
times what beartype
does: nearly half of the suite's time, most of it for functions without an array. These get beartype alone.
"""

import dataclasses
import functools
import inspect
from collections.abc import Callable
from typing import Any

import jaxtyping

_with_shapes: Callable[..., Any] = jaxtyping.jaxtyped


def checked(thing: Any = None, *, typechecker: Callable[[Any], Any]) -> Any:
    """In place of `jaxtyping.jaxtyped`: the same for functions with arrays in their annotations, and the
    checker for others.

    Either is off while `jaxtyping.config.jaxtyping_disable` is set.
    """
    if thing is None:
        return lambda one: checked(one, typechecker=typechecker)
    if inspect.isclass(thing):
        if dataclasses.is_dataclass(thing):
            thing.__init__ = checked(thing.__init__, typechecker=typechecker)
        return thing
    if any("jaxtyping." in str(annotation) for annotation in inspect.get_annotations(thing).values()):
        return _with_shapes(thing, typechecker=typechecker)
    typed = typechecker(thing)

    @functools.wraps(thing)
    def either(*args: Any, **kwargs: Any) -> Any:
        return (thing if jaxtyping.config.jaxtyping_disable else typed)(*args, **kwargs)

    return thing if typed is thing else either


def check_cheaply() -> None:
    """Before anything of the package is imported."""
    jaxtyping.jaxtyped = checked
