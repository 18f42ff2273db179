"""`include: other` in a config: the keys of another one, read first; its own are laid over them.

The other is a shipped config by its name, or a YAML file by its path from the file that names it. A mapping is merged
key by key; anything else, and a component whose `_component_` is another one, takes the place of what is included.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torchtune_lite import catalog
from torchtune_lite.config.text import document
from torchtune_lite.config.text.document import Document, KeyPath
from torchtune_lite.config.text.interpolation import referred
from torchtune_lite.errors import ConfigError, did_you_mean

KEY = "include"
SUFFIXES = (".yaml", ".yml")


@dataclass
class File:
    """One file of a chain: where it lies, what messages call it, what it says."""

    path: Path
    name: str
    document: Document


def read(path: Path, name: str | None = None) -> Document:
    """Read a config with what it includes; `own` has the keys that an interpolation of any of the files names."""
    first, *others = (file.document for file in chain(path, name))
    for included in others:
        _lay_over(included, first)
    first.own = set(referred([first.values, *(each.values for each in others)])) | first.own
    return first


def chain(path: Path, name: str | None = None) -> Iterator[File]:
    """Read a config, the one that it includes, and so on; without their keys `include`.

    Raise `ConfigError` with the line of the key for a file that is not there, may not be read, or includes itself.
    """
    seen: list[Path] = []
    root = path.resolve().parent
    while True:
        file = File(path, name or str(path), document.read(path, name))
        seen.append(path.resolve())
        given = file.document.values.pop(KEY, None)
        where = f"{file.document.place((KEY,))}: '{KEY}'"
        yield file
        if given is None:
            return
        try:
            path, name = _find(given, file, root)
        except ConfigError as error:
            raise ConfigError(f"{where}: {error}") from error
        if path.resolve() in seen:
            by_way = [each.stem for each in seen[seen.index(path.resolve()) + 1 :]]
            raise ConfigError(f"{where}: {name} includes itself{' through ' * bool(by_way)}{', '.join(by_way)}")


def merges(node: Any, included: Any) -> bool:
    """Return whether a value is laid over the included one key by key, or takes its place."""
    if not (isinstance(node, dict) and isinstance(included, dict)):
        return False
    return node.get("_component_", included.get("_component_")) == included.get("_component_")


def _find(given: Any, file: File, root: Path) -> tuple[Path, str]:
    """Return the file that is meant and its name.

    Only YAML files that are not hidden, in the folder of the config that the command names or in the working directory,
    are read: a config from elsewhere could otherwise log what other files hold.
    """
    if not isinstance(given, str):
        raise ConfigError(f"expected the name of a config or the path of a YAML file, got {given!r}")
    if not given.endswith(SUFFIXES):
        shipped = catalog.configs()
        if given not in shipped:
            meant = did_you_mean(given, shipped)
            raise ConfigError(f"there is no config '{given}'{meant} ('tune ls' shows all; a path ends in .yaml)")
        return shipped[given], given
    path, folders = file.path.parent / given, (root, Path.cwd().resolve())
    inside = [path.resolve().relative_to(each) for each in folders if path.resolve().is_relative_to(each)]
    if all(any(part.startswith(".") for part in each.parts) for each in inside):
        raise ConfigError(
            f"{given} is hidden, or lies neither beside the config nor in the working directory; copy it there"
        )
    if not path.is_file():
        raise ConfigError(f"there is no file {given} beside {file.name}")
    return path, str(Path(file.name).parent / given)


def _lay_over(included: Document, document: Document) -> None:
    """Add to a document what is included and it does not say itself, with the places of both."""

    def merged(node: dict[str, Any], below: dict[str, Any], path: KeyPath) -> dict[str, Any]:
        values = {}
        for key, value in below.items():
            here = (*path, str(key))
            if key not in node:
                values[key] = value
                places.update(_places(included, here))
            elif merges(node[key], value):
                values[key] = merged(node[key], value, here)
            else:
                values[key] = node[key]
        return values | {key: value for key, value in node.items() if key not in below}

    places: dict[KeyPath, str] = {}
    document.values = merged(document.values, included.values, ())
    document.origins |= places
    document.notes = included.notes | document.notes


def _places(document: Document, path: KeyPath) -> dict[KeyPath, str]:
    return {known: place for known, place in document.origins.items() if known[: len(path)] == path}
