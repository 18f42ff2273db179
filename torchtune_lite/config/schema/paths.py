"""`~` in the texts of a config that are paths: those of a key or argument annotated with `Path`, or `str | Path`."""

import os
from typing import Any, get_args, get_origin

from torchtune_lite.errors import ConfigError


def expanded(value: Any, hint: Any) -> Any:
    """Return a value whose texts start with a home folder in the place of `~` or `~user`, where `hint` has a path.

    Raise `ConfigError` for a user who does not exist: the file system would make a folder of that name.
    """
    return _expanded(value) if holds_path(hint) else value


def holds_path(hint: Any) -> bool:
    """Return whether a path is among what an annotation allows, or in the lists and mappings that it allows."""
    kind = get_origin(hint) or hint
    return (isinstance(kind, type) and issubclass(kind, os.PathLike)) or any(map(holds_path, get_args(hint)))


def home(text: str) -> str:
    """Return a path with `~` expanded, as `expanded` does."""
    if not text.startswith("~"):
        return text
    if (path := os.path.expanduser(text)) == text:
        user = text[1:].partition("/")[0]
        raise ConfigError(f"{text!r}: there is no user {user!r}; write './{text}' for a path that starts with ~")
    return path


def _expanded(value: Any) -> Any:
    if isinstance(value, dict) and "_component_" not in value:
        return {name: _expanded(each) for name, each in value.items()}
    if isinstance(value, list):
        return [_expanded(each) for each in value]
    return home(value) if isinstance(value, str) else value
