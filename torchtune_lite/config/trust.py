"""Which modules a config may name objects of: code that a YAML from elsewhere can start.

Allowed are this package, `torch.nn`, `torch.optim`, torchao and bitsandbytes (not all of torch: `torch.hub.load` runs
code from the network, `torch.load` unpickles), and the modules whose file lies under the working directory or beside
the recipe. Whatever else a user trusts stands on the command line (`--allow-component 'pkg.*'`) or in the environment,
never in the YAML itself.
"""

import importlib.util
import os
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path

from torchtune_lite.errors import ConfigError

ALLOWED = ("torchtune_lite", "torch.nn", "torch.optim", "torchao", "bitsandbytes")
OPTION = "--allow-component"
VARIABLE = "TORCHTUNE_LITE_ALLOW_COMPONENT"
INSTALLED = {"site-packages", "dist-packages"}  # an environment inside the working directory is not the user's code

_patterns: list[str] = []
_beside: list[Path] = []


def allow(pattern: str) -> None:
    """Trusts a package, `pkg.*`, or one object by its full name, `pkg.module.thing`, for this process."""
    name = pattern.removesuffix(".*")
    if not all(part.isidentifier() for part in name.split(".")) or "." not in pattern:
        raise ConfigError(f"{OPTION} {pattern!r}: expected a package such as 'pkg.*', or an object: 'pkg.module.thing'")
    _patterns.append(pattern)


def take_allowed(words: Sequence[str]) -> list[str]:
    """Applies each `--allow-component PATTERN` of a command line; returns the words that are left."""
    left, rest = [], iter(words)
    for word in rest:
        if word == OPTION:
            allow(next(rest, ""))
        elif word.startswith(f"{OPTION}="):
            allow(word.partition("=")[2])
        else:
            left.append(word)
    return left


def allow_beside(script: str | Path) -> None:
    """Trusts the modules in the folder of a recipe that the user runs by its path."""
    folder = Path(script).resolve().parent
    if folder not in _beside:
        _beside.append(folder)


def folders() -> list[Path]:
    """Returns the folders whose modules are the user's own: the working directory first."""
    return [Path.cwd().resolve(), *_beside]


def patterns() -> list[str]:
    """Returns what the command line and the environment allow besides."""
    return [*_patterns, *os.environ.get(VARIABLE, "").replace(",", " ").split()]


def names(path: str) -> bool:
    """Tells whether the user allowed the object of that dotted path by its full name."""
    return path in patterns()


def is_named(module: str) -> bool:
    """Tells whether a module is of a package that the command line or the environment allows."""
    packages = [each.removesuffix(".*") for each in patterns()]
    return any(module == package or module.startswith(f"{package}.") for package in packages)


def may_import(path: str) -> bool:
    """Tells whether a dotted path may be followed at all, by its text and its first module's place: imports nothing."""
    return names(path) or _within_packages(path) or _is_own(path.partition(".")[0])


def module(name: str | None) -> bool:
    """Tells whether the objects that a module defines are allowed."""
    return bool(name) and (_within_packages(name) or _is_own(name))


def spec(name: str) -> ModuleSpec | None:
    """Returns where a module lies, loaded or not; imports no module but the packages above it."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def _within_packages(name: str) -> bool:
    packages = [*ALLOWED, *(each[:-2] for each in patterns() if each.endswith(".*"))]
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _is_own(name: str) -> bool:
    """Tells whether a module's file, or the folder of a package without one, lies in a folder of the user's."""
    if name.partition(".")[0] in sys.stdlib_module_names:
        return False
    if file := getattr(sys.modules.get(name), "__file__", None):
        return _lies_in_own_folder(file)
    found = spec(name)
    if found is None:
        return False
    places = [found.origin] if found.has_location else found.submodule_search_locations or []
    return any(map(_lies_in_own_folder, places))


def _lies_in_own_folder(place: str) -> bool:
    path = Path(place).resolve()
    return any(path.is_relative_to(each) and not INSTALLED & set(path.relative_to(each).parts) for each in folders())
