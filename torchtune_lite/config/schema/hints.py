"""The check of a YAML value against a type annotation, and the annotation in a YAML writer's words."""

import os
import types
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from torchtune_lite.config.text.interpolation import Unresolved
from torchtune_lite.errors import shortened
from torchtune_lite.redaction import redact

SCALARS = {bool: (bool,), int: (int,), float: (int, float), str: (str,)}


def fits(value: Any, hint: Any) -> bool:
    """Return whether `value` can be meant by `hint`; an annotation that YAML has no counterpart for fits anything.

    A component fits every hint: what it builds is known later. An int is a float, but neither is a bool.
    """
    origin, args = get_origin(hint), get_args(hint)
    if isinstance(value, Unresolved) or (isinstance(value, dict) and "_component_" in value):
        return True
    if origin is Annotated:
        return fits(value, args[0])
    if origin in (Union, types.UnionType):
        return any(fits(value, each) for each in args)
    if origin is Literal:
        return value in args
    if hint in (None, type(None)):
        return value is None
    if hint in SCALARS:
        return isinstance(value, SCALARS[hint]) and (hint is bool or not isinstance(value, bool))
    kind = origin or hint
    if not isinstance(kind, type):
        return True
    if issubclass(kind, os.PathLike):
        return isinstance(value, str)
    if issubclass(kind, Mapping):
        return isinstance(value, dict) and all(fits(each, args[1]) for each in value.values() if len(args) == 2)
    if issubclass(kind, Iterable) and kind.__module__ in ("builtins", "typing", "collections.abc"):
        return isinstance(value, list) and _items_fit(value, kind, args)
    return not _unwritable(kind)


def advice(value: Any, hint: Any) -> str:
    """Return how a value that does not fit would be a text, where one is expected, or nothing."""
    if isinstance(value, dict) and not fits(value, hint):
        return next((found for each in value.values() if (found := advice(each, str))), "")
    if not isinstance(value, bool | int | float) or not fits("", hint):
        return ""
    word = str(value).lower() if isinstance(value, bool) else value
    return f"; a text is quoted: '{word}', on a command line '\"{word}\"'"


def _unwritable(kind: Any) -> bool:
    """Tell the classes, tensors above all, that no YAML value can stand for."""
    return isinstance(kind, type) and kind.__module__.partition(".")[0] == "torch"


def _items_fit(value: list, kind: type, args: tuple) -> bool:
    if kind is tuple and Ellipsis not in args and args:
        return len(value) == len(args) and all(map(fits, value, args))
    return all(fits(each, args[0]) for each in value if args)


def without_none(hint: Any) -> Any:
    """Return `X` for `X | None`; any other annotation as it is."""
    left = [each for each in get_args(hint) if each is not type(None)]
    return left[0] if get_origin(hint) in (Union, types.UnionType) and len(left) == 1 else hint


def describe(hint: Any) -> str:
    """Return the annotation as a YAML writer would say it: `int or null`, `list of str`."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Annotated:
        return describe(args[0])
    if origin in (Union, types.UnionType):
        words = dict.fromkeys(describe(each) for each in args if not _unwritable(each))
        return " or ".join(word for word in words if word != "str" or "path" not in words)
    if origin is Literal:
        return " or ".join(str(each) for each in args)
    if hint in (None, type(None)):
        return "null"
    kind = origin or hint
    if not isinstance(kind, type):
        return str(kind)
    if issubclass(kind, os.PathLike):
        return "path"
    if issubclass(kind, Mapping):
        return "mapping"
    if issubclass(kind, Iterable) and kind is not str:
        items = [each for each in args if each is not Ellipsis]
        return f"list of {' and '.join(dict.fromkeys(describe(each) for each in items))}" if items else "list"
    return kind.__name__


def shown(value: Any) -> str:
    """Return a value with its kind as YAML has it: `null`, `true`, `text '2e-5,'`, `list [1, 2]`; long ones cut."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    kind = {str: "text", dict: "mapping"}.get(type(value), type(value).__name__)
    return f"{kind} {shortened(repr(redact(value)))}"
