"""Which object a dotted path means; `trust` says which objects a config may name at all.

What counts is the object that is found, since a path such as `torch.nn.os.system` leads out of an allowed package.
"""

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Annotated, Any

from torchtune_lite.config import trust
from torchtune_lite.config.unsupported import unserved_family
from torchtune_lite.errors import ConfigError, did_you_mean
from torchtune_lite.tracebacks import users_place

DottedPath = Annotated[str, "dotted path"]
"""The annotation of an argument whose text names an object: checked with the config as a `_component_` is."""

INSTEAD = {"bitsandbytes": "torchtune_lite.optim.PagedAdamW keeps its state off the device without it"}
MOST_NAMES = 40  # more in a module are not listed in a message
MODELS = "torchtune_lite.models."
TOKENIZERS = "torchtune.modules.transforms.tokenizers."


def find(path: Any) -> Any:
    """Returns the class or function of that dotted path; `torchtune.` in front means this package.

    Raises `ConfigError` for what cannot be imported, with what the module has, and for what is not allowed.
    """
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")) or "." not in path:
        raise ConfigError(f"{path!r} is no dotted path such as torch.optim.AdamW")
    given, path = path, _ours(path)
    if path.startswith(MODELS) and (problem := unserved_family(path.removeprefix(MODELS).partition(".")[0])):
        raise ConfigError(f"'{given}': {problem}")
    with _own_modules_importable():
        if not trust.may_import(path):
            raise ConfigError(_refused(path))
        found = _walk(path)
        if not _is_component(found):
            raise ConfigError(f"'{path}' is neither a class nor a function{_contents(found)}")
        if not trust.names(path) and not trust.module(_module_of(found)):
            raise ConfigError(_refused(path))
    return found


def _ours(path: str) -> str:
    """Puts this package in the place of `torchtune.`, and of the module of torchtune that stands elsewhere here."""
    if path.startswith(TOKENIZERS):
        return path.replace(TOKENIZERS, "torchtune_lite.data.", 1)
    return path.replace("torchtune.", "torchtune_lite.", 1) if path.startswith("torchtune.") else path


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
        if error.name != top:
            raise
        instead = f" ({INSTEAD[top]})" if top in INSTEAD else ""
        raise ConfigError(f"{top} is not installed; pip install {top}{instead}") from error
    for part in parts:
        if isinstance(found, ModuleType) and not hasattr(found, part):
            name = f"{found.__name__}.{part}"
            if not trust.names(path) and not trust.module(name) and trust.spec(name):
                raise ConfigError(_refused(path))
            try:
                found = _imported(name)
            except ModuleNotFoundError as error:
                if error.name != name:
                    raise
                raise ConfigError(f"cannot find '{part}' in {found.__name__}{_contents(found, part)}") from None
        elif hasattr(found, part):
            found = getattr(found, part)
        else:
            raise ConfigError(f"cannot find '{part}' in {path.partition(f'.{part}')[0]}")
        if isinstance(found, ModuleType) and not trust.names(path) and not trust.module(found.__name__):
            raise ConfigError(_refused(path))
    return found


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        if users_place(error) or (isinstance(error, ModuleNotFoundError) and error.name == name):
            raise
        raise ConfigError(f"cannot import {name}: {type(error).__name__}: {error}") from error


@contextmanager
def _own_modules_importable() -> Iterator[None]:
    """Adds the user's folders at the end of the module search path, where they hide no installed package."""
    folders = [str(each) for each in trust.folders() if str(each) not in sys.path]
    sys.path.extend(folders)
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(folder)


def _refused(path: str) -> str:
    top = path.partition(".")[0]
    known = {each.partition(".")[0] for each in trust.ALLOWED}
    instead = "" if top in known or top in sys.stdlib_module_names else f"; to trust it, add {trust.OPTION} '{top}.*'"
    return (
        f"'{path}' is not an allowed component; allowed are {', '.join(f'{each}.*' for each in trust.ALLOWED)} "
        f"and what you define in a module of the working directory{instead}"
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
