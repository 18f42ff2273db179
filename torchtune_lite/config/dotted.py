"""Which object a dotted path means, and which objects a config may name at all.

A config from elsewhere must not be able to run just anything. It may name classes and functions of this package, of
`torch.nn`, `torch.optim`, torchao and bitsandbytes, and those of modules in the working directory. What counts is the
object that is found, since a path such as `torch.nn.os.system` leads out of an allowed package.
"""

import functools
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torchtune_lite.errors import ConfigError, did_you_mean

ALLOWED = ("torchtune_lite", "torch.nn", "torch.optim", "torchao", "bitsandbytes")
MOST_NAMES = 40  # more in a module are not listed in a message


def find(path: Any) -> Any:
    """Returns the class or function of that dotted path; `torchtune.` in front means this package.

    Raises `ConfigError` for what cannot be imported, with what the module has, and for what is not allowed.
    """
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")) or "." not in path:
        raise ConfigError(f"_component_ is {path!r}; expected a dotted path such as torch.optim.AdamW")
    if path.startswith("torchtune."):
        path = path.replace("torchtune.", "torchtune_lite.", 1)
    with _working_directory_importable():
        if not _within(path, ALLOWED) and not _own_module(path.partition(".")[0]):
            raise ConfigError(_refused(path))
        found = _walk(path)
    if not _is_component(found):
        raise ConfigError(f"'{path}' is neither a class nor a function{_contents(found)}")
    if not _trusted(_module_of(found)):
        raise ConfigError(_refused(path))
    return found


def _is_component(found: Any) -> bool:
    return inspect.isclass(found) or inspect.isroutine(found) or isinstance(found, functools.partial)


def _module_of(found: Any) -> str | None:
    return getattr(found.func if isinstance(found, functools.partial) else found, "__module__", None)


def _walk(path: str) -> Any:
    """Follows the path part by part, importing modules on the way, and never through a module that is not allowed."""
    top, *parts = path.split(".")
    try:
        found: Any = _imported(top)
    except ModuleNotFoundError as error:
        raise ConfigError(f"{top} is not installed; pip install {top}") from error
    for part in parts:
        if isinstance(found, ModuleType) and not hasattr(found, part):
            try:
                found = _imported(f"{found.__name__}.{part}")
            except ModuleNotFoundError:
                raise ConfigError(f"cannot find '{part}' in {found.__name__}{_contents(found, part)}") from None
        elif hasattr(found, part):
            found = getattr(found, part)
        else:
            raise ConfigError(f"cannot find '{part}' in {path.partition(f'.{part}')[0]}")
        if isinstance(found, ModuleType) and not _trusted(found.__name__):
            raise ConfigError(_refused(path))
    return found


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name == name:
            raise
        raise ConfigError(f"cannot import {name}: {error}") from error
    except Exception as error:
        raise ConfigError(f"cannot import {name}: {type(error).__name__}: {error}") from error


@contextmanager
def _working_directory_importable() -> Iterator[None]:
    """Adds the working directory at the end of the module search path, where it hides no installed package."""
    folder = os.getcwd()
    sys.path.append(folder)
    try:
        yield
    finally:
        sys.path.remove(folder)


def _within(name: str, packages: tuple[str, ...]) -> bool:
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _trusted(module: str | None) -> bool:
    return bool(module) and (_within(module, ALLOWED) or _own_module(module.partition(".")[0]))


def _own_module(top: str) -> bool:
    """Tells whether a top-level module lies in the working directory and is no part of an environment in it."""
    if top in sys.stdlib_module_names:
        return False
    loaded = sys.modules.get(top)
    spec = getattr(loaded, "__spec__", None) if loaded else importlib.util.find_spec(top)
    places = [spec.origin or "", *(spec.submodule_search_locations or [])] if spec else []
    here = Path.cwd().resolve()
    found = [Path(place).resolve() for place in places if place]
    return any(place.is_relative_to(here) and "site-packages" not in place.parts for place in found)


def _refused(path: str) -> str:
    return (
        f"'{path}' is not an allowed component; allowed are {', '.join(f'{each}.*' for each in ALLOWED)} "
        "and what you define in a module of the working directory"
    )


def _contents(found: Any, part: str = "") -> str:
    """Says what a module offers instead: the nearest name, and all of them where they are few."""
    if not isinstance(found, ModuleType):
        return ""
    own = found.__name__.partition(".")[0]
    defined = [
        name
        for name, each in vars(found).items()
        if _is_component(each) and (_module_of(each) or "").partition(".")[0] == own
    ]
    modules = [each.name for each in pkgutil.iter_modules(getattr(found, "__path__", []))]
    names = sorted(name for name in {*defined, *modules} if not name.startswith("_"))
    listed = f" (it has: {', '.join(names)})" if 0 < len(names) <= MOST_NAMES else ""
    return did_you_mean(part, names) + listed if part else listed
