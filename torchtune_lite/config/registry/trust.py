"""The user's trust beyond the offered names: code that a YAML from elsewhere may start.

These are the modules whose file lies under the working directory or beside the recipe that the user runs, and what
stands on the command line (`--allow-component 'pkg.*'`) or in the environment; never in the YAML itself.
"""

import importlib.util
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import NamedTuple

from torchtune_lite import tracebacks
from torchtune_lite.errors import ConfigError
from torchtune_lite.tracebacks import INSTALLED

OPTION = "--allow-component"
VARIABLE = "TORCHTUNE_LITE_ALLOW_COMPONENT"

PACKAGE = Path(__file__).resolve().parent.parent.parent
LIBRARY = (PACKAGE, *(PACKAGE.parent / name for name in ("benchmarks", "recipes", "tests")))
"""The folders of this library, and those beside it in a clone of its repository."""
ENVIRONMENT = ("pyvenv.cfg", "conda-meta")  # in the top folder of a Python environment


class Trust(NamedTuple):
    """Packages, `pkg.*`, and objects by their full names; and the folders whose modules are the user's own."""

    patterns: tuple[str, ...]
    folders: tuple[Path, ...]

    def has_named(self, module: str) -> bool:
        """Return whether a module is one that a pattern names, or lies in a package of one."""
        packages = tuple(f"{each.removesuffix('.*')}." for each in self.patterns)
        return f"{module}.".startswith(packages)


_settled: Trust | None = None


@contextmanager
def trusting(patterns: Sequence[str], script: str | Path) -> Iterator[None]:
    """Settle what is trusted while a command runs: nothing that its config builds can widen it.

    `patterns` are those of the command line, `script` is the recipe. The environment and the working directory are
    looked at once.
    """
    global _settled
    if _settled is not None:
        raise RuntimeError("what a config may name has been settled by the command that is running")
    _settled = _now(patterns, Path(script).resolve().parent)
    tracebacks.count_as_users(_settled.has_named)
    try:
        yield
    finally:
        _settled = None


def _now(patterns: Sequence[str] = (), *beside: Path) -> Trust:
    in_environment = os.environ.get(VARIABLE, "").replace(",", " ").split()
    for where, pattern in [*((OPTION, each) for each in patterns), *((VARIABLE, each) for each in in_environment)]:
        name = pattern.removesuffix(".*")
        if not all(part.isidentifier() for part in name.split(".")) or "." not in pattern:
            raise ConfigError(
                f"{where} {pattern!r}: expected a package such as 'pkg.*', or an object: 'pkg.module.thing'"
            )
    return Trust((*patterns, *in_environment), (Path.cwd().resolve(), *beside))


def current() -> Trust:
    """Return what is trusted: settled by the command that runs, or outside of one as things stand."""
    return _settled or _now()


def take_allowed(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Take each `--allow-component PATTERN` out of a command line; return the patterns and the words left."""
    patterns, left, rest = [], [], iter(words)
    for word in rest:
        if word == OPTION:
            patterns.append(next(rest, ""))
        elif word.startswith(f"{OPTION}="):
            patterns.append(word.partition("=")[2])
        else:
            left.append(word)
    return patterns, left


def names(path: str) -> bool:
    """Return whether the user allowed the object of that dotted path by its full name."""
    return path in current().patterns


def _packages() -> list[str]:
    return [each[:-1] for each in current().patterns if each.endswith(".*")]  # with a dot at the end


def in_package(name: str) -> bool:
    """Return whether a module lies in a package that the user trusts."""
    return f"{name}.".startswith(tuple(_packages()))


def module(name: str | None) -> bool:
    """Return whether a module is the user's own or lies in a package that they trust; import only packages above it."""
    return bool(name) and (in_package(name) or _is_own(name))


def may_import(name: str) -> bool:
    """Return whether a dotted path may lead through a module: one that is trusted, or a package above such a one."""
    return module(name) or any(each.startswith(f"{name}.") for each in _packages())


def spec(name: str) -> ModuleSpec | None:
    """Return where a module lies, loaded or not; import no module but the packages above it."""
    try:
        return importlib.util.find_spec(name)
    except (ImportError, ValueError, AttributeError):
        return None


def _is_own(name: str) -> bool:
    """Return whether a module's file, or the folder of a package without one, lies in a folder of the user's."""
    if name.partition(".")[0] in sys.stdlib_module_names:
        return False
    if file := getattr(sys.modules.get(name), "__file__", None):
        return is_own_file(file)
    found = spec(name)
    if found is None:
        return False
    places = [found.origin] if found.has_location else found.submodule_search_locations or []
    return any(map(is_own_file, places))


def is_own_file(place: str | Path) -> bool:
    """Return whether a file lies in a folder of the user's, and is neither this library's nor an installed one."""
    path = Path(place).resolve()
    if INSTALLED & set(path.parts) or any(path.is_relative_to(each) for each in LIBRARY):
        return False
    return any(path.is_relative_to(each) and not _is_installed(path, each) for each in current().folders)


def _is_installed(path: Path, folder: Path) -> bool:
    """Return whether a file in `folder` belongs to a Python environment there, or was put there by `pip --target`."""
    while path != folder:
        path, name = path.parent, path.name
        records = path.glob("*.dist-info/RECORD")
        if any(line.startswith((f"{name}/", f"{name},")) for each in records for line in each.open(encoding="utf-8")):
            return True
        if path != folder and any((path / each).exists() for each in ENVIRONMENT):
            return True
    return False
