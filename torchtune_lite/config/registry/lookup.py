"""The lookup of dotted paths; `offered` and `trust` decide which objects a config may name.

A component is an attribute of a module, never of an object, and must be at home where the path says: a path such as
`own.os.system`, or `own.system` where that is imported, leads out of what is trusted.
"""

import functools
import importlib
import inspect
import pkgutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from types import ModuleType
from typing import Annotated, Any

from torchtune_lite.config.registry import offered as registry
from torchtune_lite.config.registry import trust
from torchtune_lite.config.unsupported import unserved_family
from torchtune_lite.errors import ConfigError, did_you_mean
from torchtune_lite.tracebacks import users_place

DottedPath = Annotated[str, "dotted path"]
"""The annotation of an argument whose text names an object: checked with the config as a `_component_` is."""

INSTEAD = {"bitsandbytes": "torchtune_lite.optim.PagedAdamW keeps its state off the device without it"}
MOST_NAMES = 40  # more in a module are not listed in a message


def find(path: Any) -> Any:
    """Return the class or function of that dotted path; `torchtune.` in front means this package.

    Raise `ConfigError` for what cannot be imported, with what the module has, and for what is not allowed.
    """
    if not isinstance(path, str) or not all(part.isidentifier() for part in path.split(".")) or "." not in path:
        raise ConfigError(f"{path!r} is not a dotted path such as torch.optim.AdamW")
    given, path = path, registry.translated(path)
    module, _, name = path.rpartition(".")
    package, _, family = module.rpartition(".")
    if package == registry.FAMILIES and (problem := unserved_family(family)):
        raise ConfigError(f"'{given}': {problem}")
    if registry.has(module) and not trust.names(path) and not trust.in_package(module):
        return _offered(path, module, name)
    with _own_modules_importable():
        if trust.names(path):
            return _component(_walk(path), path)
        if not trust.may_import(path.partition(".")[0]):
            raise ConfigError(_refused(path))
        found = _component(_walk(path), path)
        if not _is_at_home(found):
            raise ConfigError(_refused(path))
    return found


def _offered(path: str, module: str, name: str) -> Any:
    """Return what a module of the registry offers by that name."""
    top = module.partition(".")[0]
    try:
        _imported(top)
    except ModuleNotFoundError as error:
        instead = f" ({INSTEAD[top]})" if top in INSTEAD else ""
        raise ConfigError(f"{top} is not installed; pip install {top}{instead}") from error
    try:
        found = _imported(module)
    except ModuleNotFoundError as error:
        raise ConfigError(f"the installed {top} has no {module}") from error
    names = registry.offered_names(found)
    if name in names:
        return getattr(found, name)
    problem = f"'{name}' of {module} is not an allowed component"
    if not hasattr(found, name):
        problem = f"cannot find '{name}' in {module}"
        if not did_you_mean(name, names) and (nearest := did_you_mean(path, registry.elsewhere(path))):
            raise ConfigError(f"{problem}{nearest}")
    raise ConfigError(f"{problem}{_listed(name, names)}")


def _is_component(found: Any) -> bool:
    return inspect.isclass(found) or inspect.isroutine(found) or isinstance(found, functools.partial)


def _component(found: Any, path: str) -> Any:
    if not _is_component(found):
        raise ConfigError(f"'{path}' is neither a class nor a function{_contents(found)}")
    return found


def _module_of(found: Any) -> str | None:
    return getattr(found.func if isinstance(found, functools.partial) else found, "__module__", None)


def _is_at_home(found: Any) -> bool:
    """Return whether a module that is trusted defines an object, or makes a `partial` of one or of a builder."""
    return trust.module(_module_of(found)) or registry.is_builder(getattr(found, "func", found))


def _walk(path: str) -> Any:
    """Follow the path part by part, importing modules on the way.

    Only a path that is allowed as a whole goes through objects, or through a module that is not trusted.
    """
    top, *parts = path.split(".")
    try:
        found: Any = _imported(top)
    except ModuleNotFoundError as error:
        if error.name != top:
            raise
        raise ConfigError(f"{top} is not installed; pip install {top}") from error
    for part in parts:
        if not isinstance(found, ModuleType) and not trust.names(path):
            raise ConfigError(f"'{path}' is an attribute of an object; name a class or function of a module")
        if hasattr(found, part):
            found = getattr(found, part)
        elif isinstance(found, ModuleType):
            found = _submodule(found, part, path)
        else:
            raise ConfigError(f"cannot find '{part}' in {path.partition(f'.{part}')[0]}")
        if isinstance(found, ModuleType) and not trust.names(path) and not trust.may_import(found.__name__):
            raise ConfigError(_refused(path))
    return found


def _submodule(package: ModuleType, part: str, path: str) -> ModuleType:
    name = f"{package.__name__}.{part}"
    if not trust.names(path) and not trust.may_import(name) and trust.spec(name):
        raise ConfigError(_refused(path))
    try:
        return _imported(name)
    except ModuleNotFoundError as error:
        if error.name != name:
            raise
        raise ConfigError(f"cannot find '{part}' in {package.__name__}{_contents(package, part)}") from None


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except Exception as error:
        if users_place(error) or (isinstance(error, ModuleNotFoundError) and error.name == name):
            raise
        raise ConfigError(f"cannot import {name}: {type(error).__name__}: {error}") from error


@contextmanager
def _own_modules_importable() -> Iterator[None]:
    """Add the user's folders at the end of the module search path, where they hide no installed package."""
    folders = [str(each) for each in trust.current().folders if str(each) not in sys.path]
    sys.path.extend(folders)
    try:
        yield
    finally:
        for folder in folders:
            sys.path.remove(folder)


def _refused(path: str) -> str:
    if path in registry.COMPONENTS or path in registry.KINDS:
        names = registry.COMPONENTS.get(path) or (
            registry.offered_names(sys.modules[path]) if path in sys.modules else []
        )
        return f"'{path}' is a module; name a class or function of it{_listed('', names)}"
    problem = f"'{path}' is not an allowed component"
    if nearest := did_you_mean(path, registry.elsewhere(path)):
        return problem + nearest
    top = path.partition(".")[0]
    known = {each.partition(".")[0] for each in (*registry.COMPONENTS, *registry.KINDS)}
    trustable = top not in known and top not in sys.stdlib_module_names
    to_trust = f"; to trust it, add {trust.OPTION} '{top}.*'" if trustable else ""
    return f"{problem}; allowed are {registry.ALLOWED}{to_trust}"


def _contents(found: Any, part: str = "") -> str:
    """Say what a module of the user's offers instead."""
    if not isinstance(found, ModuleType):
        return ""
    own = found.__name__.partition(".")[0]
    defined = [
        name
        for name, each in vars(found).items()
        if _is_component(each) and (_module_of(each) or "").partition(".")[0] == own
    ]
    modules = [each.name for each in pkgutil.iter_modules(getattr(found, "__path__", []))]
    return _listed(part, [name for name in {*defined, *modules} if not name.startswith("_")])


def _listed(part: str, names: Sequence[str]) -> str:
    """Say the nearest name, and all of them where they are few."""
    listed = f" (it has: {', '.join(sorted(names))})" if 0 < len(names) <= MOST_NAMES else ""
    return did_you_mean(part, names) + listed if part else listed
