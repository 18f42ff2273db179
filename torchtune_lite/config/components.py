"""`_component_`: from a dotted path to an object, its arguments checked before and named when it fails."""

import inspect
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, get_args, get_origin

from torchtune_lite.config import hints
from torchtune_lite.config.document import Document, KeyPath
from torchtune_lite.config.dotted import DottedPath, find
from torchtune_lite.errors import ConfigError, TuneError, did_you_mean
from torchtune_lite.redaction import redact

EMPTY = inspect.Parameter.empty


class Component(dict):
    """A `_component_` mapping of a config; `where` is its place and key for messages."""

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        super().__init__(values)
        self.where = where


def instantiate(node: Any, *args: Any, defaults: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
    """Build the `_component_` that `node` names, of a list each; None stays None.

    `args` and `kwargs` come from the recipe; `defaults` fill what the config leaves out and the component has. Nested
    components are built first, but all are looked up before any is built. Whatever the component rejects becomes a
    `ConfigError` that names its key.
    """
    _look_up(node)
    return _build(node, args, kwargs, defaults or {})


def _look_up(node: Any) -> None:
    """Raise ConfigError for a component, at any depth, that a config may not name or that is not there."""
    if isinstance(node, dict) and "_component_" in node:
        try:
            find(node["_component_"])
        except ConfigError as error:
            raise ConfigError(f"{getattr(node, 'where', 'component')}: {error}") from error
    for each in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        _look_up(each)


def _build(node: Any, args: Sequence[Any], kwargs: Mapping[str, Any], defaults: Mapping[str, Any]) -> Any:
    if node is None:
        return None
    if isinstance(node, list):
        return [_build(each, args, kwargs, defaults) for each in node]
    if not isinstance(node, dict) or "_component_" not in node:
        raise ConfigError(f"expected a mapping with a _component_, got {hints.shown(node)}")
    path = node["_component_"]
    where = f"{getattr(node, 'where', 'component')} ({path})"
    target = find(path)
    parameters = _parameters(target)
    arguments = {name: value for name, value in defaults.items() if name in parameters}
    arguments |= {name: _built(value) for name, value in node.items() if name != "_component_"} | kwargs
    try:
        return target(*args, **arguments)
    except TuneError:
        raise
    except (TypeError, ValueError, OSError) as error:
        raise ConfigError(f"{where}: {' '.join(str(error).split())}") from error


def _built(value: Any) -> Any:
    if isinstance(value, list):
        return [_built(each) for each in value]
    if not isinstance(value, dict):
        return value
    if "_component_" in value:
        return _build(value, (), {}, {})
    return {name: _built(each) for name, each in value.items()}


def check(value: Any, path: KeyPath, document: Document, given: Sequence[str]) -> list[str]:
    """Returns one line per problem of a component, or of each in a list, which is not built: path, arguments, types.

    `given` are the arguments that the recipe passes.
    """
    if value is None or isinstance(value, hints.Unresolved):
        return []
    if isinstance(value, list):
        return [line for i, each in enumerate(value) for line in check(each, (*path, str(i)), document, given)]
    key, place = ".".join(path), document.place(path)
    if not isinstance(value, dict) or "_component_" not in value:
        return [f"{place}: '{key}' needs a _component_, got {hints.shown(value)}"]
    try:
        parameters = _parameters(find(value["_component_"]))
    except ConfigError as error:
        return [f"{document.place((*path, '_component_'))}: '{key}': {error}"]
    named = {name: each for name, each in value.items() if name != "_component_"}
    found = [(place, problem) for problem in _missing(parameters, named, given)]
    found += [(document.place((*path, name)), _misfit(name, each, parameters, given)) for name, each in named.items()]
    problems = [f"{place}: '{key}' ({value['_component_']}) {problem}" for place, problem in found if problem]
    return problems + [line for name, each in named.items() for line in check_nested(each, (*path, name), document)]


def check_nested(value: Any, path: KeyPath, document: Document) -> list[str]:
    """Checks the components inside a value that need not be one itself."""
    if isinstance(value, dict) and "_component_" in value:
        return check(value, path, document, ())
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [line for name, each in items for line in check_nested(each, (*path, str(name)), document)]


def _parameters(target: Any) -> Mapping[str, inspect.Parameter]:
    """Returns the parameters of a callable; a builtin that does not tell them accepts anything."""
    try:
        return inspect.signature(target, eval_str=True).parameters
    except NameError:  # an annotation that only a type checker can read
        return inspect.signature(target).parameters
    except ValueError:
        return {"kwargs": inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)}


def _open(parameters: Mapping[str, inspect.Parameter]) -> bool:
    return any(each.kind is each.VAR_KEYWORD for each in parameters.values())


def _missing(
    parameters: Mapping[str, inspect.Parameter], named: Mapping[str, Any], given: Sequence[str]
) -> Iterator[str]:
    for name in given:
        if name not in parameters and not _open(parameters):
            yield f"has no argument '{name}', which the recipe passes; wrap it in a function of your own"
    needed = [
        name
        for name, each in parameters.items()
        if each.default is EMPTY and each.kind not in (each.VAR_KEYWORD, each.VAR_POSITIONAL)
    ]
    missing = [name for name in needed if name not in named and name not in given]
    if missing:
        yield f"needs {', '.join(missing)}"


def _misfit(name: str, value: Any, parameters: Mapping[str, inspect.Parameter], given: Sequence[str]) -> str:
    if name in given:
        return f"gets '{name}' from the recipe; remove it here"
    if name not in parameters:
        known = [each for each in parameters if each not in given]
        instead = did_you_mean(name, known) or f" (it has: {', '.join(known)})"
        return "" if _open(parameters) else f"has no argument '{name}'{instead}"
    hint, default = parameters[name].annotation, parameters[name].default
    options = get_args(hint)
    words = [word for each in options if get_origin(each) is Literal for word in get_args(each)]
    if isinstance(value, str) and DottedPath in (hint, *options) and value not in (default, *words):
        return _unknown_object(name, value)
    if hint is EMPTY or isinstance(hint, str) or value == default or hints.fits(value, hint):
        return ""
    return f"expects {hints.describe(hint)} for '{name}', got {hints.shown(redact({name: value})[name])}"


def _unknown_object(name: str, path: str) -> str:
    try:
        find(path)
    except ConfigError as error:
        return f"cannot take '{name}': {error}"
    return ""
