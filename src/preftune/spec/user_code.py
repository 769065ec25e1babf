"""From a name such as `module:attribute` to the user's own code."""

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from preftune.errors import ConfigError, shown
from preftune.spec.terms import suggestion


def load_attribute(name: str, what: str, example: str) -> Any:
    """What `module:attribute` or `path/to/file.py:attribute` names; every mistake is one sentence."""
    source, _, attribute = name.rpartition(":")
    if not source or not attribute:
        raise ConfigError(f"The name of the {what} is not complete", got=repr(name), expected=f"'{example}'")
    whole = f"{what.capitalize()} {name!r}"
    module = (
        _load_file(Path(source).expanduser(), whole)
        if source.endswith(".py")
        else _load_module(source, whole)
    )
    try:
        return getattr(module, attribute)
    except AttributeError:
        raise ConfigError(
            f"{whole} cannot be found: {source!r} has no attribute {attribute!r}",
            do=suggestion(attribute, vars(module)),
        ) from None


def _load_module(source: str, whole: str) -> ModuleType:
    try:
        if all(part.isidentifier() for part in source.split(".")):
            return importlib.import_module(source)
    except ModuleNotFoundError as error:
        # A module that exists may itself import one that does not: that is another mistake.
        if not f"{source}.".startswith(f"{error.name}."):
            raise _import_raised(whole, source, error) from error
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        raise _import_raised(whole, source, error) from error
    raise ConfigError(
        f"{whole} cannot be found: there is no module {source!r}",
        do="Install the module, or give the path of its file: 'path/to/file.py:NAME'",
    )


def _load_file(path: Path, whole: str) -> ModuleType:
    if not path.is_file():
        raise ConfigError(f"{whole} cannot be found: there is no file {shown(str(path))}")
    module_name = f"preftune_user_file_{path.stem}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # holds for any path that ends in .py
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module  # dataclasses and pickle look a class's module up there
    try:
        spec.loader.exec_module(module)
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        del sys.modules[module_name]
        raise _import_raised(whole, str(path), error) from error
    return module


def _import_raised(whole: str, source: str, error: BaseException) -> ConfigError:
    return ConfigError(f"{whole} cannot be used: importing {source!r} raised {shown(error, 200)}")
